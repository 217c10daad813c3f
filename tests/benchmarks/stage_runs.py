"""One stage of the data plane, run and watched: seconds, CPU seconds, and the peak memory of driver and workers.

Ray's workers are the processes below this one whose command line begins with "ray::". Memory is the proportional set
size (PSS: pages that several processes share are counted in parts), read ten times a second. CPU seconds are those
of this process and its descendants, Ray's own daemons included.
"""

import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.manifest import Manifest
from infra.ray_session import RaySession
from pipelines.engine.inputs import Input
from pipelines.engine.resources import Resources
from pipelines.engine.runner import run_task
from pipelines.engine.stage import load_stage
from pipelines.engine.task import Task
from tests.programs.places import REPOSITORY

TICK = os.sysconf("SC_CLK_TCK")
LOOK_EVERY_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class Ran:
    """One run of a stage."""

    directory: Path
    manifest: Manifest
    seconds: float
    cpu_seconds: float
    driver_bytes: int
    """largest memory of this process; 0 if it was not watched"""
    worker_bytes: int
    """largest memory of one Ray worker"""


@dataclass
class Watch:
    """Peaks since the watch began."""

    driver_bytes: int = 0
    worker_bytes: int = 0
    _over: threading.Event = field(default_factory=threading.Event)

    def look(self) -> None:
        while not self._over.is_set():
            self.driver_bytes = max(self.driver_bytes, pss(os.getpid()))
            for pid in below(os.getpid()):
                if is_worker(pid):
                    self.worker_bytes = max(self.worker_bytes, pss(pid))
            self._over.wait(LOOK_EVERY_SECONDS)

    def end(self) -> None:
        self._over.set()


@contextlib.contextmanager
def watching() -> Iterator[Watch]:
    watch = Watch()
    thread = threading.Thread(target=watch.look, daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        watch.end()
        thread.join()


@contextlib.contextmanager
def warm_session() -> Iterator[tuple[RaySession, Path]]:
    """Ray and a folder, both of which end with the context."""
    with bench_folder() as folder:
        session = RaySession()
        try:
            session.start()
            yield session, folder
        finally:
            session.close()


@contextlib.contextmanager
def bench_folder() -> Iterator[Path]:
    """A new folder beside the corpus, whose shards are linked. It is removed afterwards."""
    cache = REPOSITORY / ".cache"
    cache.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=cache))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_stage(
    session: RaySession,
    name: str,
    fields: Mapping[str, Any],
    inputs: Mapping[str, Input],
    root: Path,
    watched: bool = False,
) -> Ran:
    """Runs the stage in a new folder below `root`. With `watched`, peak memory is measured."""
    stage = load_stage(name)
    root = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=root))
    task = Task(
        stage=stage,
        config=stage.config(**fields),
        inputs={key: (source,) for key, source in inputs.items()},
        root=str(root),
    )
    with watching() if watched else contextlib.nullcontext(Watch()) as watch:
        began, cpu = time.perf_counter(), cpu_seconds()
        manifest = run_task(task, Resources(), session, say=lambda _: None)
        seconds, cpu = time.perf_counter() - began, cpu_seconds() - cpu
    return Ran(
        directory=Path(task.directory),
        manifest=manifest,
        seconds=seconds,
        cpu_seconds=cpu,
        driver_bytes=watch.driver_bytes,
        worker_bytes=watch.worker_bytes,
    )


def below(pid: int) -> list[int]:
    """The processes that descend from `pid`."""
    parents: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            parents.setdefault(int(_stat(int(name))[1]), []).append(int(name))
    descendants, left = [], [pid]
    while left:
        children = parents.get(left.pop(), [])
        descendants += children
        left += children
    return descendants


def is_worker(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::")
    return False


def pss(pid: int) -> int:
    """Memory of a process in bytes; 0 if the process has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def cpu_seconds() -> float:
    """CPU seconds of this process and its living descendants, and of children that have ended."""
    total = 0.0
    for pid in [os.getpid(), *below(os.getpid())]:
        with contextlib.suppress(OSError):
            total += sum(map(int, _stat(pid)[11:15])) / TICK
    return total


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third on (state, parent, ...): the second may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
