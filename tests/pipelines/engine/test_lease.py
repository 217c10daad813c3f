import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from data import storage
from pipelines.engine import lease
from pipelines.engine.lease import Lease, hold_lease, holds, is_stale
from tests.programs.places import REPOSITORY

HOLDER = """
import sys, time
from pipelines.engine.lease import hold_lease, holds
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
    assert list(tmp_path.iterdir()) == []
    with hold_lease(str(tmp_path)) as again:
        assert holds(again)


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
    assert list(tmp_path.iterdir()) == []


def test_of_several_that_acquire_at_once_one_wins(tmp_path: Path) -> None:
    barrier = Barrier(6)

    def acquire(_: int) -> Lease | None:
        barrier.wait()
        try:
            return lease._acquire(str(tmp_path))
        except ValueError:
            return None

    with ThreadPoolExecutor(6) as pool:
        won = [acquired for acquired in pool.map(acquire, range(6)) if acquired is not None]
    assert len(won) == 1
    assert holds(won[0])


def test_of_several_that_take_over_at_once_one_wins(tmp_path: Path) -> None:
    dead = record(heartbeat=time.time() - 61, host="elsewhere")
    storage.write_bytes(str(tmp_path / "_LEASE.000001.json"), json.dumps(dead).encode())
    test_of_several_that_acquire_at_once_one_wins(tmp_path)


def test_a_dead_process_on_this_machine_is_superseded_at_once(tmp_path: Path) -> None:
    process = holder(tmp_path)
    end(process)
    with hold_lease(str(tmp_path)) as mine:
        assert holds(mine)


def test_a_living_process_is_not_superseded(tmp_path: Path) -> None:
    process = holder(tmp_path)
    with pytest.raises(ValueError, match=f"process {process.pid} "), hold_lease(str(tmp_path)):
        pass
    end(process)


def test_a_stopped_holder_is_superseded_and_learns_it_when_it_wakes(tmp_path: Path) -> None:
    process = holder(tmp_path)
    assert process.stdin is not None
    assert process.stdout is not None
    process.send_signal(signal.SIGSTOP)
    path = tmp_path / "_LEASE.000001.json"
    with pytest.raises(ValueError, match="heartbeat"), hold_lease(str(tmp_path)):
        pass  # it may be back in a moment
    path.write_text(json.dumps({**json.loads(path.read_text()), "heartbeat": time.time() - 61}))
    with hold_lease(str(tmp_path)) as mine:
        process.send_signal(signal.SIGCONT)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "lost\n"
        end(process)
        assert holds(mine)
    with hold_lease(str(tmp_path)):
        pass


def test_a_holder_that_was_superseded_gives_nothing_back(tmp_path: Path) -> None:
    with hold_lease(str(tmp_path)) as mine:
        old = json.loads(storage.read_bytes(mine.uri))
        storage.write_bytes(mine.uri, json.dumps({**old, "heartbeat": time.time() - 61}).encode())
        other = lease._acquire(str(tmp_path))
        assert not holds(mine)
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
    ("changes", "stale"),
    [
        ({}, False),
        ({"heartbeat": 0.0}, True),
        ({"process_start": "1"}, True),
        ({"pid": 2**22 + 1}, True),
        ({"pid": 2**22 + 1, "host": "elsewhere"}, False),
        ({"pid": 2**22 + 1, "boot": "another machine of this name"}, False),
        ({"pid": 2**22 + 1, "boot": "another machine of this name", "heartbeat": 0.0}, True),
    ],
    ids=["alive", "silent", "pid used again", "dead here", "another host", "same name", "same name, silent"],
)
def test_a_lease_is_stale_when_silent_or_at_once_when_dead_here(changes: dict[str, Any], stale: bool) -> None:
    assert is_stale(record(**changes)) == stale


def test_sixty_seconds_of_silence_are_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000_000.0
    monkeypatch.setattr(lease.time, "time", lambda: now)
    assert not is_stale(record(heartbeat=now - 60))
    assert is_stale(record(heartbeat=now - 60.1))


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
    with hold_lease(directory) as mine:
        assert holds(mine)
    assert asked == [path]


def test_old_numbers_never_rule_again(tmp_path: Path) -> None:
    """A take-over leaves the old file, emptied of its token: the next holder counts on from the newest."""
    with hold_lease(str(tmp_path)) as first:
        storage.write_bytes(first.uri, json.dumps(record(heartbeat=0.0)).encode())
        with hold_lease(str(tmp_path)) as second:
            assert second.uri.endswith("_LEASE.000002.json")
            assert not holds(first)
    with hold_lease(str(tmp_path)) as third:
        assert third.uri.endswith("_LEASE.000002.json")
        assert not holds(first)
        assert not holds(second)
