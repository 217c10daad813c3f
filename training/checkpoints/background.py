"""Checkpoints written beside training: the step waits for a snapshot on the host, a thread does the rest.

One save at a time: the next one waits for the one before, so at most one snapshot more is in memory. An error of the
thread is raised in the loop, at the next step or save; nothing is lost silently. Hashing and writing release the
interpreter's lock, copying a shard into a file's bytes does not: that share is what the steps beside it may feel.
"""

import logging
import threading
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)


class BackgroundSaver:
    """Runs one save at a time in a thread."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self.seconds = 0.0
        """time that saves took in the thread"""

    def submit(self, save: Callable[[], object]) -> None:
        """Waits for the save before, then starts this one. Raises what the one before raised."""
        self.wait()

        def work() -> None:
            began = time.perf_counter()
            try:
                save()
            except BaseException as error:  # carried to the thread that trains
                self._error = error
            self.seconds += time.perf_counter() - began

        # Not a daemon: a process that ends with an error of its own still finishes the checkpoint in hand.
        self._thread = threading.Thread(target=work, name="checkpoint", daemon=False)
        self._thread.start()

    def check(self) -> None:
        """Raises what a save has raised meanwhile."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Until no save is running. Raises what it raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def close(self) -> None:
        """`wait` on the way out of an error: a second one is only told."""
        try:
            self.wait()
        except BaseException as error:
            logger.warning("the checkpoint in hand was not committed: %s", error)
