"""Drivers that sleep past their lease before or after any call to their storage, while a successor does the whole run.

    python -m tests.programs.sleepers ROOT NAME [PLACE]: the run of one driver, in a process of its own. It stops itself
    (SIGSTOP) at that place, and prints its error.

The run has all that a leased stage does to its directory: shards with receipts, checkpoints with retention, an interim
checkpoint, a file of the driver's own. The bytes depend on the driver's name, so a file of the wrong driver shows.
"""

import hashlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from data import shards, storage
from data.manifest import Dataset, Manifest, read_manifest
from data.storage.gcs import Gcs
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
GCS_CALLS = ("pipe_file", "cp_file", "rm_file", "rm", "call", "info", "cat_file", "find", "ls", "exists")
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
def watched_disk(place: Callable[[], None]) -> Iterator[None]:
    """Calls `place` just before and just after each call that changes the disk."""
    with pytest.MonkeyPatch.context() as patch:
        for name in LOCAL_CALLS:
            patch.setattr(os, name, between(getattr(os, name), place))
        yield


@contextmanager
def watched_bucket(place: Callable[[], None]) -> Iterator[None]:
    """Calls `place` just before and just after each call of gcsfs."""

    class Watched:
        def __init__(self, fs: Any) -> None:
            self.fs = fs

        def __getattr__(self, name: str) -> Any:
            plain = getattr(self.fs, name)
            return between(plain, place) if name in GCS_CALLS else plain

    filesystem = Gcs.filesystem
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Gcs, "filesystem", lambda store, uri: (Watched((opened := filesystem(store, uri))[0]), opened[1]))
        yield


def between(plain: Callable[..., Any], place: Callable[[], None]) -> Callable[..., Any]:
    """The call with `place` before and after it."""

    def call(*arguments: Any, **named: Any) -> Any:
        place()
        made = plain(*arguments, **named)
        place()
        return made

    return call


@dataclass
class Sleeper:
    """Counts the places of one thread. At the place `at`, it does `meanwhile`, in which no place is counted."""

    at: int
    meanwhile: Callable[[], object]
    seen: int = 0
    awake: bool = True
    thread: int = field(default_factory=threading.get_ident)

    def place(self) -> None:
        if not self.awake or threading.get_ident() != self.thread:
            return
        self.seen += 1
        if self.seen == self.at:
            self.awake = False
            self.meanwhile()
            self.awake = True


class Overlap:
    """A sleeper in a thread of its own, asleep at its place until a successor in this thread is at a place of its own.

    There the sleeper wakes and runs to its end, before the successor goes on.
    """

    def __init__(self, root: str, at: int, wake_at: int) -> None:
        self.root = root
        self.said: list[str] = []
        self.asleep, self.wake = threading.Event(), threading.Event()
        self.sleeper: Sleeper | None = None
        self.thread = threading.Thread(target=self._sleep, args=(at,))
        self.successor = Sleeper(wake_at, self._wake)
        self.worked = False
        self.error: BaseException | None = None

    def _sleep(self, at: int) -> None:
        def fall_asleep() -> None:
            self.worked = any(line.endswith(": running") for line in self.said)
            self.asleep.set()
            self.wake.wait()

        self.sleeper = Sleeper(at, fall_asleep)
        try:
            run_driver(self.root, "sleeper", self.said.append)
        except BaseException as error:  # judged by the test
            self.error = error
        self.asleep.set()

    def _wake(self) -> None:
        self.wake.set()
        self.thread.join()

    def place(self) -> None:
        if self.sleeper is not None:
            self.sleeper.place()
        self.successor.place()

    def run(self) -> None:
        """Runs both drivers; raises what the successor raises."""
        self.successor.awake = False
        self.thread.start()
        self.asleep.wait()
        self.successor.awake = True
        try:
            run_driver(self.root, "successor")
        finally:
            self._wake()


def check_listed(directory: str) -> None:
    """Every file that the manifest lists has its bytes, and there is no other file in the datasets' folders."""
    manifest = read_manifest(directory)
    assert manifest is not None
    listed = {shard.name: shard.sha256 for dataset in manifest.datasets.values() for shard in dataset.shards}
    files = {
        name: hashlib.sha256(data).hexdigest() for name, data in contents(directory).items() if not name.startswith("_")
    }
    assert files == listed


def contents(directory: str) -> dict[str, bytes]:
    """All files of a run."""
    return {name: storage.read_bytes(storage.join(directory, name)) for name, _ in storage.list_files(directory)}


def main(root: str, driver: str, at: str = "0") -> None:
    from data.changes import LeaseLost
    from pipelines.engine import lease

    lease.HEARTBEAT_SECONDS, lease.STALE_SECONDS, lease.LOOK_SECONDS = 0.2, 1, 0.1  # type: ignore[assignment]
    sleeper = Sleeper(int(at), lambda: os.kill(os.getpid(), signal.SIGSTOP))
    with watched_disk(sleeper.place):
        try:
            run_driver(str(Path(root)), driver)
        except LeaseLost as error:
            print(error)
            sys.exit(error.exit_code)
    print(f"done, {sleeper.seen} places")


if __name__ == "__main__":
    main(*sys.argv[1:])
