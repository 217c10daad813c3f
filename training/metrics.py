"""What a run tells Prometheus: every name in one table, and the arithmetic of a training run's gauges.

    StepMeter (worker: feed and reports) -> gauges by training/worker/on_worker.py
    receipts of finished shards (driver) -> counters by pipelines/stage_metrics.py

Ray exports a name as `ray_<name>` on each node's metrics port; infra/dashboards/ draws them, and a test holds both to
this table. Pure: who emits is elsewhere, since this module imports no ray.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

WINDOW_SECONDS = 10.0
"""speeds are over at least so long: reports of steps come in groups"""
ItemT = TypeVar("ItemT")


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One name."""

    name: str
    kind: Literal["gauge", "counter"]
    help: str
    """what it says, with its unit"""
    labels: tuple[str, ...] = ("run",)


METRICS = {
    metric.name: metric
    for metric in (
        Metric(name="gemma2_train_step", kind="gauge", help="newest finished step"),
        Metric(name="gemma2_train_steps_wanted", kind="gauge", help="steps of the whole run"),
        Metric(name="gemma2_train_loss", kind="gauge", help="mean loss of the newest step, nats a target"),
        Metric(name="gemma2_train_grad_norm", kind="gauge", help="norm of the mean gradient before clipping"),
        Metric(name="gemma2_train_learning_rate", kind="gauge", help="learning rate of the newest step"),
        Metric(name="gemma2_train_tokens_per_second", kind="gauge", help="tokens of rows a second, all workers"),
        Metric(
            name="gemma2_train_model_flops_per_second",
            kind="gauge",
            help="operations a second that the model needs, recomputation left out; over the chips' peak it is MFU",
        ),
        Metric(name="gemma2_train_data_wait_fraction", kind="gauge", help="share of time that worker 0 waits for rows"),
        Metric(
            name="gemma2_train_goodput_fraction",
            kind="gauge",
            help="time that the steps done would take at the best speed seen, over the time since the worker began",
        ),
        Metric(
            name="gemma2_stage_dropped_rows_total",
            kind="counter",
            help="rows that stages dropped, by reason",
            labels=("stage", "reason"),
        ),
        Metric(
            name="gemma2_stage_written_bytes_total",
            kind="counter",
            help="bytes of finished shards, by dataset (of cache_logits: the cache)",
            labels=("stage", "dataset"),
        ),
        Metric(name="gemma2_stage_shards_total", kind="counter", help="shards finished in this run", labels=("stage",)),
    )
}


class StepMeter:
    """Speeds of a training run, from when rows were asked for and when steps were reported."""

    def __init__(
        self,
        *,
        tokens_per_step: int,
        flops_per_token: float,
        first_step: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`first_step`: steps that were done before; None: one less than the first that is reported."""
        self._tokens, self._flops, self._clock = tokens_per_step, flops_per_token, clock
        self._began = clock()
        self._waited = 0.0
        self._first = first_step
        self._best = 0.0
        self._points: deque[tuple[float, int, float]] = deque()  # when, step, seconds waited until then

    def timed(self, rows: Iterable[ItemT]) -> Iterator[ItemT]:
        """The feed, with the time that its consumer waits counted."""
        source = iter(rows)
        while True:
            asked = self._clock()
            try:
                item = next(source)
            except StopIteration:
                return
            finally:
                self._waited += self._clock() - asked
            yield item

    def report(self, step: int) -> dict[str, float]:
        """Gauges after `step` (from 1), by name; speeds only once a window is full."""
        now = self._clock()
        if self._first is None:
            self._first = step - 1
        self._points.append((now, step, self._waited))
        while len(self._points) > 2 and now - self._points[1][0] >= WINDOW_SECONDS:
            self._points.popleft()
        then, earlier, waited = self._points[0]
        gauges = {"gemma2_train_step": float(step)}
        seconds = now - then
        if seconds < WINDOW_SECONDS or step == earlier:
            return gauges
        steps_per_second = (step - earlier) / seconds
        self._best = max(self._best, steps_per_second)
        tokens_per_second = steps_per_second * self._tokens
        return gauges | {
            "gemma2_train_tokens_per_second": tokens_per_second,
            "gemma2_train_model_flops_per_second": tokens_per_second * self._flops,
            "gemma2_train_data_wait_fraction": min(1.0, (self._waited - waited) / seconds),
            "gemma2_train_goodput_fraction": min(1.0, (step - self._first) / self._best / (now - self._began)),
        }
