"""A job on a mesh is the job on one device: losses, what is saved, and where parameters, moments and average lie."""

import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch_xla")

from tests.programs.chaos_log import chaos_run
from tests.programs.meshes import CONTINUED, SAVED, SHAPES, STEPS, farthest, mesh_of, records_of

NAMES = ["x".join(map(str, shape)) for shape in SHAPES]
ALONE, SAVING = "1x1x1", "2x2x2"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Runs on one device, on a mesh with all axes and on another."""
    other = random.Random(0).choice([name for name in NAMES if mesh_of(name).chips == 8 and name != SAVING])
    return records_of([ALONE, SAVING, other], tmp_path_factory.mktemp("meshes"))


@pytest.mark.slow
def test_losses_do_not_depend_on_the_mesh(found: dict[str, dict[str, Any]]) -> None:
    assert [len(one["losses"]) for one in found.values()].count(STEPS) == 3
    check_losses(found)


@pytest.mark.slow
def test_moments_lie_as_their_parameters_from_before_the_first_step(found: dict[str, dict[str, Any]]) -> None:
    """A copy of all moments on each chip, even for one step, is what a large model has no room for."""
    check_layout(found)
    table = found[SAVING]["lies"][0]["model.embed_tokens.weight"]
    assert table == ["{devices=[2,2,2]0,4,2,6,1,5,3,7 last_tile_dim_replicate}"] * 4


@pytest.mark.slow
def test_no_step_after_the_first_compiles(found: dict[str, dict[str, Any]]) -> None:
    for run, one in found.items():
        until_saved = one["compiles"][1 : SAVED + 1]  # the boundary before the first step is counted too
        assert len(set(until_saved)) == 1, (run, one["compiles"])


@pytest.mark.chaos
def test_every_mesh_of_up_to_eight_chips(tmp_path: Path) -> None:
    """Twenty shapes, and two that go on from the checkpoint of a third one."""
    with chaos_run("training meshes", "shapes") as counts:
        found = records_of([*NAMES, *CONTINUED], tmp_path)
        assert len(NAMES) == 20
        check_losses(found)
        check_layout(found)
        for run in CONTINUED:
            assert list(found[run]["losses"]) == [str(step) for step in range(SAVED + 1, STEPS + 1)]
            assert found[run]["restored"] == []
        counts.runs = len(found)
        counts.compared = sum(len(one["losses"]) for one in found.values())
        for name in NAMES:
            print(f"{name}: {farthest(found[name]['losses'], found[ALONE]['losses']):.1e} from {ALONE}")


def check_losses(found: dict[str, dict[str, Any]]) -> None:
    apart = {run: farthest(one["losses"], found[ALONE]["losses"]) for run, one in found.items()}
    assert max(apart.values()) <= 1e-5, apart
    losses = list(found[ALONE]["losses"].values())
    assert losses[-1] < 0.8 * losses[0]  # a run that learns nothing would agree with any other


def check_layout(found: dict[str, dict[str, Any]]) -> None:
    for run, one in found.items():
        for when, lies in zip(("before the first step", "after it"), one["lies"], strict=True):
            wrong = {name: of for name, of in lies.items() if len(set(of)) > 1}
            assert not wrong, (run, when, wrong)
        for text in one.get("warnings", "").splitlines():
            assert "Involuntary full rematerialization" not in text, run
