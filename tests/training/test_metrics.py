"""Speeds of a run by a clock of the test's own."""

import pytest

from training.metrics import METRICS, StepMeter


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_speeds_are_those_of_the_window() -> None:
    clock = Clock()
    meter = StepMeter(tokens_per_step=1000, flops_per_token=5.0, clock=clock)
    clock.now += 30  # start and compile
    assert meter.report(1) == {"gemma2_train_step": 1.0}, "no speed before a window is full"

    def rows():
        for number in range(20):
            clock.now += 0.25  # the feed is slow
            yield number

    for number in meter.timed(rows()):
        clock.now += 0.75  # the step
        last = meter.report(number + 2)
    assert last["gemma2_train_tokens_per_second"] == pytest.approx(1000)
    assert last["gemma2_train_model_flops_per_second"] == pytest.approx(5000)
    assert last["gemma2_train_data_wait_fraction"] == pytest.approx(0.25)
    assert last["gemma2_train_goodput_fraction"] == pytest.approx(21 / 50), "21 steps of a second, 50 s since it began"
    assert set(last) <= set(METRICS)


def test_a_feed_that_ends_or_fails_does_so_through_the_meter() -> None:
    meter = StepMeter(tokens_per_step=1, flops_per_token=1.0)
    assert list(meter.timed([1, 2])) == [1, 2]

    def broken():
        yield 1
        raise OSError("the disk")

    with pytest.raises(OSError, match="the disk"):
        list(meter.timed(broken()))
