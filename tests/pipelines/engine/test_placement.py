"""What `--topology` asks of Ray, and what it refuses."""

from typing import Any

import pytest

from infra.chips import TPUS
from pipelines.engine.placement import (
    chip_flops_of,
    fewest_workers_of,
    mesh_of,
    tpu_of_cluster,
    tpu_slices,
    workers_of,
)
from pipelines.engine.resources import Resources
from training.worker.places import TpuSlices


def test_a_topology_gives_workers_hosts_and_mesh() -> None:
    one, two = Resources(topology="v5e:4x4"), Resources(topology="v4:2x2x4", slices=2)
    assert (workers_of(one), mesh_of(one)) == (4, "data=16")
    assert (workers_of(two), mesh_of(two)) == (8, "replica=2,data=16")
    assert tpu_slices(two) == TpuSlices(
        chips_per_host=4, hosts=4, slices=2, topology="2x2x4", accelerator_type="TPU-V4", pod_type="v4-32"
    )
    assert tpu_slices(Resources(topology="v5e:2x2")) == TpuSlices(chips_per_host=4)
    for mesh in ("replica=4,data=4", "data=8,model=2", "data=2,model=8"):
        assert mesh_of(Resources(topology="v5e:4x4", mesh=mesh)) == mesh
    assert (tpu_slices(Resources()), workers_of(Resources(workers=3)), mesh_of(Resources())) == (None, 3, "")


def test_the_peak_of_a_chip_is_that_of_the_topology_or_of_the_hosts_that_there_are() -> None:
    def host(*kinds: str, alive: bool = True) -> dict[str, Any]:
        return {
            "Alive": alive,
            "Resources": {"CPU": 4.0, "TPU": 4.0, **{f"accelerator_type:{kind}": 1 for kind in kinds}},
        }

    v6e, v4, cpu = host("TPU-V6E"), host("TPU-V4"), {"Alive": True, "Resources": {"CPU": 4.0}}
    assert chip_flops_of(Resources(topology="v5e:4x4", slices=2), [v4]) == TPUS["v5e"].peak_flops
    assert chip_flops_of(Resources(), [cpu, v6e, v6e, host("TPU-V4", alive=False)]) == TPUS["v6e"].peak_flops
    for unknown in ([cpu], [v4, v6e], [host("TPU-V9")], [host()]):
        assert chip_flops_of(Resources(), unknown) is None


def test_an_elastic_run_goes_down_by_whole_slices() -> None:
    assert fewest_workers_of(Resources(topology="v5e:4x4", slices=3, min_slices=1)) == 4
    assert fewest_workers_of(Resources(topology="v5e:4x4", slices=2)) == 8
    assert fewest_workers_of(Resources(workers=4, min_workers=2)) == 2
    assert fewest_workers_of(Resources(workers=4)) == 4
    with pytest.raises(ValueError, match="min_slices is 3, more than slices, 2; give it at most that"):
        Resources(topology="v5e:4x4", slices=2, min_slices=3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"slices": 2}, "--slices 2 of what"),
        ({"min_slices": 1}, "--slices 1 of what"),
        ({"topology": "v5e:4x4", "workers": 4, "min_workers": 2}, "whole slices come and go; give --min-slices"),
        ({"topology": "v5e:4x4", "device": "cpu"}, "on device 'cpu'; TPU slices take 'xla'"),
        ({"topology": "v5e:4x4", "workers": 3}, "--workers 3, but 1 x v5e:4x4 has 4 hosts"),
        ({"topology": "v5e:2x4"}, "does not hold two hosts of 4 together; use v5e:2x2 or v5e:4x4"),
        ({"topology": "v9:2x4"}, "unknown chip 'v9'"),
        ({"topology": "v5p:4x4x12", "mesh": "data=64,model=3"}, "model=3 has to divide the chips of a host"),
        ({"topology": "v5e:4x4", "mesh": "data=8"}, "mesh data=8 has 8 chips, and 1 x v5e:4x4 has 16"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mesh_of(Resources(**given))


def test_the_smallest_tpu_host_is_taken_where_the_cluster_has_one() -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 8.0}},
        {"Alive": True, "Resources": {"CPU": 8.0, "TPU": 8.0}},
        {"Alive": True, "Resources": {"CPU": 8.0, "TPU": 4.0}},
        {"Alive": False, "Resources": {"TPU": 1.0}},
    ]
    assert tpu_of_cluster(Resources(), nodes) == TpuSlices(chips_per_host=4)
    assert tpu_of_cluster(Resources(), nodes[:1]) is None
    assert tpu_of_cluster(Resources(device="cpu"), nodes) is None
    assert tpu_of_cluster(Resources(topology="v5e:4x4"), nodes) == tpu_slices(Resources(topology="v5e:4x4"))


@pytest.mark.parametrize(
    ("kind", "chips", "topology", "hosts", "given"),
    [
        ("v5litepod-16", 4, "4x4", 1, "v5e:4x4"),  # its other hosts are not there yet
        ("v4-16", 4, "2x2x2", 2, "v4:2x2x2"),
        ("v9-16", 4, "4x4", 1, "as in v5e:4x4"),
        ("", 4, "", 2, "as in v5e:4x4"),
    ],
)
def test_one_host_of_a_slice_of_several_is_refused(
    kind: str, chips: int, topology: str, hosts: int, given: str
) -> None:
    labels = {"ray.io/tpu-slice-name": "s", "ray.io/tpu-pod-type": kind, "ray.io/tpu-topology": topology}
    node = {"Alive": True, "Resources": {"TPU": float(chips)}, "Labels": labels, "NodeManagerAddress": "10.0.0.2"}
    with pytest.raises(ValueError, match=f"10.0.0.2 belongs to the slice s of several hosts.*--topology {given}$"):
        tpu_of_cluster(Resources(), [node] * hosts)


def test_a_host_that_is_a_whole_slice_is_taken() -> None:
    labels = {"ray.io/tpu-slice-name": "s", "ray.io/tpu-pod-type": "v4-8", "ray.io/tpu-topology": "2x2x1"}
    node = {"Alive": True, "Resources": {"TPU": 4.0}, "Labels": labels}
    assert tpu_of_cluster(Resources(), [node]) == TpuSlices(chips_per_host=4)
