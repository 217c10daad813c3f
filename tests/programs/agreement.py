"""Run by test_worker.py in processes that share a group: what workers do after the checkpoint of a stop or a drain."""

import time
from typing import Any

from training.backends.base import Backend


class Asked:
    """A stand-in for the driver's request in Ray's store: the workers that it has reached."""

    def __init__(self, stop: bool) -> None:
        self._stop = stop

    def to_stop(self) -> bool:
        return self._stop

    def __call__(self) -> bool:
        return self._stop


def stop_that_reached_one(backend: Backend) -> Any:
    """Only the last worker has received the request. Returns the decision of each worker."""
    from training.worker.on_worker import Group, _wait_for_the_end

    asked = Asked(stop=backend.rank == backend.world_size - 1)
    stops = _wait_for_the_end(backend, asked, Group())  # type: ignore[arg-type]
    import numpy as np

    return backend.gather(np.array([stops])).tolist()


def peer_that_is_gone(backend: Backend) -> Any:
    """The last worker leaves. Returns how long the others wait for Ray before they fail, and their errors."""
    from training.worker import on_worker

    if backend.rank == backend.world_size - 1:
        return None
    on_worker.GONE_SECONDS = 1.0
    began = time.monotonic()
    try:
        on_worker._wait_for_the_end(backend, Asked(stop=False), on_worker.Group())  # type: ignore[arg-type]
    except RuntimeError:
        return time.monotonic() - began
    return -1.0
