import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from data import storage
from pipelines.engine import lease
from pipelines.engine.lease import Lease, has_ended, hold_lease, holds, seems_held
from tests.programs.places import REPOSITORY

HOLDER = """
import sys, time
from pipelines.engine import lease
from pipelines.engine.lease import hold_lease, holds
lease.HEARTBEAT_SECONDS = 0.05
with hold_lease(sys.argv[1]) as lease:
    print("held", flush=True)
    while sys.stdin.readline():
        print("mine" if holds(lease) else "lost", flush=True)
"""


def holder(directory: Path) -> "subprocess.Popen[str]":
    """Another process that holds the lease; for each line it is sent it says whether it still does."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(directory)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()


def record(**changes: Any) -> dict[str, Any]:
    """A record of this very process, alive, with some of it changed."""
    return {**json.loads(lease._record("token")), **changes}


def test_a_lease_is_given_back(tmp_path: Path) -> None:
    with hold_lease(str(tmp_path)) as mine:
        assert holds(mine)
    assert not holds(mine)
    assert storage.list_files(str(tmp_path)) == []
    with hold_lease(str(tmp_path)) as again:
        assert holds(again)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heartbeats and looks many times a second; a lease is stale after a second."""
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(lease, "STALE_SECONDS", 1)
    monkeypatch.setattr(lease, "LOOK_SECONDS", 0.05)


@pytest.mark.usefixtures("quick")
def test_a_lease_that_is_held_is_refused_with_its_holder(tmp_path: Path) -> None:
    with hold_lease(str(tmp_path)):
        message = f"process {os.getpid()} on {socket.gethostname()}.*wait for that process, or end it"
        with pytest.raises(ValueError, match=message), hold_lease(str(tmp_path)):
            pass
    with hold_lease(str(tmp_path)):
        pass


def test_a_lease_is_given_back_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), hold_lease(str(tmp_path)):
        raise KeyError
    assert storage.list_files(str(tmp_path)) == []


@pytest.mark.usefixtures("quick")
def test_of_several_that_acquire_at_once_one_wins(tmp_path: Path) -> None:
    barrier = Barrier(6)
    with ExitStack() as held:

        def acquire(_: int) -> Lease | None:
            barrier.wait()
            try:
                return held.enter_context(hold_lease(str(tmp_path)))
            except ValueError:
                return None

        with ThreadPoolExecutor(6) as pool:
            won = [acquired for acquired in pool.map(acquire, range(6)) if acquired is not None]
        assert len(won) == 1
        assert holds(won[0])


@pytest.mark.usefixtures("quick")
def test_of_several_that_take_over_at_once_one_wins(tmp_path: Path) -> None:
    dead = record(pid=2**22 + 1)
    storage.write_bytes(str(tmp_path / "_LEASE.000001.json"), json.dumps(dead).encode())
    test_of_several_that_acquire_at_once_one_wins(tmp_path)


def test_a_dead_process_on_this_machine_is_superseded_at_once(tmp_path: Path) -> None:
    process = holder(tmp_path)
    end(process)
    with hold_lease(str(tmp_path)) as mine:
        assert holds(mine)


@pytest.mark.usefixtures("quick")
def test_a_living_process_is_not_superseded(tmp_path: Path) -> None:
    process = holder(tmp_path)
    with pytest.raises(ValueError, match=f"process {process.pid} "), hold_lease(str(tmp_path)):
        pass
    end(process)


@pytest.mark.usefixtures("quick")
def test_a_stopped_holder_is_superseded_and_learns_it_when_it_wakes(tmp_path: Path) -> None:
    process = holder(tmp_path)
    assert process.stdin is not None
    assert process.stdout is not None
    process.send_signal(signal.SIGSTOP)
    with hold_lease(str(tmp_path)) as mine:
        process.send_signal(signal.SIGCONT)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "lost\n"
        end(process)
        assert holds(mine)
    with hold_lease(str(tmp_path)):
        pass


def test_a_holder_that_was_superseded_gives_nothing_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "STALE_SECONDS", 0)
    with hold_lease(str(tmp_path)) as mine:
        other = lease._acquire(str(tmp_path))
        assert not holds(mine)
        assert not mine.changes.held()
    assert holds(other)


def test_a_heartbeat_is_renewed_while_the_lease_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.02)
    with hold_lease(str(tmp_path)) as mine:
        before = json.loads(storage.read_bytes(mine.uri))["heartbeat"]
        deadline = time.monotonic() + 5
        while json.loads(storage.read_bytes(mine.uri))["heartbeat"] == before:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert holds(mine)


