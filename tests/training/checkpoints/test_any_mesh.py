"""A checkpoint of any mesh or number of workers is, on any other, the same bits: parameters, moments and average."""

from pathlib import Path

import pytest

pytest.importorskip("torch_xla")

from tests.programs.any_mesh import KINDS, MESHES, changed_files_by_kind
from tests.programs.chaos_log import chaos_run
from training.checkpoints.save_load import load_checkpoint


@pytest.mark.slow
def test_a_divided_run_a_mesh_and_one_cpu_load_each_others_checkpoints(tmp_path: Path) -> None:
    check(changed_files_by_kind(["cpu", "fsdp", "1x2x2"], tmp_path), tmp_path)


@pytest.mark.chaos
def test_each_of_seven_kinds_of_run_loads_the_checkpoints_of_all_others(tmp_path: Path) -> None:
    with chaos_run("training checkpoints between meshes", "grid") as counts:
        changed_files = changed_files_by_kind(KINDS, tmp_path)
        assert len(changed_files) == len(MESHES) + 2
        check(changed_files, tmp_path)
        counts.runs = len(changed_files)
        counts.compared = sum(len(others) for others in changed_files.values())


def check(changed_files: dict[str, dict[str, list[str]]], directory: Path) -> None:
    for kind, others in changed_files.items():
        assert others == {other: [] for other in changed_files if other != kind}, kind
    ends = [load_checkpoint(str(directory / kind / "step-00000002")) for kind in changed_files]
    for checkpoint in ends:  # two steps of training: nothing that was compared is as it was drawn, or zero
        assert checkpoint.optimizer is not None
        assert all(
            bool(moment.any())
            for moment in [*checkpoint.optimizer.first.values(), *checkpoint.optimizer.second.values()]
        )
