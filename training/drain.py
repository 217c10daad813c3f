"""Whether a run is to stop behind the step it is at: what each worker has to say, and what all of them make of it."""

from collections.abc import Callable, Sequence
from typing import Protocol


class Drain(Protocol):
    """Asked behind every step, in every worker."""

    def own(self) -> tuple[bool, ...]:
        """What this worker tells the others; not empty."""

    def agreed(self, everyone: Sequence[tuple[bool, ...]]) -> bool:
        """Whether the run stops here, from what all workers told, in rank order: the same answer in each of them."""


class DrainWhen:
    """Stops as soon as any worker is asked to."""

    def __init__(self, asked: Callable[[], bool]) -> None:
        self._asked = asked

    def own(self) -> tuple[bool, ...]:
        return (self._asked(),)

    def agreed(self, everyone: Sequence[tuple[bool, ...]]) -> bool:
        return any(asked for (asked,) in everyone)
