"""Run by test_worker.py in processes that share a group: what workers do behind the checkpoint of a stop or a drain."""

import time
from typing import Any

from training.backends.base import Backend


class Asked:
    """Stands for the driver's word in Ray's store: whom it reached already."""

    def __init__(self, stop: bool) -> None:
        self._stop = stop

    def to_stop(self) -> bool:
        return self._stop

    def __call__(self) -> bool:
        return self._stop


def stop_that_reached_one(backend: Backend) -> Any:
    """Only the last worker has heard of it; says what each decides."""
    from training.worker.on_worker import Group, _wait_for_the_end

    asked = Asked(stop=backend.rank == backend.world_size - 1)
    stops = _wait_for_the_end(backend, asked, Group())  # type: ignore[arg-type]
    import numpy as np

    return backend.gather(np.array([stops])).tolist()


def peer_that_is_gone(backend: Backend) -> Any:
    """The last worker leaves; how long the others wait for Ray before they call it a failure, and with what."""
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
