"""Processes that listen on this machine and their addresses, from the kernel."""

import os
import re
from pathlib import Path

LOOPBACK = re.compile(r"(0100007F|0000000000000000FFFF00000100007F|00000000000000000000000001000000):")
"""127.0.0.1, the same in IPv6, and ::1, as /proc/net has them"""


def descendants() -> set[int]:
    """This process and all its descendants."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    pids = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in pids} - pids:
        pids |= more
    return pids


def with_environment(name: str, value: str) -> set[int]:
    """Processes that were started with that variable, whoever their parents are now."""
    wanted, pids = f"{name}={value}".encode(), set()
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            if wanted in environment.read_bytes().split(b"\0"):
                pids.add(int(environment.parent.name))
        except OSError:
            continue
    return pids


def listening(pids: set[int]) -> dict[str, str]:
    """Local address (the kernel's hex) of each TCP socket on which one of the processes listens -> the process."""
    owners = {}
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                if match := re.match(r"socket:\[(\d+)\]", os.readlink(descriptor)):
                    owners[match[1]] = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")[:80]
            except OSError:
                continue
    sockets = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in owners:
                sockets[words[1]] = owners[words[9]]
    return sockets


def open_to_others(sockets: dict[str, str]) -> dict[str, str]:
    """The sockets of `listening` that another machine could reach."""
    return {address: who for address, who in sockets.items() if not LOOPBACK.match(address)}
