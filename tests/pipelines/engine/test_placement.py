"""What `--topology` asks of Ray, and what it refuses."""

from typing import Any

import pytest

from infra.chips import TPUS
from model.sharding import MeshShape
from pipelines.engine.placement import (
    Placement,
    chip_flops_of,
    place,
    tpu_of_cluster,
)
from pipelines.engine.resources import Resources
from training.setup import Setup
from training.worker.places import TpuSlices


def placed(**given: Any) -> Placement:
    return place(Resources(**given))


def test_a_topology_gives_workers_hosts_and_mesh() -> None:
    single, two = placed(topology="v5e:4x4"), placed(topology="v4:2x2x4", slices=2)
    assert (single.setup.workers, single.setup.mesh) == (4, MeshShape(data=16))
    assert (two.setup.workers, two.setup.mesh) == (8, MeshShape(replica=2, data=16))
    assert two.tpu == TpuSlices(
        chips_per_host=4, hosts=4, slices=2, topology="2x2x4", accelerator_type="TPU-V4", pod_type="v4-32"
    )
    assert placed(topology="v5e:2x2").tpu == TpuSlices(chips_per_host=4)
    for mesh in ("replica=4,data=4", "data=8,model=2", "data=2,model=8"):
        assert placed(topology="v5e:4x4", mesh=mesh).setup.mesh == MeshShape.parse(mesh)


def test_without_a_topology_the_resources_are_the_set_up() -> None:
    bare = placed(device="cpu", workers=3, microbatch_rows=2, remat="none")
    assert bare.setup == Setup(device="cpu", workers=3, microbatch_rows=2, remat="none")
    assert (bare.topology, bare.tpu, bare.fewest_workers) == (None, None, 3)


def test_the_peak_of_a_chip_is_that_of_the_topology_or_of_the_hosts_that_there_are() -> None:
    def host(*kinds: str, alive: bool = True) -> dict[str, Any]:
        return {
            "Alive": alive,
            "Resources": {"CPU": 4.0, "TPU": 4.0, **{f"accelerator_type:{kind}": 1 for kind in kinds}},
        }

    v6e, v4, cpu = host("TPU-V6E"), host("TPU-V4"), {"Alive": True, "Resources": {"CPU": 4.0}}
    assert chip_flops_of(placed(topology="v5e:4x4", slices=2), [v4]) == TPUS["v5e"].peak_flops
    assert chip_flops_of(placed(), [cpu, v6e, v6e, host("TPU-V4", alive=False)]) == TPUS["v6e"].peak_flops
    for unknown in ([cpu], [v4, v6e], [host("TPU-V9")], [host()]):
        assert chip_flops_of(placed(), unknown) is None


def test_an_elastic_run_goes_down_by_whole_slices() -> None:
    assert placed(topology="v5e:4x4", slices=3, min_slices=1).fewest_workers == 4
    assert placed(topology="v5e:4x4", slices=2).fewest_workers == 8
    assert placed(workers=4, min_workers=2).fewest_workers == 2
    assert placed(workers=4).fewest_workers == 4
    with pytest.raises(ValueError, match="got min_slices=3, more than slices=2; give min_slices from 1 to 2"):
        Resources(topology="v5e:4x4", slices=2, min_slices=3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"slices": 2}, "got --slices 2 without --topology"),
        ({"min_slices": 1}, "got --slices 1 without --topology"),
        (
            {"topology": "v5e:4x4", "workers": 4, "min_workers": 2},
            "slices are lost and return as a whole, so give --min-slices",
        ),
        ({"topology": "v5e:4x4", "device": "cpu"}, "on device 'cpu'; give --device xla for TPU slices"),
        ({"topology": "v5e:4x4", "workers": 3}, "got --workers 3 for 1 x v5e:4x4, which has 4 hosts"),
        ({"topology": "v5e:2x4"}, "got v5e:2x4 as two hosts of 4 chips.*not reserve together; use v5e:2x2 or v5e:4x4"),
        ({"topology": "v9:2x4"}, "unknown chip 'v9'"),
        ({"topology": "v5p:4x4x12", "mesh": "data=64,model=3"}, "model=3 must divide the chips of a host"),
        ({"topology": "v5e:4x4", "mesh": "data=8"}, "got mesh data=8 of 8 chips for 1 x v5e:4x4 of 16 chips"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        placed(**given)


def test_the_smallest_tpu_host_is_taken_where_the_cluster_has_one() -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 8.0}},
        {"Alive": True, "Resources": {"CPU": 8.0, "TPU": 8.0}},
        {"Alive": True, "Resources": {"CPU": 8.0, "TPU": 4.0}},
        {"Alive": False, "Resources": {"TPU": 1.0}},
    ]
    assert tpu_of_cluster(placed(), nodes) == TpuSlices(chips_per_host=4)
    assert tpu_of_cluster(placed(), nodes[:1]) is None
    assert tpu_of_cluster(placed(device="cpu"), nodes) is None
    assert tpu_of_cluster(placed(topology="v5e:4x4"), nodes) == placed(topology="v5e:4x4").tpu


@pytest.mark.parametrize(
    ("kind", "chips", "topology", "hosts", "given"),
    [
        ("v5litepod-16", 4, "4x4", 1, "v5e:4x4"),  # its other hosts are not there yet
        ("v4-16", 4, "2x2x2", 2, "v4:2x2x2"),
        ("v9-16", 4, "4x4", 1, "such as v5e:4x4"),
        ("", 4, "", 2, "such as v5e:4x4"),
    ],
)
def test_one_host_of_a_slice_of_several_is_refused(
    kind: str, chips: int, topology: str, hosts: int, given: str
) -> None:
    labels = {"ray.io/tpu-slice-name": "s", "ray.io/tpu-pod-type": kind, "ray.io/tpu-topology": topology}
    node = {"Alive": True, "Resources": {"TPU": float(chips)}, "Labels": labels, "NodeManagerAddress": "10.0.0.2"}
    with pytest.raises(ValueError, match=f"10.0.0.2 of the slice s, which has several hosts.*--topology {given}$"):
        tpu_of_cluster(placed(), [node] * hosts)


def test_a_host_that_is_a_whole_slice_is_taken() -> None:
    labels = {"ray.io/tpu-slice-name": "s", "ray.io/tpu-pod-type": "v4-8", "ray.io/tpu-topology": "2x2x1"}
    node = {"Alive": True, "Resources": {"TPU": 4.0}, "Labels": labels}
    assert tpu_of_cluster(placed(), [node]) == TpuSlices(chips_per_host=4)
