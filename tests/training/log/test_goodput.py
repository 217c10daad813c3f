"""Where a run's time went, by a clock of the test's own."""

import pytest

from training.log.goodput import Meter
from training.log.metrics import CAUSES


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def spend(self, meter: Meter, cause: str, seconds: float) -> None:
        with meter.spent(cause):
            self.now += seconds


def test_what_has_a_cause_is_no_part_of_a_step_and_the_rest_is_goodput() -> None:
    clock = Clock()
    meter = Meter(clock)
    clock.spend(meter, "start", 4.0)
    for _ in range(3):
        clock.spend(meter, "data_wait", 0.5)
        clock.now += 2.0
        meter.step_ended()
    clock.spend(meter, "save", 2.5)
    assert meter.take_steps(asynchronous=False) == ([2.0, 2.0, 2.0], [0.5, 0.5, 0.5])
    account = meter.account()
    assert account["run_seconds"] == 14.0
    lost = {"start": 4.0, "compile": 0.0, "data_wait": 1.5, "save": 2.5, "restart": 0.0}
    assert {cause: account[f"lost_seconds_{cause}"] for cause in CAUSES} == lost
    assert account["goodput"] == pytest.approx(6 / 14)


def test_the_next_attempt_goes_on_with_the_account_and_what_lay_between_is_a_restart() -> None:
    clock = Clock()
    first = Meter(clock)
    clock.spend(first, "start", 5.0)
    clock.now += 15.0  # steps
    earlier = first.account()
    clock.now += 7.0  # steps that nobody heard of, a kill, a new worker
    second = Meter(clock)
    clock.spend(second, "start", 3.0)
    second.go_on(earlier, away_seconds=10.0)
    account = second.account()
    assert (account["run_seconds"], account["lost_seconds_start"], account["lost_seconds_restart"]) == (30.0, 5.0, 10.0)
    assert account["goodput"] == 0.5
    clock.now += 10.0
    second.step_ended()
    assert second.take_steps(asynchronous=False)[0] == [10.0], "the step begins when the rows are asked for"
    assert second.account()["goodput"] == pytest.approx(25 / 40)


def test_a_clock_that_is_behind_takes_no_time_away() -> None:
    clock = Clock()
    first = Meter(clock)
    clock.now += 10.0
    second = Meter(clock)
    second.go_on(first.account(), away_seconds=-3.0)
    assert second.account()["run_seconds"] == 10.0
