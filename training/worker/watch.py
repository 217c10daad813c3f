"""A thread that looks at something at intervals, and goes on after a failed look. Without Ray."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def looking(name: str, look: Callable[[], None], seconds: float) -> Iterator[None]:
    """Calls `look` every `seconds` in a thread while the context is open, and once more at the end.

    A look that raises is logged as a warning, once until its message changes or a look works again. A control plane
    that cannot be reached for a moment must not end the watch, and a lasting failure must be seen.
    """
    stop = threading.Event()

    def watch() -> None:
        failing, stopped = "", False
        while not stopped:
            stopped = stop.wait(seconds)
            try:
                look()
            except Exception as error:
                message = f"{type(error).__name__}: {error}"
                if message != failing:
                    logger.warning("%s: a look failed, the next look is in %g s: %s", name, seconds, message)
                failing = message
            else:
                if failing:
                    logger.warning("%s: looks work again", name)
                failing = ""

    thread = threading.Thread(target=watch, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
