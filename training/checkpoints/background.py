"""Checkpoints written beside training: the step waits for a snapshot on the host, and a thread does the rest.

One save runs at a time: the next save waits for it, so at most one more snapshot is in memory. An error of the thread
is raised in the loop, at the next step or save; nothing is lost silently. Hashing and writing release the interpreter's
lock, but copying a shard into a file's bytes does not: only this part can slow down the steps beside it.
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
        """Time that saves took in the thread, in seconds."""

    def submit(self, save: Callable[[], object]) -> None:
        """Waits for the previous save, then starts this one. Raises what the previous save raised."""
        self.wait()

        def work() -> None:
            began = time.perf_counter()
            try:
                save()
            except BaseException as error:  # carried to the thread that trains
                self._error = error
            self.seconds += time.perf_counter() - began

        # Not a daemon: a process that ends with an error of its own still finishes the checkpoint that it is writing.
        self._thread = threading.Thread(target=work, name="checkpoint", daemon=False)
        self._thread.start()

    def check(self) -> None:
        """Raises what a save has raised in the meantime."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Waits until no save is running. Raises what the save raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def close(self) -> None:
        """`wait` at the end of a run that may have failed: an error of the save is logged, not raised."""
        try:
            self.wait()
        except BaseException as error:
            logger.warning("the last checkpoint was not committed: %s", error)
