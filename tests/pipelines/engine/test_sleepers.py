"""A driver that slept past its lease touches nothing of its successor's, wherever it slept, and says that it lost."""

import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data import storage
from data.changes import LeaseLost
from pipelines.engine import lease
from tests.programs import sleepers
from tests.programs.places import REPOSITORY
from tests.programs.sleepers import Sleeper, contents, run_driver, task_of, watched

STRIDE, REMOTE_STRIDE = 23, 131
"""places of a run between two at which a driver sleeps in `make test`; `make chaos` has them all"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease that its holder does not renew is stale at once, and no heartbeat comes between."""
    monkeypatch.setattr(lease, "STALE_SECONDS", 0)


def sleep_at(root: str, at: int, owner: Any, calls: tuple[str, ...]) -> int:
    """Lets a driver sleep at a place, until a successor has finished. Returns the number of places; 0: none left."""
    directory = task_of(root, "sleeper").directory
    after: dict[str, bytes] = {}
    said: list[str] = []
    worked = False

    def succeed() -> None:
        nonlocal worked
        worked = any(line.endswith(": running") for line in said)
        run_driver(root, "successor")
        after.update(contents(directory))

    sleeper = Sleeper(at, succeed)
    with watched(owner, calls, sleeper.place):
        try:
            run_driver(root, "sleeper", said.append)
            lost = ""
        except LeaseLost as error:
            lost = str(error)
    if sleeper.seen < at:
        return 0
    assert contents(directory) == after, at
    if worked and after["own/00000"] == b"successor":
        assert lost.startswith("lease lost: "), at
    assert not [name for name in after if name.startswith(("_staging", "_receipts", "_LEASE"))], at
    listed = {
        shard.name
        for dataset in task_of(root, "").manifest().datasets.values()  # type: ignore[union-attr]
        for shard in dataset.shards
    }
    assert {name for name in after if not name.startswith("_")} == listed, at
    return sleeper.seen


def test_a_driver_that_sleeps_at_a_call_touches_nothing_of_its_successor(tmp_path: Path) -> None:
    check_places(tmp_path, STRIDE)


@pytest.mark.chaos
def test_a_driver_that_sleeps_at_any_call_touches_nothing_of_its_successor(tmp_path: Path) -> None:
    check_places(tmp_path, 1)


def check_places(tmp_path: Path, stride: int) -> None:
    at = 1
    while sleep_at(str(tmp_path / str(at)), at, os, sleepers.LOCAL_CALLS):
        at += stride
    assert at > 100


@pytest.fixture
def bucket(gcs_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_server)
    ask = urllib.request.Request(
        f"{gcs_server}/storage/v1/b?project=test",
        data=b'{"name": "bucket-of-sleepers"}',
        headers={"Content-Type": "application/json"},
    )
    urllib.request.urlopen(ask).close()
    yield "gs://bucket-of-sleepers"
    storage.remove_tree("gs://bucket-of-sleepers/runs")


@pytest.mark.slow
def test_a_driver_that_sleeps_at_a_request_touches_nothing_of_its_successor(bucket: str) -> None:
    check_requests(bucket, REMOTE_STRIDE)


@pytest.mark.chaos
def test_a_driver_that_sleeps_at_any_request_touches_nothing_of_its_successor(bucket: str) -> None:
    check_requests(bucket, 3)


def check_requests(bucket: str, stride: int) -> None:
    fs, _ = storage.filesystem(bucket)
    at = 1
    while sleep_at(f"{bucket}/runs/{stride}/{at}", at, type(fs), sleepers.GCS_CALLS):
        at += stride
    assert at > 300


@pytest.mark.slow
def test_a_stopped_process_loses_its_lease(tmp_path: Path) -> None:
    """SIGSTOP in the middle of a save, a successor in another process, SIGCONT."""
    words = [sys.executable, "-m", "tests.programs.sleepers", str(tmp_path)]
    first = subprocess.Popen([*words, "sleeper", "90"], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    try:
        os.waitpid(first.pid, os.WUNTRACED)
        second = subprocess.run([*words, "successor"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert second.stdout.startswith("done"), second.stderr
        directory = task_of(str(tmp_path), "").directory
        after = contents(directory)
        first.send_signal(signal.SIGCONT)
        said, _ = first.communicate(timeout=60)
    finally:
        first.kill()
    assert first.returncode == 1
    assert said.startswith("lease lost: ")
    assert contents(directory) == after
