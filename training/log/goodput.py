"""The use of the time of a training run: seconds by cause, over all of its attempts.

    Meter of this attempt + the last written account of the attempt before it -> account of the run

Goodput is the share of the run's time that went into steps that count. The rest has a cause:

    start      the time of the first attempt until it asks for rows
    compile    the first two steps of an attempt
    data_wait  waiting for rows
    save       the time that a checkpoint takes from the steps; the thread that writes it takes none
    restart    from the last account of an earlier attempt until the next attempt asks for rows, and steps done again

If a run is stopped and resumed a day later, the day counts as `restart`: nothing distinguishes it from a day of waiting
for machines. On XLA the host runs ahead of the device, so a step's seconds there are the seconds between two readings
of values, divided by the number of steps between them.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from training.log.metrics import CAUSES


class Meter:
    """Seconds by cause, and seconds of each step."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._began = self._last = clock()
        self._earlier_seconds = 0.0
        self.seconds = dict.fromkeys(CAUSES, 0.0)
        self._data_waits: list[float] = []
        self._steps: list[float] = []

    def go_on(self, account: Mapping[str, float], away_seconds: float) -> None:
        """Makes this the next attempt of a run; called when it is ready for its first rows.

        `account` is the last account of the attempt before, written `away_seconds` ago; these seconds include all that
        this process did until now.
        """
        away = max(0.0, away_seconds)  # the clocks of two machines may differ
        self.seconds = {cause: account[f"lost_seconds_{cause}"] for cause in CAUSES}
        self.seconds["restart"] += away
        self._earlier_seconds = account["run_seconds"] + away
        self._began = self._last = self._clock()

    @contextmanager
    def spent(self, cause: str) -> Iterator[None]:
        """Counts the block's time under this cause; it is no part of a step's seconds."""
        began = self._clock()
        try:
            yield
        finally:
            taken = self._clock() - began
            self.seconds[cause] += taken
            self._last += taken  # removes it from the seconds of the step around it
            if cause == "data_wait":
                self._data_waits.append(taken)

    def step_ended(self) -> None:
        now = self._clock()
        self._steps.append(now - self._last)
        self._last = now

    def take_steps(self, asynchronous: bool) -> tuple[list[float], list[float]]:
        """(seconds, waits for data) of the steps since the last call, whose values have just been read."""
        now = self._clock()
        if self._steps:  # reading the values waited for the last of these steps
            self._steps[-1] += now - self._last
        self._last = now
        steps, waits = self._steps, self._data_waits[: len(self._steps)]
        self._steps, self._data_waits = [], self._data_waits[len(steps) :]
        return ([sum(steps) / len(steps)] * len(steps) if asynchronous and steps else steps), waits

    def account(self) -> dict[str, float]:
        """The run's seconds in total and by cause, and the share that is left for steps that count."""
        total = self._earlier_seconds + self._clock() - self._began
        lost = {f"lost_seconds_{cause}": value for cause, value in self.seconds.items()}
        return {"run_seconds": total, **lost, "goodput": max(0.0, total - sum(lost.values())) / total if total else 0.0}
