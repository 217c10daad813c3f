"""Scanned layers and the scanned head compute what the loops compute, in programs that do not grow with depth."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.programs.places import REPOSITORY
from tests.programs.xla_flags import QUICK_COMPILES

pytest.importorskip("torch_xla")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return reports_of(tmp_path_factory.mktemp("logs"))


def reports_of(folder: Path, *words: str) -> dict[str, Any]:
    """What the two programs found: `scan` on one device, `mesh` on four virtual ones, in processes of their own."""
    environment = os.environ | {
        "PJRT_DEVICE": "CPU",
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "XLA_FLAGS": QUICK_COMPILES,
        "TF_CPP_MIN_LOG_LEVEL": "1",  # warnings
    }
    logs = {name: folder / name for name in ("scan", "mesh")}
    processes = {}
    for name, log in logs.items():
        with log.open("w") as stderr:
            processes[name] = subprocess.Popen(
                [sys.executable, "-m", f"tests.programs.{name}_run", *words],
                cwd=REPOSITORY,
                env=environment | ({"CPU_NUM_DEVICES": "4"} if name == "mesh" else {}),
                text=True,
                stdout=subprocess.PIPE,
                stderr=stderr,
            )
    by_program = {}
    for name, process in processes.items():
        out, _ = process.communicate(timeout=900)
        assert process.returncode == 0, logs[name].read_text()
        by_program[name] = json.loads(out.splitlines()[-1]) | {"log": logs[name].read_text()}
    return by_program


@pytest.mark.chaos("scanned layers")
def test_every_remat_and_every_mesh_with_both_objectives(tmp_path: Path) -> None:
    reports = reports_of(tmp_path, "all")
    assert len(reports["scan"]["differences"]) == 2 * 3 + 3
    assert len(reports["mesh"]["differences"]) == 2 * len(reports["mesh"]["parts"])
    for program in ("scan", "mesh"):
        assert max(reports[program]["differences"].values()) <= 1e-5, reports[program]["differences"]


def test_losses_and_gradients_are_the_loops_with_each_remat_and_objective(reports: dict[str, Any]) -> None:
    differences = reports["scan"]["differences"]
    assert {
        "3 layers, none",
        "4 layers, projections",
        "4 layers, full",
        "distill",
        "topk",
        "full",
    } == differences.keys()
    assert max(differences.values()) <= 1e-5, differences


def test_logits_and_the_loss_without_gradients_are_the_loops(reports: dict[str, Any]) -> None:
    assert max(reports["scan"]["forward"].values()) <= 1e-5


def test_the_program_does_not_grow_with_depth(reports: dict[str, Any]) -> None:
    for four_layers, eight_layers in reports["scan"]["programs"].values():
        assert eight_layers == four_layers


def test_what_is_not_kept_is_computed_again(reports: dict[str, Any]) -> None:
    products = {remat: four_layers["products"] for remat, (four_layers, _) in reports["scan"]["programs"].items()}
    assert products["none"] < products["projections"] < products["full"]


def test_no_step_after_the_first_compiles(reports: dict[str, Any]) -> None:
    for counts in reports["scan"]["compiles"]:
        assert len(set(counts)) == 1


def test_a_checkpoint_of_stacked_layers_has_the_models_own_tensors(reports: dict[str, Any]) -> None:
    assert reports["scan"]["round_trip"]


def test_losses_and_gradients_on_a_mesh_are_those_of_one_device(reports: dict[str, Any]) -> None:
    differences = reports["mesh"]["differences"]
    assert {name.partition(" ")[2] for name in differences} == reports["mesh"]["parts"].keys()
    assert max(differences.values()) <= 1e-5, differences


def test_parameters_and_rows_lie_divided_on_a_mesh(reports: dict[str, Any]) -> None:
    """Shapes on a chip of the table [64, 32], of a pair's stacked down_proj [1, 32, 64], and of 4 rows."""
    assert reports["mesh"]["parts"] == {
        "data=4": [[64, 8], [1, 8, 64], [1, 18]],
        "data=2 model=2": [[32, 16], [1, 16, 32], [2, 18]],
        "model=4": [[16, 32], [1, 32, 16], [4, 18]],
        "replica=2 data=2": [[64, 16], [1, 16, 64], [1, 18]],
        "replica=2 model=2": [[32, 32], [1, 32, 32], [2, 18]],
    }


def test_what_is_saved_from_a_mesh_is_complete_and_bit_identical(reports: dict[str, Any]) -> None:
    """Also where a tensor is divided over some axes and repeated over others, which has lost tensors elsewhere."""
    assert reports["mesh"]["saved"] == {name: [] for name in reports["mesh"]["parts"]}


def test_no_tensor_is_gathered_whole_for_want_of_a_better_way(reports: dict[str, Any]) -> None:
    assert "sharding_propagation" in reports["mesh"]["log"]  # warnings are heard
    assert "Involuntary full rematerialization" not in reports["mesh"]["log"]


def test_a_mesh_that_is_not_the_process_devices_is_refused(reports: dict[str, Any]) -> None:
    assert reports["mesh"]["refused"].endswith(
        "has 8 chips, and the process has 4; give --mesh sizes whose product is 4"
    )


def test_rows_given_process_by_process_lie_where_those_of_one_process_do(reports: dict[str, Any]) -> None:
    assert "a model axis on both" in reports["mesh"]["by_process"]
    assert all(reports["mesh"]["by_process"].values()), reports["mesh"]["by_process"]


def test_the_rows_of_a_bad_step_are_looked_for_on_a_mesh(reports: dict[str, Any]) -> None:
    worst, expected = reports["mesh"]["worst"], reports["mesh"]["worst_expected"]
    assert [row for row, *_ in worst] == [row for row, *_ in expected]
    for numbers, others in zip(worst, expected, strict=True):
        assert numbers[1:] == pytest.approx(others[1:], rel=1e-4)
