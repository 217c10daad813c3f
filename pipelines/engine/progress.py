"""How far the shards of a stage are: one bar in the driver, which also hears from inside the shards.

On a terminal it is a bar, in a log a line now and then. Work that runs in a Ray worker calls `advance`; about once a
second the worker puts its count into the cluster's key-value store, where the driver looks as often. Outside of a
terminal and of a submitted job nothing is told.
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
LINE_SECONDS = 15.0
"""between two lines in a log, where no bar can be drawn"""

_current: "_Shard | None" = None


class _Shard:
    """A shard that this worker process is making."""

    def __init__(self, key: bytes) -> None:
        self.key, self.done, self.told_at = key, 0, time.monotonic()


def advance(units: int) -> None:
    """Called by a stage's work: so many more units of the shard in hand are done (rows, tokens, ...)."""
    if _current is None:
        return
    _current.done += units
    if time.monotonic() - _current.told_at >= TELL_SECONDS:
        kv_put(_current.key, b"%d" % _current.done)
        _current.told_at = time.monotonic()


@contextmanager
def shard(prefix: str | None, index: int) -> Iterator[None]:
    """In the worker, around the work on shard `index`; `prefix` None: nobody listens."""
    global _current
    _current = None if prefix is None else _Shard(_key(prefix, index))
    try:
        yield
    finally:
        _current = None


class Bar:
    """In the driver: finished shards count in full, those in work as far as they told."""

    def __init__(self, update: Callable[[int], Any], sizes: Mapping[int, int], before: Iterable[int] = ()) -> None:
        """`update(n)` moves the bar on; `sizes` are the units of each shard, `before` those of an earlier attempt."""
        self.prefix = f"stage-progress/{secrets.token_hex(8)}/"
        self._update, self._sizes = update, sizes
        self._finished = self._shown = sum(sizes[index] for index in before)
        self._running: dict[int, int] = {}
        self._lock = threading.Lock()

    def finish(self, index: int) -> None:
        """Shard `index` is done."""
        with self._lock:
            self._running[index] = 0
            self._finished += self._sizes[index]
            self._show()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Asks the running shards until the block ends. Needs Ray."""
        try:
            with looking("stage progress", self.hear, TELL_SECONDS):
                yield
        finally:
            self._forget()

    def hear(self) -> None:
        """Takes over what the workers told since the last time."""
        counts = {key: kv_get(key) for key in kv_list(self.prefix.encode())}
        with self._lock:
            for key, value in counts.items():
                index = int(key.rpartition(b"/")[2])
                if value is not None and self._running.get(index) != 0:
                    self._running[index] = min(int(value), self._sizes[index])
            self._show()

    def _show(self) -> None:
        done = self._finished + sum(self._running.values())
        self._update(max(0, done - self._shown))  # 0 too: the elapsed time moves on
        self._shown = max(done, self._shown)

    def _forget(self) -> None:
        for key in kv_list(self.prefix.encode()):
            kv_delete(key)


class Lines:
    """Progress for a log: a line now and then, none where the work is done sooner."""

    def __init__(self, total: int, unit: str, title: str, say: Callable[[str], None], before: int = 0) -> None:
        """`before`: units that an earlier attempt did, which took no time of this one."""
        self.total, self.unit, self.title, self.say = total, unit, title, say
        self.done = self.before = before
        self.began = self.said = time.monotonic()
        if before:
            say(f"{title}: goes on at {before:,} of {total:,} {unit}s")

    def advance(self, units: int, note: str = "") -> None:
        """So many more units are done; `note` stands at the end of a line."""
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
