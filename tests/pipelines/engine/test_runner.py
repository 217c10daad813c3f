import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data import shards, storage
from data.manifest import Dataset, Manifest, read_manifest
from infra.ray_session import RaySession
from pipelines.cli.arguments import parse_stage
from pipelines.engine.resources import Resources
from pipelines.engine.runner import read_run, run_task
from pipelines.engine.stage import Context, Outcome, load_stage
from pipelines.engine.task import Task, future_input, resolve_inputs
from pipelines.stages import collect_text, filter_text
from tests.programs import here
from tests.programs.places import REPOSITORY

SHARDS = 4
StartDriver = Callable[..., "subprocess.Popen[str]"]


def no_ray() -> Any:
    """A session that nobody may start."""

    class NoSession:
        def start(self) -> None:
            raise AssertionError("Ray was started")

    return NoSession()


def task_of(name: str, config: Any, root: Path, **inputs: str) -> Task:
    stage = load_stage(name)
    given = {key: [text] for key, text in inputs.items()}
    return Task(stage=stage, config=config, inputs=resolve_inputs(stage, config, given, str(root)), root=str(root))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(SHARDS):
        records = [{"text": f"document {number}.{line}" if line % 5 else " "} for line in range(50)]
        (folder / f"{number}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def with_run(task: Task, run: Callable[[Context, Any], Outcome]) -> Task:
    return replace(task, stage=replace(task.stage, run=run))


def outcome(context: Context, content: bytes) -> Outcome:
    made = {
        name: Dataset(shards=(shards.write_file(context.directory, name, content),)) for name in ("text", "rejects")
    }
    return Outcome(datasets=made, log={"speed": 3})


def bytes_of(directory: str) -> dict[str, bytes]:
    """Everything a reader may see."""
    manifest = read_manifest(directory)
    assert manifest is not None
    names = [shard.name for dataset in manifest.datasets.values() for shard in dataset.shards]
    return {name: storage.read_bytes(f"{directory}/{name}") for name in [*names, "_MANIFEST.json"]}


def test_a_run_leaves_a_manifest_a_log_and_a_config_that_replays(corpus: Path, tmp_path: Path) -> None:
    task = task_of("collect_text", collect_text.Config(source="wiki"), tmp_path / "runs", input=str(corpus))
    manifest = run_task(
        with_run(task, lambda context, _: outcome(context, b"x")), Resources(), no_ray(), lambda _: None
    )
    assert read_manifest(task.directory) == manifest
    assert manifest.config["source"] == "wiki"
    assert b"seconds" not in manifest.to_json()
    log = read_run(task.directory)
    assert log["log"] == {"speed": 3}
    assert {"seconds", "host", "packages", "resources", "code_sha256"} <= set(log)

    command = parse_stage(task.stage, ["--config", f"{task.directory}/_CONFIG.json", "--root", str(tmp_path / "runs")])
    again = Task(
        stage=task.stage,
        config=command.config,
        inputs=resolve_inputs(task.stage, command.config, command.inputs, command.root),
        root=command.root,
    )
    assert again.fingerprint == task.fingerprint


def test_a_finished_run_is_not_run_again_and_starts_nothing(corpus: Path, tmp_path: Path) -> None:
    task = task_of("collect_text", collect_text.Config(), tmp_path / "runs", input=str(corpus))
    said: list[str] = []
    first = run_task(with_run(task, lambda context, _: outcome(context, b"x")), Resources(), no_ray(), said.append)

    def never(context: Context, config: Any) -> Outcome:
        raise AssertionError

    left = storage.join(task.directory, "_receipts/filter/00000.json")
    storage.write_bytes(left, b"of a driver that was killed after its manifest")
    assert run_task(with_run(task, never), Resources(workers=3), no_ray(), said.append) == first
    assert said[-1] == f"collect_text/{task.fingerprint}: done before, nothing to do"
    assert not storage.exists(left)


def test_an_error_leaves_no_manifest_and_comes_out(corpus: Path, tmp_path: Path) -> None:
    task = task_of("collect_text", collect_text.Config(), tmp_path / "runs", input=str(corpus))

    def fail(context: Context, config: Any) -> Outcome:
        raise ZeroDivisionError("as it was")

    with pytest.raises(ZeroDivisionError, match="as it was"):
        run_task(with_run(task, fail), Resources(), no_ray(), lambda _: None)
    assert task.manifest() is None


def test_a_driver_that_fails_after_another_has_finished_uses_its_result(corpus: Path, tmp_path: Path) -> None:
    task = task_of("collect_text", collect_text.Config(), tmp_path / "runs", input=str(corpus))
    said: list[str] = []

    def overtaken(context: Context, config: Any) -> Outcome:
        run_task(with_run(task, lambda context, _: outcome(context, b"x")), Resources(), no_ray(), lambda _: None)
        storage.write_bytes(f"{context.directory}/_staging/{context.attempt}/text/00000.parquet", b"half")
        raise FileNotFoundError("its receipts were cleaned up")

    manifest = run_task(with_run(task, overtaken), Resources(), no_ray(), said.append)
    assert manifest == read_manifest(task.directory)
    assert "another driver finished it first" in said[-1]
    names = {name for name, _ in storage.list_files(task.directory)}
    assert names == {"text", "rejects", "_CONFIG.json", "_MANIFEST.json", "_RUN.json"}


def test_two_results_for_one_fingerprint_are_an_error(corpus: Path, tmp_path: Path) -> None:
    task = task_of("collect_text", collect_text.Config(), tmp_path / "runs", input=str(corpus))

    def other(context: Context, config: Any) -> Outcome:
        run_task(with_run(task, lambda context, _: outcome(context, b"x")), Resources(), no_ray(), lambda _: None)
        return outcome(context, b"other")

    with pytest.raises(RuntimeError, match="not deterministic"):
        run_task(with_run(task, other), Resources(), no_ray(), lambda _: None)


def test_an_input_that_is_not_finished_is_refused_before_anything_is_written(corpus: Path, tmp_path: Path) -> None:
    collect = task_of("collect_text", collect_text.Config(), tmp_path / "runs", input=str(corpus))
    task = Task(
        stage=load_stage("filter_text"),
        config=filter_text.Config(),
        inputs={"text": (future_input(collect, "text"),)},
        root=str(tmp_path / "runs"),
    )
    with pytest.raises(ValueError, match="that run has not finished"):
        run_task(task, Resources(), no_ray(), lambda _: None)
    assert not (tmp_path / "runs").exists()


def test_a_result_made_from_other_bytes_of_its_input_is_refused(corpus: Path, tmp_path: Path) -> None:
    collect = task_of("collect_text", collect_text.Config(), tmp_path / "runs", input=str(corpus))
    run_task(with_run(collect, lambda context, _: outcome(context, b"x")), Resources(), no_ray(), lambda _: None)
    task = task_of("filter_text", filter_text.Config(), tmp_path / "runs", text=f"collect_text/{collect.fingerprint}")
    run_task(with_run(task, lambda context, _: outcome(context, b"y")), Resources(), no_ray(), lambda _: None)
    storage.remove_tree(collect.directory)
    run_task(with_run(collect, lambda context, _: outcome(context, b"z")), Resources(), no_ray(), lambda _: None)
    with pytest.raises(ValueError, match="got other bytes of collect_text"):
        replace(task, inputs={"text": (future_input(collect, "text"),)}).manifest()


@pytest.fixture
def collected(corpus: Path, tmp_path: Path, ray_session: RaySession) -> str:
    """Reference of a finished collect_text of SHARDS shards, in tmp_path/runs."""
    task = task_of("collect_text", collect_text.Config(shard_bytes=24000), tmp_path / "runs", input=str(corpus))
    manifest = run_task(task, Resources(), ray_session, lambda _: None)
    assert len(manifest.datasets["text"].shards) == SHARDS
    return f"collect_text/{task.fingerprint}"


def undisturbed(tmp_path: Path, reference: str, session: RaySession) -> dict[str, bytes]:
    """What the stage gives, run alone, in a root of its own."""
    path = str(tmp_path / "runs" / reference)
    task = task_of("filter_text", filter_text.Config(), tmp_path / "undisturbed", text=path)
    run_task(task, Resources(), session, lambda _: None)
    return bytes_of(task.directory)


@pytest.fixture
def start_driver(tmp_path: Path, collected: str) -> Iterator[StartDriver]:
    """Starts a slow driver of the stage, on a Ray of its own or on one that is named; each is ended with the test."""
    words = ["tests.programs.slow_driver", str(tmp_path / "runs"), collected, str(tmp_path / "gate")]
    drivers: list[subprocess.Popen[str]] = []

    def start(**cluster: str) -> "subprocess.Popen[str]":
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        driver = subprocess.Popen(
            [sys.executable, "-m", *words],
            cwd=REPOSITORY,
            env={**environment, **cluster, "CI": "true"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        drivers.append(driver)
        return driver

    yield start
    for driver in drivers:
        driver.kill()
        driver.wait()
        assert driver.stdout is not None
        driver.stdout.close()


def wait_for(what: Callable[[], bool], driver: "subprocess.Popen[str]", seconds: float = 500) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        assert driver.poll() in (None, -signal.SIGKILL), driver.communicate()[0]
        time.sleep(0.05)


@pytest.mark.slow
def test_of_two_drivers_at_once_both_succeed_and_one_says_who_was_first(
    tmp_path: Path, collected: str, ray_session: RaySession, start_driver: StartDriver
) -> None:
    expected = undisturbed(tmp_path, collected, ray_session)
    drivers = [start_driver() for _ in range(2)]
    wait_for(lambda: len(list(tmp_path.glob("gate.worker-*"))) == 2, drivers[0])  # both are inside their first shard
    for number in range(SHARDS):
        (tmp_path / f"gate.{number:05d}").touch()
    said = [driver.communicate(timeout=500)[0] for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], said
    assert sum("another driver" in text for text in said) == 1, said
    task = task_of("filter_text", filter_text.Config(), tmp_path / "runs", text=collected)
    assert bytes_of(task.directory) == expected
    # Both may clean up at one moment and leave a little to each other, never more than this.
    between = ("_receipts/", "_staging/", "_phases/")
    left = {name for name, _ in storage.list_files(task.directory) if not name.startswith(between)}
    assert left - set(expected) == {"_CONFIG.json", "_RUN.json"}


@pytest.mark.slow
def test_after_a_kill_only_unfinished_shards_are_made_again_and_the_bytes_are_the_same(
    tmp_path: Path, collected: str, ray_session: RaySession, start_driver: StartDriver
) -> None:
    expected = undisturbed(tmp_path, collected, ray_session)
    task = task_of("filter_text", filter_text.Config(), tmp_path / "runs", text=collected)
    for number in range(2):
        (tmp_path / f"gate.{number:05d}").touch()
    driver = start_driver(**here.address_of(ray_session))
    receipts = Path(task.directory) / "_receipts"
    wait_for(lambda: len(list(receipts.glob("filter-*/*.json"))) == 2, driver)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    workers = [int(path.name.rpartition("-")[2]) for path in tmp_path.glob("gate.worker-*")]
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), driver)  # Ray ends them with it
    assert task.manifest() is None
    finished = {path: path.stat().st_mtime_ns for path in Path(task.directory).glob("text/*.parquet")}
    assert len(finished) == 2

    run_task(task, Resources(), ray_session, lambda _: None)
    assert bytes_of(task.directory) == expected
    assert {path: path.stat().st_mtime_ns for path in finished} == finished


def test_the_manifest_of_a_stage_holds_its_counts(corpus: Path, tmp_path: Path) -> None:
    task = task_of("collect_text", collect_text.Config(), tmp_path / "runs", input=str(corpus))
    said: list[str] = []

    def run(context: Context, config: Any) -> Outcome:
        return replace(outcome(context, b"x"), dropped={"invalid_utf8": 3})

    manifest = run_task(with_run(task, run), Resources(), no_ray(), said.append)
    assert isinstance(manifest, Manifest)
    assert manifest.dropped == {"invalid_utf8": 3}
    assert said[-1].endswith(": dropped 3 invalid_utf8")
