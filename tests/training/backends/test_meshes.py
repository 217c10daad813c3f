"""A job on a mesh is the job on one device: losses, what is saved, and where parameters, moments and average lie."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch_xla")

from tests.programs.chaos_log import chaos_run
from tests.programs.meshes import CONTINUED, SAVED, SHAPES, STEPS, farthest, records_of

NAMES = ["x".join(map(str, shape)) for shape in SHAPES]
ALONE, DIVIDED, SAVING = "1x1x1", "1x2x2", "2x2x2"


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """A run on one device and one on a mesh of four; `make chaos` has all meshes of up to eight."""
    return records_of([ALONE, DIVIDED], tmp_path_factory.mktemp("meshes"))


@pytest.mark.slow
def test_losses_do_not_depend_on_the_mesh(records: dict[str, dict[str, Any]]) -> None:
    assert [len(record["losses"]) for record in records.values()].count(STEPS) == 2
    check_losses(records)


@pytest.mark.slow
def test_moments_lie_as_their_parameters_from_before_the_first_step(records: dict[str, dict[str, Any]]) -> None:
    """A copy of all moments on each chip, even for one step, is what a large model has no room for."""
    check_layout(records)
    table = records[DIVIDED]["lies"][0]["model.embed_tokens.weight"]
    assert table == ["{devices=[2,2]0,2,1,3}"] * 4


@pytest.mark.slow
def test_no_step_after_the_first_compiles(records: dict[str, dict[str, Any]]) -> None:
    for run, record in records.items():
        until_saved = record["compiles"][1 : SAVED + 1]  # the boundary before the first step is counted too
        assert len(set(until_saved)) == 1, (run, record["compiles"])


@pytest.mark.chaos
def test_every_mesh_of_up_to_eight_chips(tmp_path: Path) -> None:
    """Twenty shapes, and two that go on from the checkpoint of a third one."""
    with chaos_run("training meshes", "shapes") as counts:
        records = records_of([*NAMES, *CONTINUED], tmp_path)
        assert len(NAMES) == 20
        check_losses(records)
        check_layout(records)
        table = records[SAVING]["lies"][0]["model.embed_tokens.weight"]
        assert table == ["{devices=[2,2,2]0,4,2,6,1,5,3,7 last_tile_dim_replicate}"] * 4
        for run in CONTINUED:
            assert list(records[run]["losses"]) == [str(step) for step in range(SAVED + 1, STEPS + 1)]
            assert records[run]["restored"] == []
        counts.runs = len(records)
        counts.compared = sum(len(record["losses"]) for record in records.values())
        for name in NAMES:
            print(f"{name}: {farthest(records[name]['losses'], records[ALONE]['losses']):.1e} from {ALONE}")


def check_losses(records: dict[str, dict[str, Any]]) -> None:
    apart = {run: farthest(record["losses"], records[ALONE]["losses"]) for run, record in records.items()}
    assert max(apart.values()) <= 1e-5, apart
    losses = list(records[ALONE]["losses"].values())
    assert losses[-1] < 0.8 * losses[0]  # a run that learns nothing would agree with any other


def check_layout(records: dict[str, dict[str, Any]]) -> None:
    for run, record in records.items():
        for when, lies in zip(("before the first step", "after it"), record["lies"], strict=True):
            wrong = {name: of for name, of in lies.items() if len(set(of)) > 1}
            assert not wrong, (run, when, wrong)
        for text in record.get("warnings", "").splitlines():
            assert "Involuntary full rematerialization" not in text, run
