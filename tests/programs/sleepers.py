"""Drivers that sleep past their lease before or after any call to their storage, while a successor does the whole run.

    python -m tests.programs.sleepers ROOT NAME [PLACE]: the run of one driver, in a process of its own. It stops itself
    (SIGSTOP) at that place, and prints its error.

The run has all that a leased stage does to its directory: shards with receipts, checkpoints with retention, an interim
checkpoint, a file of the driver's own. The bytes depend on the driver's name, so a file of the wrong driver shows.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from data import shards, storage
from data.manifest import Dataset, Manifest
from pipelines.checkpoints.loaded import CHECKPOINTS, committed_files
from pipelines.engine.resources import Resources
from pipelines.engine.runner import run_task
from pipelines.engine.shard_map import Part, ShardOutput, dataset_of, map_shards
from pipelines.engine.stage import Context, Outcome, load_stage
from pipelines.engine.task import Task, resolve_inputs
from pipelines.stages import cache_logits, collect_text
from tests.programs.in_process import InProcess
from training.checkpoints.retention import apply_retention
from training.checkpoints.save_load import load_newest, save_checkpoint

STEPS, INTERIM_STEP = 4, 3
LOCAL_CALLS = ("replace", "rename", "link", "unlink", "makedirs", "rmdir")
GCS_CALLS = ("pipe_file", "cp_file", "rm_file", "call", "info", "cat_file")
QUIET: Callable[[str], None] = lambda _: None  # noqa: E731


@dataclass(frozen=True)
class Work:
    """Work on a shard, whose bytes depend on the driver."""

    driver: str

    def __call__(self, number: int) -> ShardOutput:
        return ShardOutput(parts={"text": Part(table=pa.table({"driver": [f"{self.driver} {number}"]}))})


def task_of(root: str, driver: str, steps: int = STEPS) -> Task:
    """The made-up stage as a task of one fingerprint, whoever runs it."""
    stage = load_stage("collect_text")

    def run(context: Context, config: Any) -> Outcome:
        receipts = map_shards(context, "work", range(2), Work(driver))
        uri, changes = storage.join(context.directory, CHECKPOINTS), context.changes
        newest = load_newest(uri, changes=changes)
        for step in range(newest.step + 1 if newest else 1, steps + 1):
            save_checkpoint(
                uri,
                step=step,
                weights={"weight": torch.full((2,), float(step))},
                optimizer=None,
                state={"step": step, "driver": driver},
                tables={"metrics": pa.table({"step": [step]})},
                interim=step == INTERIM_STEP,
                changes=changes,
            )
            apply_retention(uri, 1, 0, changes)
        own = shards.write_file(context.directory, "own/00000", driver.encode(), write=changes.write)
        files, _ = committed_files(context.directory)
        listed = {name: Dataset(shards=shards) for name, shards in files.items() if shards}
        listed |= {"text": dataset_of(receipts, "text"), "rejects": Dataset(shards=(own,))}
        return Outcome(datasets=listed)

    stage = replace(
        stage,
        run=run,
        writes=("text", "rejects", CHECKPOINTS, "metrics"),
        declares=replace(stage.declares, lease=cache_logits.DECLARES.lease),
    )
    config = collect_text.Config()
    inputs = resolve_inputs(stage, config, {"input": [__file__]}, root)
    return Task(stage=stage, config=config, inputs=inputs, root=root)


def run_driver(root: str, driver: str, say: Callable[[str], None] = QUIET) -> Manifest:
    return run_task(task_of(root, driver), Resources(), InProcess(), say)


@contextmanager
def watched(owner: Any, calls: tuple[str, ...], place: Callable[[], None]) -> Iterator[None]:
    """Calls `place` just before and just after each of `calls` of the owner."""
    with pytest.MonkeyPatch.context() as patch:
        for name in calls:
            plain = getattr(owner, name)

            def call(*arguments: Any, plain: Callable[..., Any] = plain, **named: Any) -> Any:
                place()
                made = plain(*arguments, **named)
                place()
                return made

            patch.setattr(owner, name, call)
        yield


@dataclass
class Sleeper:
    """Counts the places to sleep at. At the place `at`, it does `meanwhile`, once, in which no place is counted."""

    at: int
    meanwhile: Callable[[], object]
    seen: int = 0
    awake: bool = True

    def place(self) -> None:
        if not self.awake:
            return
        self.seen += 1
        if self.seen == self.at:
            self.awake = False
            self.meanwhile()
            self.awake = True


def contents(directory: str) -> dict[str, bytes]:
    """All files of a run."""
    return {name: storage.read_bytes(storage.join(directory, name)) for name, _ in storage.list_files(directory)}


def main(root: str, driver: str, at: str = "0") -> None:
    from data.changes import LeaseLost
    from pipelines.engine import lease

    lease.HEARTBEAT_SECONDS, lease.STALE_SECONDS, lease.LOOK_SECONDS = 0.2, 1, 0.1  # type: ignore[assignment]
    sleeper = Sleeper(int(at), lambda: os.kill(os.getpid(), signal.SIGSTOP))
    with watched(os, LOCAL_CALLS, sleeper.place):
        try:
            run_driver(str(Path(root)), driver)
        except LeaseLost as error:
            print(error)
            sys.exit(error.exit_code)
    print(f"done, {sleeper.seen} places")


if __name__ == "__main__":
    main(*sys.argv[1:])
