"""The lease of a run: one driver at a time may write the run, and the next one takes over if it died.

Leases are numbered files, each created exclusively. The newest number is valid, and its holder renews the heartbeat in
the file. A driver that finds a lease watches it: the lease is held if its file changes, and stale if it does not change
for 60 s of the watcher's own monotonic clock. Times in the file are only shown, so a wrong clock changes nothing. If
the holder's process on this machine has ended, its lease is stale at once. A damaged file holds nobody.

A driver takes over in three steps. It creates the next number, which only one of several drivers can do. It overwrites
the old file, so that an old holder that was only suspended finds its token gone. It takes away the old holder's staging
folder, without which none of that holder's calls can succeed (data/changes.py).
"""

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data import storage
from data.changes import Changes, LeaseLost
from pipelines.engine.errors import UserError, exit_code

HEARTBEAT_SECONDS = 10
STALE_SECONDS = 60
LOOK_SECONDS = 1.0
"""seconds between two looks at another driver's lease"""
PREFIX = "_LEASE."
FIELDS = {"token": str, "host": str, "boot": str, "pid": int, "heartbeat": float}
"""fields that the file of a lease must have, with their types; it also has `process_start`, `beat` and `superseded`"""


@dataclass(frozen=True, kw_only=True)
class Lease:
    """A lease held by this process."""

    uri: str
    """URI of the file that carries the token while this process holds the lease"""
    token: str

    @property
    def changes(self) -> Changes:
        """The holder's way to change the run's directory."""
        directory = self.uri.rpartition("/")[0]
        return Changes(directory=directory, name=self.token, lease_uri=self.uri, token=self.token)


@contextmanager
def hold_lease(directory: str, say: Callable[[str], object] = lambda _: None) -> Iterator[Lease]:
    """Takes the lease of `directory`, renews it while the block runs and releases it at the end.

    It may first watch another driver's lease for up to STALE_SECONDS, and `say` is called with a line about that.
    Raises UserError, naming the holder, if another driver holds the lease.
    """
    lease = _acquire(directory, say)
    stop = threading.Event()
    renewal = threading.Thread(target=_renew, args=(lease, stop), daemon=True)
    renewal.start()
    try:
        yield lease
    finally:
        stop.set()
        renewal.join()
        with suppress(LeaseLost):
            lease.changes.remove(lease.uri)
        storage.remove_tree(lease.changes.folder)


def holds(lease: Lease) -> bool:
    """Whether the lease's file still carries our token."""
    record = read_lease(lease.uri)
    return record is not None and record["token"] == lease.token and not storage.exists(_next(lease))


def _next(lease: Lease) -> str:
    directory, _, name = lease.uri.rpartition("/")
    return _uri(directory, int(name.split(".")[1]) + 1)


def lease_names(names: list[str]) -> list[str]:
    """The names of leases' files among `names`, oldest first."""
    numbered = [name for name in names if name.startswith(PREFIX) and name.endswith(".json")]
    return sorted(name for name in numbered if name.split(".")[1].isdigit())


def _acquire(directory: str, say: Callable[[str], object] = lambda _: None) -> Lease:
    seen: tuple[int, bytes | None] | None = None
    stale_at = 0.0
    while True:
        # one level only: the levels below hold all shards and receipts of the run
        names = lease_names([name for name, _ in storage.list_level(directory)])
        newest = max((int(name.split(".")[1]) for name in names), default=0)
        current_uri = _uri(directory, newest)
        data = _read(current_uri) if newest else None
        current = _parsed(data)
        if data is not None and current is None:
            say(f"{current_uri} is damaged: it holds nobody, so this driver takes over")
        if current is not None and not current.get("superseded") and not has_ended(current):
            holder = f"process {current['pid']} on {current['host']}"
            if seen is None or seen[0] != newest:
                seen, stale_at = (newest, data), time.monotonic() + STALE_SECONDS
                say(f"{holder} has the lease; watching up to {STALE_SECONDS} s whether it renews it")
            elif seen[1] != data:
                raise UserError(
                    f"{directory} is being written by {holder}, which renewed its heartbeat while this driver "
                    "watched; wait for that process, or end it and run again: its lease ends at once on this machine, "
                    f"after {STALE_SECONDS} s on another machine"
                )
            if time.monotonic() < stale_at:
                time.sleep(LOOK_SECONDS)
                continue
        lease = Lease(uri=_uri(directory, newest + 1), token=secrets.token_hex(16))
        try:
            storage.create_exclusive(lease.uri, _record(lease.token))
        except FileExistsError:
            continue  # another driver took over at this moment: look again
        try:
            if current is not None:
                lease.changes.write(current_uri, _record("", superseded=True))
            lease.changes.sweep()
        except Exception:
            if lease.changes.held():
                raise
            continue  # this driver slept until yet another driver took over: look again
        return lease


def has_ended(record: dict[str, Any]) -> bool:
    """Whether the holder is a process of this machine that has ended."""
    local = record["host"] == socket.gethostname() and record["boot"] == _boot_id() != ""
    return bool(local and _process_start(record["pid"]) != record.get("process_start"))


def seems_held(record: dict[str, Any], now: float) -> bool:
    """Whether a record looks held at one glance, for display: by its heartbeat's time, in seconds since 1970."""
    return not record.get("superseded") and not has_ended(record) and abs(now - record["heartbeat"]) <= STALE_SECONDS


def _renew(lease: Lease, stop: threading.Event) -> None:
    beat = 0
    while not stop.wait(HEARTBEAT_SECONDS):
        beat += 1
        try:
            lease.changes.write(lease.uri, _record(lease.token, beat=beat))
        except Exception as error:
            if isinstance(error, OSError) or storage.what_failed(error):
                continue  # if storage fails for a moment, the next heartbeat tries again
            if exit_code(error) is None:
                raise
            return  # the lease is lost


def _uri(directory: str, number: int) -> str:
    return storage.join(directory, f"{PREFIX}{number:06d}.json")


def read_lease(uri: str) -> dict[str, Any] | None:
    """The contents of the file of a lease; None if the file is missing or damaged."""
    return _parsed(_read(uri))


def _read(uri: str) -> bytes | None:
    try:
        return storage.read_bytes(uri)
    except FileNotFoundError:
        return None


def _parsed(data: bytes | None) -> dict[str, Any] | None:
    try:
        record = json.loads(data or b"")
    except (ValueError, RecursionError):
        return None
    fits = isinstance(record, dict) and all(type(record.get(name)) is kind for name, kind in FIELDS.items())
    return record if fits else None


def _record(token: str, superseded: bool = False, beat: int = 0) -> bytes:
    record = {
        "token": token,
        "host": socket.gethostname(),
        "boot": _boot_id(),
        "pid": os.getpid(),
        "process_start": _process_start(os.getpid()),
        "heartbeat": time.time(),
        "beat": beat,
        "superseded": superseded,
    }
    return json.dumps(record).encode()


def _boot_id() -> str:
    """An id that differs between two machines of the same host name, and after each reboot of one machine."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""


def _process_start(pid: int) -> str | None:
    """The start of the process in clock ticks since boot, which differs for a reused pid. None: no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]
