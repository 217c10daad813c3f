"""The driver's requests to its workers through Ray's key-value store: to stop, or to make room for another size.

SIGTERM or Ctrl-C -> STOP   -> a checkpoint of that very step, and the run ends
elastic policy    -> token  -> a checkpoint of that very step, the token as answer under `saved_key`, and they wait
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from infra.ray_private import kv_delete, kv_get, kv_put

logger = logging.getLogger(__name__)

STOP = b"stop"


def saved_key(key: bytes) -> bytes:
    """The key under which the workers answer with the value of the request."""
    return key + b"/saved"


@contextlib.contextmanager
def stopping_on_signals(key: bytes) -> Iterator[None]:
    """While the context is open, the first SIGTERM or Ctrl-C asks for a checkpoint and an end.

    A second signal has its former effect. Outside of the main thread the context does nothing, since Python handles
    signals in the main thread only.
    """
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in (signal.SIGTERM, signal.SIGINT)}
    ours = threading.current_thread() is threading.main_thread()

    def put_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(number: int, frame: FrameType | None) -> None:
        put_back()
        logger.warning(
            "got %s: stopping after a checkpoint; send it once more to stop at once", signal.Signals(number).name
        )
        kv_put(key, STOP)

    if ours:
        for number in before:
            signal.signal(number, ask)
    try:
        yield
    finally:
        if ours:
            put_back()
        for entry in (key, saved_key(key)):
            kv_delete(entry)


class Asked:
    """Whether a worker's group was asked to stop, or to make room for a group of another size; runs on the worker."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._before = self._value()  # the request to the group before this one

    def __call__(self) -> bool:
        return self.to_stop() or self._value() != self._before

    def to_stop(self) -> bool:
        return self._value() == STOP

    def saved(self) -> None:
        """Answers the request: the checkpoint is committed."""
        if (value := self._value()) is not None and value != self._before:
            kv_put(saved_key(self._key), value)

    def _value(self) -> bytes | None:
        return kv_get(self._key)
