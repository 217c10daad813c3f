"""Under Ray Train a job takes the same steps, whatever feeds it, and goes on after its worker was killed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.programs import agreement
from tests.programs.chaos_log import Counts
from tests.programs.places import REPOSITORY
from training.backends.local_workers import run_workers
from training.checkpoints.records import latest_checkpoint, list_checkpoints, read_rows
from training.checkpoints.save_load import load_checkpoint
from training.log.run_log import read_lines
from training.setup import Setup

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fits")


@pytest.fixture(scope="module")
def runs(directory: Path) -> dict[str, Any]:
    return in_process("ray_runs", directory)


def in_process(module: str, directory: Path) -> dict[str, Any]:
    """What a module of this folder found, in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # 127.0.0.1
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    done = subprocess.run(
        [sys.executable, "-m", f"tests.programs.{module}", str(directory)],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=1100,
    )
    assert done.returncode == 0
    results: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return results


def table(directory: Path, name: str, kind: str) -> Any:
    rows = read_rows(str(directory / name / "checkpoints"), kind)
    assert rows is not None
    return rows


def losses(directory: Path, name: str) -> np.ndarray:
    rows = table(directory, name, "metrics")
    return np.array(rows["loss_sum"]) / np.array(rows["targets"])


def test_the_feed_through_ray_data_gives_the_rows_and_losses_of_a_run_without_ray(
    directory: Path, runs: dict[str, Any]
) -> None:
    assert runs["direct"]["steps"] == runs["ray"]["steps"] == 12
    assert table(directory, "ray", "lineage").equals(table(directory, "direct", "lineage"))
    assert table(directory, "ray", "metrics").equals(table(directory, "direct", "metrics"))


def test_two_workers_with_half_of_the_model_each_take_the_steps_of_one(directory: Path, runs: dict[str, Any]) -> None:
    assert runs["divided"]["workers"] == 2
    assert table(directory, "divided", "lineage").equals(table(directory, "direct", "lineage"))
    np.testing.assert_allclose(losses(directory, "divided"), losses(directory, "direct"), rtol=1e-5)


@pytest.mark.chaos("training on four workers")
def test_four_workers_take_the_steps_of_one(tmp_path: Path, counts: Counts) -> None:
    """The same global batch on two whole models, on four, divided over four, and divided in each of two groups.

    And on one worker whose device is XLA.
    """
    workers_by_run = in_process("ray_worlds", tmp_path)
    xla = workers_by_run.pop("xla")
    assert (xla["device"], xla["compiles"]) == ("xla", 2)
    np.testing.assert_allclose(losses(tmp_path, "xla"), losses(tmp_path, "one"), rtol=1e-5)
    assert workers_by_run == {"one": 1, "two": 2, "four": 4, "divided": 4, "groups": 4}
    for name in ("two", "four", "divided", "groups"):
        assert table(tmp_path, name, "lineage").equals(table(tmp_path, "one", "lineage"))
        np.testing.assert_allclose(losses(tmp_path, name), losses(tmp_path, "one"), rtol=1e-5)
        counts.add(runs=1, compared=len(losses(tmp_path, name)))


def test_a_killed_worker_is_started_again_and_no_step_is_lost(directory: Path, runs: dict[str, Any]) -> None:
    assert runs["killed"]["kills"] == 1
    assert 0 < runs["killed"]["first_step"] < 600
    assert table(directory, "killed", "metrics")["step"].to_pylist() == list(range(1, 601))


def test_the_time_that_a_kill_costs_is_counted_over_both_attempts(directory: Path, runs: dict[str, Any]) -> None:
    lines = list(read_lines(str(directory / "killed" / "logs")))
    first, second = (line for line in lines if line["kind"] == "began")
    before = [line for line in lines[: lines.index(second)] if "run_seconds" in line][-1]
    assert first["lost_seconds_restart"] == before["lost_seconds_restart"] == 0.0
    away = second["time"] - before["time"]
    assert second["lost_seconds_restart"] == pytest.approx(away, abs=0.5)
    account = runs["killed"]["metrics"]
    assert account["lost_seconds_restart"] >= second["lost_seconds_restart"] > 0.1
    assert account["run_seconds"] == pytest.approx(account["time"] - first["since"], abs=0.5)
    assert account["run_seconds"] > before["run_seconds"] + away


