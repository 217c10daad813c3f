"""What `--topology` asks of Ray, and what it refuses."""

from typing import Any

import pytest

from infra.slices import CHIPS
from pipelines.engine.placement import RAY_NAMES, chip_flops_of, fewest_workers_of, mesh_of, tpu_slices, workers_of
from pipelines.engine.resources import Resources
from training.worker.places import TpuSlices


def test_a_topology_gives_workers_hosts_and_mesh() -> None:
    one, two = Resources(topology="v5e:4x4"), Resources(topology="v4:2x2x4", slices=2)
    assert (workers_of(one), mesh_of(one)) == (4, "data=16")
    assert (workers_of(two), mesh_of(two)) == (8, "replica=2,data=16")
    assert tpu_slices(two) == TpuSlices(
        chips_per_host=4, hosts=4, slices=2, topology="2x2x4", accelerator_type="TPU-V4"
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
    assert chip_flops_of(Resources(topology="v5e:4x4", slices=2), [v4]) == CHIPS["v5e"].peak_flops
    assert chip_flops_of(Resources(), [cpu, v6e, v6e, host("TPU-V4", alive=False)]) == CHIPS["v6e"].peak_flops
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


def test_every_chip_has_a_name_for_ray() -> None:
    assert RAY_NAMES.keys() == CHIPS.keys()
