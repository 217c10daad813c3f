"""The lease of a training run: one driver at a time may write the run, and the next one takes over if it died.

Leases are numbered files, each created exclusively. The newest number is valid, and its holder renews the heartbeat in
the file. A lease is stale if its heartbeat is 60 s old, or at once if its process on this machine has ended. A driver
takes over in two steps. It creates the next number, which only one of several drivers can do. Then it overwrites the
old file, so that an old holder that was only suspended finds its token gone and stops.
"""

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data import storage
from pipelines.engine.errors import UserError

HEARTBEAT_SECONDS = 10
STALE_SECONDS = 60
FIELDS = {"token", "host", "boot", "pid", "process_start", "heartbeat"}
"""fields that the file of a lease must have; it also has `superseded`"""


@dataclass(frozen=True, kw_only=True)
class Lease:
    """A lease held by this process."""

    uri: str
    """URI of the file that carries the token while this process holds the lease"""
    token: str


@contextmanager
def hold_lease(directory: str) -> Iterator[Lease]:
    """Takes the lease of `directory`, renews it while the block runs and releases it at the end.

    Raises UserError, naming the holder, if another driver holds the lease.
    """
    lease = _acquire(directory)
    stop = threading.Event()
    renewal = threading.Thread(target=_renew, args=(lease, stop), daemon=True)
    renewal.start()
    try:
        yield lease
    finally:
        stop.set()
        renewal.join()
        if holds(lease):
            storage.remove(lease.uri)


def holds(lease: Lease) -> bool:
    """Whether the lease's file still carries our token."""
    record = read_lease(lease.uri)
    return record is not None and record["token"] == lease.token and not storage.exists(_next(lease))


def _next(lease: Lease) -> str:
    directory, _, name = lease.uri.rpartition("/")
    return _uri(directory, int(name.split(".")[1]) + 1)


def _acquire(directory: str) -> Lease:
    while True:
        # one level only: the levels below hold all shards and receipts of the run
        entries = [name for name, _ in storage.list_level(directory)]
        names = [name for name in entries if name.startswith("_LEASE.") and name.endswith(".json")]
        newest = max((int(name.split(".")[1]) for name in names), default=0)
        current_uri = _uri(directory, newest)
        current = read_lease(current_uri) if newest else None
        if current is not None and not current.get("superseded") and not is_stale(current):
            age = time.time() - current["heartbeat"]
            raise UserError(
                f"{directory} is being written by process {current['pid']} on {current['host']} (heartbeat "
                f"{age:.0f} s ago); wait for that process, or end it and run again: its lease ends at once on this "
                f"machine, after {STALE_SECONDS} s on another machine"
            )
        lease = Lease(uri=_uri(directory, newest + 1), token=secrets.token_hex(16))
        try:
            storage.create_exclusive(lease.uri, _record(lease.token))
        except FileExistsError:
            continue  # another driver took over at this moment: look again
        if current is not None:
            storage.write_bytes(current_uri, _record("", superseded=True))
        return lease


def is_stale(record: dict[str, Any]) -> bool:
    """Whether the holder is known to have ended, or has not renewed its heartbeat for too long."""
    local = record["host"] == socket.gethostname() and record["boot"] == _boot_id() != ""
    if local and _process_start(record["pid"]) != record["process_start"]:
        return True
    return bool(time.time() - record["heartbeat"] > STALE_SECONDS)


def _renew(lease: Lease, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        try:
            if holds(lease):
                storage.write_bytes(lease.uri, _record(lease.token))
            if not holds(lease):
                # taken over, perhaps between our check and our write: the checkpoint writer has to see it and stop
                storage.write_bytes(lease.uri, _record("", superseded=True))
                return
        except OSError:
            continue  # if storage fails for a moment, the next heartbeat tries again


def _uri(directory: str, number: int) -> str:
    return storage.join(directory, f"_LEASE.{number:06d}.json")


def read_lease(uri: str) -> dict[str, Any] | None:
    """The contents of the file of a lease; None if the file is missing or damaged."""
    try:
        record = json.loads(storage.read_bytes(uri))
    except (FileNotFoundError, ValueError):
        return None
    # a damaged file counts as no lease
    return record if isinstance(record, dict) and record.keys() >= FIELDS else None


def _record(token: str, superseded: bool = False) -> bytes:
    record = {
        "token": token,
        "host": socket.gethostname(),
        "boot": _boot_id(),
        "pid": os.getpid(),
        "process_start": _process_start(os.getpid()),
        "heartbeat": time.time(),
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