def test_a_killed_controller_is_replaced_and_changes_no_bit(directory: Path, runs: dict[str, Any]) -> None:
    """kill -9; no process and no reservation of the old controller is left when the new workers start."""
    outcome = runs["controller"]
    (killed_at,) = outcome["killed_at"]
    assert outcome["first_step"] >= 100
    assert outcome["first_step"] % 100 == 0
    assert outcome["first_step"] <= killed_at + 10
    assert (outcome["workers"], outcome["most_at_once"], outcome["groups_left"]) == (2, 1, [])
    for kind in ("metrics", "lineage"):
        assert table(directory, "controller", kind).equals(table(directory, "straight", kind))
    weights = [
        load_checkpoint(latest_checkpoint(str(directory / name / "checkpoints")) or "").weights
        for name in ("controller", "straight")
    ]
    assert all(tensor.equal(weights[1][name]) for name, tensor in weights[0].items())


@pytest.mark.chaos("training controllers killed")
def test_failures_are_counted_over_all_controllers_of_a_run(tmp_path: Path, counts: Counts) -> None:
    """A worker's death under the first one and that one's own are two, where one is allowed."""
    outcomes = in_process("budget_run", tmp_path)
    said = "failures of this run, over all of its controllers: {}, and --max-failures is {}; run the same line again "
    said += "to resume from the newest checkpoint, with --max-failures {} or more to allow more of them (-1: no limit)"
    assert outcomes["controller"] == {
        "kills": 2,
        "message": f"Ray Train's controller died; {said.format(2, 1, 2)}",
    }
    assert outcomes["worker"] == {"kills": 1, "message": f"a training worker died; {said.format(1, 0, 1)}"}
    counts.add(runs=1, kills=3)


def test_a_new_controller_goes_on_counting_failures_and_preemptions_apart(runs: dict[str, Any]) -> None:
    first, second, third = (runs["counted"][place : place + 3] for place in (0, 3, 6))
    assert first == ["RETRY", "RETRY", ""]
    assert second[:2] == ["RETRY", "RAISE"]
    assert re.match(r"preemptions of this run, .*: 2, and --max-preemptions is 1;", second[2])
    assert third[:2] == ["RAISE", "RAISE"]
    assert re.match(r"failures of this run, .*: 3, and --max-failures is 2;", third[2])


def test_a_run_that_gets_sigterm_ends_behind_a_checkpoint_of_its_step(directory: Path, runs: dict[str, Any]) -> None:
    (checkpoint,) = list_checkpoints(str(directory / "stopped" / "checkpoints"))
    step = int(checkpoint[-8:])
    assert runs["stopped"]["asked"][0] < step < 50_000
    assert f"asked to stop after step {step}; its checkpoint is committed" in runs["stopped"]["message"]
    assert runs["stopped"]["handler_back"]
    assert table(directory, "stopped", "metrics")["step"].to_pylist() == list(range(1, step + 1))


def test_an_error_of_the_worker_arrives_with_its_own_message(runs: dict[str, Any]) -> None:
    assert "belongs to another run: order_seed was 0 and is 5" in runs["refused"]


@pytest.mark.chaos("training nodes drained")
def test_a_drained_node_costs_no_step(tmp_path: Path, counts: Counts) -> None:
    """The node of one of two workers. With no failure allowed: its loss is a preemption, which is counted apart."""
    outcome = in_process("drain_run", tmp_path)
    assert outcome["accepted"]
    assert outcome["workers"] == 2
    assert outcome["checkpoints"][-1] == f"{outcome['first_step']:08d}", (
        "before it at most a regular one, on a fast machine"
    )
    assert outcome["saved_before_deadline"] > 0, "seconds that were left of the notice"
    assert outcome["last_step"] - outcome["first_step"] <= 1
    assert outcome["each_once"]
    for kind in ("metrics", "lineage"):
        assert table(tmp_path, "drained", kind).equals(table(tmp_path, "straight", kind))
    counts.add(
        kills=1, compared=len(losses(tmp_path, "drained")), lost=max(0, outcome["last_step"] - outcome["first_step"])
    )


def test_workers_stop_together_when_the_word_has_reached_one_of_them() -> None:
    """The others would wait in a meeting that this one does not come to any more."""
    assert run_workers(Setup(workers=2, device="cpu"), agreement.stop_that_reached_one) == [True, True]


def test_a_worker_whose_peer_went_with_its_machine_leaves_the_failure_to_ray() -> None:
    """Raised at once it would count as a failure of this worker, before Ray knows of the machine."""
    assert run_workers(Setup(workers=2, device="cpu"), agreement.peer_that_is_gone) >= 1
