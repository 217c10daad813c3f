"""Progress of the shards of a stage: one bar in the driver, which counts the work inside unfinished shards too.

On a terminal it is a bar, in a log a line every 15 seconds. Work that runs in a Ray worker calls `advance`. About once
a second the worker writes its count to the cluster's key-value store, and the driver reads it as often. Workers write
counts only if the driver has a terminal or is a submitted job.
"""

import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from infra.ray_private import kv_delete, kv_get, kv_list, kv_put
from training.worker.watch import looking

TELL_SECONDS = 1.0
"""seconds between two counts that a worker writes, and between two looks of the driver"""
LINE_SECONDS = 15.0
"""seconds between two lines in a log, which cannot show a bar"""

_current: "_Shard | None" = None


class _Shard:
    """A shard that this worker process is making."""

    def __init__(self, key: bytes) -> None:
        self.key, self.done, self.told_at = key, 0, time.monotonic()


def advance(units: int) -> None:
    """Counts `units` more of the current shard as done (rows, tokens, ...). The work of a stage calls it."""
    if _current is None:
        return
    _current.done += units
    if time.monotonic() - _current.told_at >= TELL_SECONDS:
        kv_put(_current.key, b"%d" % _current.done)
        _current.told_at = time.monotonic()


@contextmanager
def shard(prefix: str | None, index: int) -> Iterator[None]:
    """Counts, in the worker, the work of the block as work on shard `index`. With `prefix` None it counts nothing."""
    global _current
    _current = None if prefix is None else _Shard(_key(prefix, index))
    try:
        yield
    finally:
        _current = None


class Bar:
    """The bar in the driver. Finished shards count in full, unfinished shards by the last count of their worker."""

    def __init__(self, update: Callable[[int], Any], sizes: Mapping[int, int], before: Iterable[int] = ()) -> None:
        """`update(n)` advances the bar. `sizes` has the units of each shard, `before` the shards that are done."""
        self.prefix = f"stage-progress/{secrets.token_hex(8)}/"
        self._update, self._sizes = update, sizes
        self._finished = self._shown = sum(sizes[index] for index in before)
        self._running: dict[int, int] = {}
        self._lock = threading.Lock()

    def finish(self, index: int) -> None:
        """Counts shard `index` as done."""
        with self._lock:
            self._running[index] = 0
            self._finished += self._sizes[index]
            self._show()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Reads the counts of the running shards until the block ends. Needs Ray."""
        try:
            with looking("stage progress", self.hear, TELL_SECONDS):
                yield
        finally:
            self._forget()

    def hear(self) -> None:
        """Reads the counts that the workers wrote since the last call."""
        counts = {key: kv_get(key) for key in kv_list(self.prefix.encode())}
        with self._lock:
            for key, value in counts.items():
                index = int(key.rpartition(b"/")[2])
                if value is not None and self._running.get(index) != 0:
                    self._running[index] = min(int(value), self._sizes[index])
            self._show()

    def _show(self) -> None:
        done = self._finished + sum(self._running.values())
        self._update(max(0, done - self._shown))  # with 0 too, which refreshes the elapsed time
        self._shown = max(done, self._shown)

    def _forget(self) -> None:
        for key in kv_list(self.prefix.encode()):
            kv_delete(key)


class Lines:
    """Progress for a log: a line every LINE_SECONDS, and no line if the work is done sooner."""

    def __init__(self, total: int, unit: str, title: str, say: Callable[[str], None], before: int = 0) -> None:
        """`before`: units that an earlier attempt did, which do not count for the rate."""
        self.total, self.unit, self.title, self.say = total, unit, title, say
        self.done = self.before = before
        self.began = self.said = time.monotonic()
        if before:
            say(f"{title}: resumed at {before:,} of {total:,} {unit}s")

    def advance(self, units: int, note: str = "") -> None:
        """Counts `units` more as done; `note` ends the line."""
        self.done += units
        now = time.monotonic()
        if now - self.said < LINE_SECONDS or self.done <= self.before:
            return
        self.said = now
        rate = (self.done - self.before) / (now - self.began)
        left = (self.total - self.done) / rate
        self.say(
            f"{self.title}: {self.done:,} of {self.total:,} {self.unit}s, {rate:.3g} a second, {left:,.0f} s left"
            + (f", {note}" if note else "")
        )


def _key(prefix: str, index: int) -> bytes:
    return f"{prefix}{index}".encode()
