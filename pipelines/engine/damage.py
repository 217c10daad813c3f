"""Damaged files of a run, for commands that read many runs: each is named, and the other runs are still shown."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipelines.engine.errors import exit_code

WRONG_CONTENTS = (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError)
"""what a reader of JSON meets in a file that something else wrote"""


@contextmanager
def named(where: str, tell: Callable[[str], None]) -> Iterator[None]:
    """Passes what is damaged in the run `where` to `tell`, as one line, instead of raising it."""
    try:
        yield
    except WRONG_CONTENTS as error:
        ours = exit_code(error) is not None
        tell(f"damaged: {error}" if ours else f"damaged: a file in {where} has wrong contents ({error!r})")
