"""A driver that slept past its lease touches nothing of its successor's, wherever it slept, and says that it lost."""

import os
import random
import signal
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from data import storage
from data.changes import LeaseLost
from pipelines.engine import lease
from tests.programs.places import REPOSITORY
from tests.programs.sleepers import (
    Overlap,
    Sleeper,
    check_listed,
    contents,
    run_driver,
    task_of,
    watched_bucket,
    watched_disk,
)

Watched = Callable[[Callable[[], None]], AbstractContextManager[None]]
STRIDE, REMOTE_STRIDE = 37, 131
"""places of a run between two at which a driver sleeps in `make test`; `make chaos` has them all"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease that its holder does not renew is stale at once, and no heartbeat comes between."""
    monkeypatch.setattr(lease, "STALE_SECONDS", 0)


def sleep_at(root: str, at: int, watched: Watched) -> int:
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
    with watched(sleeper.place):
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
    check_listed(directory)
    return sleeper.seen


def test_a_driver_that_sleeps_at_a_call_touches_nothing_of_its_successor(tmp_path: Path) -> None:
    check_places(tmp_path, STRIDE)


@pytest.mark.chaos
def test_a_driver_that_sleeps_at_any_call_touches_nothing_of_its_successor(tmp_path: Path) -> None:
    check_places(tmp_path, 1)


def check_places(tmp_path: Path, stride: int) -> None:
    at = 1
    while sleep_at(str(tmp_path / str(at)), at, watched_disk):
        at += stride
    assert at > 100


def wake_in(root: str, at: int, wake_at: int, watched: Watched) -> None:
    """Lets a driver sleep at a place, and wake while its successor is at a place of its own."""
    overlap = Overlap(root, at, wake_at)
    with watched(overlap.place):
        overlap.run()
    directory = task_of(root, "").directory
    check_listed(directory)
    if storage.read_bytes(f"{directory}/own/00000") == b"sleeper":
        assert overlap.error is None, (at, wake_at)
    else:
        lost = isinstance(overlap.error, LeaseLost)
        assert lost or (overlap.error is None and not overlap.worked), (at, wake_at)


def check_overlaps(root: str, count: int, seed: int, watched: Watched, places: int) -> None:
    draw = random.Random(seed)
    for number in range(count):
        wake_in(f"{root}/{number}", draw.randint(20, places), draw.randint(1, places), watched)


def test_a_driver_that_wakes_while_its_successor_works_touches_nothing(tmp_path: Path) -> None:
    check_overlaps(str(tmp_path), 8, 0, watched_disk, 300)


@pytest.mark.chaos
def test_drivers_that_wake_at_any_place_of_their_successors_touch_nothing(tmp_path: Path) -> None:
    check_overlaps(str(tmp_path), 500, 1, watched_disk, 360)


@pytest.fixture
def bucket(gcs_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """URI of a new bucket."""
    name = f"sleepers-{uuid.uuid4().hex[:12]}"
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_server)
    ask = urllib.request.Request(
        f"{gcs_server}/storage/v1/b?project=test",
        data=b'{"name": "%s"}' % name.encode(),
        headers={"Content-Type": "application/json"},
    )
    urllib.request.urlopen(ask).close()
    return f"gs://{name}"


@pytest.mark.slow
def test_a_driver_that_sleeps_at_a_request_touches_nothing_of_its_successor(bucket: str) -> None:
    check_requests(bucket, REMOTE_STRIDE)


@pytest.mark.chaos
def test_a_driver_that_sleeps_at_any_request_touches_nothing_of_its_successor(bucket: str) -> None:
    check_requests(bucket, 3)


def check_requests(bucket: str, stride: int) -> None:
    at = 1
    while sleep_at(f"{bucket}/runs/{stride}/{at}", at, watched_bucket):
        at += stride
    assert at > 300


@pytest.mark.slow
def test_a_stopped_process_loses_its_lease(tmp_path: Path) -> None:
    check_stopped(tmp_path, 90)


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(10))
def test_a_process_stopped_at_any_place_loses_its_lease(tmp_path: Path, seed: int) -> None:
    check_stopped(tmp_path, random.Random(seed).randint(30, 320))


def check_stopped(tmp_path: Path, at: int) -> None:
    """SIGSTOP at a place of a run, a successor in another process, SIGCONT."""
    words = [sys.executable, "-m", "tests.programs.sleepers", str(tmp_path)]
    first = subprocess.Popen([*words, "sleeper", str(at)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
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


@pytest.mark.slow
def test_a_driver_that_wakes_between_requests_of_its_successor_touches_nothing(bucket: str) -> None:
    check_overlaps(f"{bucket}/runs/overlaps", 2, 0, watched_bucket, 400)


@pytest.mark.chaos
def test_drivers_that_wake_between_any_requests_of_their_successors_touch_nothing(bucket: str) -> None:
    check_overlaps(f"{bucket}/runs/overlaps", 100, 1, watched_bucket, 420)