@pytest.mark.parametrize(
    ("changes", "ended"),
    [
        ({}, False),
        ({"process_start": "1"}, True),
        ({"pid": 2**22 + 1}, True),
        ({"pid": 2**22 + 1, "host": "elsewhere"}, False),
        ({"pid": 2**22 + 1, "boot": "another machine of this name"}, False),
    ],
    ids=["alive", "pid used again", "dead here", "another host", "same name"],
)
def test_a_holder_has_ended_if_its_process_of_this_machine_has(changes: dict[str, Any], ended: bool) -> None:
    assert has_ended(record(**changes)) == ended


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("hours", [-30, 0, 30])
@pytest.mark.parametrize("here", [-5, 5])
def test_no_clock_decides_who_holds_a_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: float, here: float
) -> None:
    """A heartbeat of any time is stale if it stays the same for the watcher's seconds, and holds if it changes."""
    uri = str(tmp_path / "_LEASE.000001.json")
    real = time.time
    monkeypatch.setattr(lease.time, "time", lambda: real() + here * 3600)
    silent = record(host="elsewhere", heartbeat=real() + hours * 3600)
    storage.write_bytes(uri, json.dumps(silent).encode())
    said: list[str] = []
    began = time.monotonic()
    with hold_lease(str(tmp_path), said.append) as mine:
        assert holds(mine)
    assert 1 <= time.monotonic() - began < 10
    assert "watching up to 1 s" in said[0]

    storage.remove_tree(str(tmp_path))
    looks = 0

    def read(uri: str) -> bytes:
        nonlocal looks
        looks += 1
        return json.dumps({**silent, "beat": looks}).encode()

    storage.write_bytes(uri, json.dumps(silent).encode())
    monkeypatch.setattr(lease, "_read", read)
    with pytest.raises(ValueError, match="on elsewhere, which renewed its heartbeat"), hold_lease(str(tmp_path)):
        pass


def test_the_watch_takes_sixty_seconds_of_our_own_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 5.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    storage.write_bytes(str(tmp_path / "_LEASE.000001.json"), json.dumps(record(host="elsewhere")).encode())
    with monkeypatch.context() as patch:
        patch.setattr(lease.time, "monotonic", lambda: now)
        patch.setattr(lease.time, "sleep", sleep)
        lease._acquire(str(tmp_path))
    assert now == 65


@pytest.mark.parametrize(
    "data",
    [b"\xff\xfe{}", b"[]", b"{}", b'{"token": 1}', b'{"pid": 1, "host": "x"}', b"", b"[" * 100_000],
    ids=["not UTF-8", "list", "empty", "number", "other keys", "no bytes", "deep"],
)
def test_a_damaged_lease_holds_nobody_and_is_named(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "_LEASE.000001.json"
    path.write_bytes(data)
    said: list[str] = []
    with hold_lease(str(tmp_path), said.append) as mine:
        assert holds(mine)
        assert mine.uri.endswith("_LEASE.000002.json")
    assert said == [f"{path} is damaged: it holds nobody, so this driver takes over"]


def test_what_is_shown_of_a_lease_is_a_glance_at_its_time() -> None:
    now = time.time()
    assert seems_held(record(), now)
    assert not seems_held(record(host="elsewhere", heartbeat=now - 61), now)
    assert not seems_held(record(host="elsewhere", heartbeat=now + 3600), now)
    assert not seems_held(record(superseded=True), now)


def test_to_take_a_lease_lists_one_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """Below are the shards and receipts of the run: thousands of names, at each restart."""
    directory = f"memory://{uuid.uuid4().hex}/run"
    storage.write_bytes(f"{directory}/text/00000.parquet", b"rows")
    fs, path = storage.filesystem(directory)
    asked: list[str] = []
    one_level = fs.ls
    monkeypatch.setattr(fs, "ls", lambda name, **options: [asked.append(name), one_level(name, **options)][1])
    monkeypatch.setattr(fs, "find", lambda *_, **__: pytest.fail("everything below is listed"))
    monkeypatch.setattr(fs, "walk", lambda *_, **__: pytest.fail("everything below is walked"))
    mine = lease._acquire(directory)
    assert holds(mine)
    assert asked == [path]


def test_old_numbers_never_rule_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A take-over leaves the old file, emptied of its token: the next holder counts on from the newest."""
    monkeypatch.setattr(lease, "STALE_SECONDS", 0)
    with hold_lease(str(tmp_path)) as first:
        with hold_lease(str(tmp_path)) as second:
            assert second.uri.endswith("_LEASE.000002.json")
            assert not holds(first)
        with hold_lease(str(tmp_path)) as third:
            assert third.uri.endswith("_LEASE.000002.json")
            assert not holds(first)
            assert not holds(second)
