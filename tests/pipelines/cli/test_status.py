"""What `status` says of a ROOT, locally and on gs://: from files alone, without Ray."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data import storage
from data.manifest import Manifest
from infra.ray_session import RaySession
from pipelines.__main__ import main
from pipelines.cli.status import run_state, status_lines
from pipelines.engine.clean_up import clean_up
from pipelines.engine.lease import hold_lease
from pipelines.engine.resources import Resources
from pipelines.engine.runner import CONFIG_NAME, FAILED_NAME, run_task
from pipelines.engine.shard_map import PHASES, RECEIPTS
from pipelines.engine.stage import load_stage
from pipelines.engine.task import Task, resolve_inputs
from pipelines.recipes import registry as recipes
from pipelines.recipes.recipe import save_recipe, tasks_of
from pipelines.stages import collect_text
from tests.pipelines.cli.test_plan import finish

HEX = "0123456789abcdef"


def write(directory: str, name: str, document: object = None) -> None:
    storage.write_bytes(storage.join(directory, name), json.dumps(document or {}).encode())


@pytest.fixture(params=["local", "gs"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "local":
        return str(tmp_path / "runs")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", request.getfixturevalue("gcs_server"))
    fs, _ = storage.filesystem("gs://status-test/x")
    if not fs.exists("status-test"):
        fs.mkdir("status-test")
    return f"gs://status-test/{tmp_path.name}"


def data_run(root: str, receipts: int, tasks: int = 8) -> str:
    directory = storage.join(root, "filter_text", HEX)
    write(directory, CONFIG_NAME, {"config": {}})
    write(directory, f"{PHASES}/filter-12345678.json", {"tasks": tasks, "done_before": 0})
    for number in range(receipts):
        write(directory, f"{RECEIPTS}/filter-12345678/{number:05d}.json")
    return directory


def test_a_data_stage_is_as_far_as_its_receipts(root: str) -> None:
    data_run(root, receipts=3)
    running = run_state(root, "filter_text", HEX, time.time() + 1)
    assert (running.state, running.detail) == ("running", "filter: 3 of 8 shards")
    silent = run_state(root, "filter_text", HEX, time.time() + 3600)
    assert silent.state == "stopped"
    assert "filter: 3 of 8 shards; last sign of life 60 min" in silent.detail


def test_time_to_go_follows_from_the_shards_of_this_attempt(tmp_path: Path) -> None:
    directory = Path(data_run(str(tmp_path), receipts=4))
    now = time.time()
    os.utime(directory / PHASES / "filter-12345678.json", (now - 80, now - 80))
    for number in range(4):
        when = now - 60 + 20 * number  # the last one now
        os.utime(directory / RECEIPTS / "filter-12345678" / f"{number:05d}.json", (when, when))
    state = run_state(str(tmp_path), "filter_text", HEX, now)
    assert state.remaining_seconds == pytest.approx(80, abs=1), "4 shards in 80 s, 4 to go"


def test_a_training_run_is_as_far_as_its_newest_commit(tmp_path: Path) -> None:
    directory = storage.join(str(tmp_path), "train_model", HEX)
    write(directory, CONFIG_NAME, {"config": {"steps": 280}})
    now = time.time()
    os.utime(Path(directory) / CONFIG_NAME, (now - 200, now - 200))
    for step in (100, 200):
        write(directory, f"checkpoints/step-{step:08d}/COMMIT")
        os.utime(Path(directory) / f"checkpoints/step-{step:08d}/COMMIT", (now - 200 + step, now - 200 + step))
    write(directory, "checkpoints/step-00000250/model.safetensors")  # not committed
    with hold_lease(directory):
        state = run_state(str(tmp_path), "train_model", HEX, now)
    assert (state.state, state.detail) == ("running", "step 200 of 280 kept")
    assert state.remaining_seconds == pytest.approx(80, abs=1), "a step a second"
    stopped = run_state(str(tmp_path), "train_model", HEX, now + 3600)
    assert stopped.state == "stopped"
    assert "step 200 of 280 kept; last sign of life" in stopped.detail


def test_a_recipe_shows_its_steps_and_what_waits(tmp_path: Path) -> None:
    recipe, root = recipes.load("smoke"), str(tmp_path)
    tasks = tasks_of(recipe, root)
    finish(tasks["collect"])
    save_recipe(recipe, tasks, root)
    lines = list(status_lines(root))
    assert lines[0] == "smoke: 1 of 14 steps done"
    assert lines[1].split()[:2] == ["collect", "done"]
    assert [line.split()[1] for line in lines[2:]] == ["waiting"] * 13


def test_a_failure_is_told_until_the_next_attempt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("text")
    root, loaded, config = str(tmp_path / "runs"), load_stage("collect_text"), collect_text.Config()
    inputs = resolve_inputs(loaded, config, {"input": [str(tmp_path / "in")]}, root)

    def broken(context: object, config: object) -> Any:
        raise RuntimeError("a worker failed:\nTraceback\nKeyError: 'text'")

    task = Task(stage=replace(loaded, run=broken), config=config, inputs=inputs, root=root)
    with pytest.raises(RuntimeError):
        run_task(task, Resources(), RaySession(), lambda _: None)
    assert main(["status", "--root", root]) == 0
    assert "failed  began; RuntimeError: KeyError: 'text'" in capsys.readouterr().out

    def interrupted(context: object, config: object) -> Any:
        raise KeyboardInterrupt

    again = replace(task, stage=replace(loaded, run=interrupted))
    with pytest.raises(KeyboardInterrupt):
        run_task(again, Resources(), RaySession(), lambda _: None)
    assert not storage.exists(storage.join(task.directory, FAILED_NAME))
    assert run_state(root, "collect_text", task.fingerprint, time.time()).state == "running"


def test_what_phases_leave_goes_with_the_manifest(tmp_path: Path) -> None:
    directory = data_run(str(tmp_path), receipts=1)
    clean_up(directory, Manifest(stage="stage", version=1, fingerprint="0" * 16, config={}, inputs={}, datasets={}))
    assert [name for name, _ in storage.list_level(directory)] == [CONFIG_NAME]


def test_a_level_is_listed_and_nothing_below(root: str) -> None:
    write(root, "a.json")
    write(root, "b/c/d.json")
    before = time.time() - 60
    times = dict(storage.list_level(root))
    assert set(times) == {"a.json", "b"}
    assert before < times["a.json"] < time.time() + 60
    assert storage.list_level(storage.join(root, "none")) == []


def test_bad_words_and_an_empty_root(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "demo"]) == 2
    assert "got 'demo' after status; give nothing, or --root ROOT" in capsys.readouterr().err
    assert main(["status", "--root", str(tmp_path)]) == 0
    assert f"no runs under {tmp_path}" in capsys.readouterr().out


@pytest.mark.parametrize("line", ["status", "list --runs"])
def test_a_root_is_taken_with_a_space_or_an_equals_sign(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*line.split(), f"--root={tmp_path}"]) == 0
    assert f"no runs under {tmp_path}" in capsys.readouterr().out
    assert main([*line.split(), "--root"]) == 2
    assert capsys.readouterr().err == "error: got --root without a value; give a value after it\n"
    assert main([*line.split(), "--root="]) == 2
    assert capsys.readouterr().err == "error: got an empty --root; give a directory or gs://bucket/path\n"


@pytest.mark.parametrize("line", ["status", "list --runs", "plan smoke", "run smoke", "run collect_text --input ."])
def test_a_root_in_memory_is_refused(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*line.split(), "--root", "memory://runs"]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error == (
        "error: got --root 'memory://runs', which only this process sees and which ends with it; give a directory or "
        "gs://bucket/path"
    )


@pytest.mark.parametrize(
    "line", ["status", "list --runs", "plan smoke", "run smoke", "account smoke", "run collect_text --input README.md"]
)
def test_a_bucket_that_does_not_exist_is_told(
    line: str, gcs_server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_server)
    assert main([*line.split(), "--root", "gs://typo/runs"]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: there is no bucket 'typo'; check its name in gs://typo/runs, or create it: ")
