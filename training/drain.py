"""Whether a run stops after its current step: each worker's answer, and the decision of all workers together."""

from collections.abc import Callable, Sequence
from typing import Protocol


class Drain(Protocol):
    """Asked after every step, in every worker."""

    def own(self) -> tuple[bool, ...]:
        """This worker's answer for all workers; not empty."""

    def agreed(self, everyone: Sequence[tuple[bool, ...]]) -> bool:
        """Whether the run stops here, by the answers of all workers in rank order; the same result in every worker."""


class DrainWhen:
    """Stops as soon as any worker is asked to stop."""

    def __init__(self, asked: Callable[[], bool]) -> None:
        self._asked = asked

    def own(self) -> tuple[bool, ...]:
        return (self._asked(),)

    def agreed(self, everyone: Sequence[tuple[bool, ...]]) -> bool:
        return any(asked for (asked,) in everyone)
