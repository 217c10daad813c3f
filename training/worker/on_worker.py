"""What each worker runs under Ray Train: backend, feed and loop, gauges, and the notice of a machine about to go."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pickle
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from infra.ray_private import kv_put
from training.errors import UserError
from training.worker.sizes import job_at
from training.worker.stops import Asked

if TYPE_CHECKING:
    from training.backends.base import Backend as TrainBackend
    from training.feed import Feed, HostBatch
    from training.job import TrainJob
    from training.log.summary import StepMetrics

logger = logging.getLogger(__name__)

NOTICE_SECONDS = 1.0  # between questions whether the machine is about to go: a question costs some milliseconds
GONE_SECONDS = 120.0  # for Ray to end the workers that are left, when one went with its machine
STEPS_IN_BLOCK = 8  # of the Ray feed: enough to hide the cost of a task, few enough to start soon


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """The workers that share a run, as one of them sees them."""

    rank: int = 0
    world_size: int = 1
    on_this_node: int = 1
    preempted: Callable[[], bool] = lambda: False
    """whether a machine of theirs is about to be taken away; all of them have to ask"""


def train_on_worker(config: dict[str, Any]) -> bytes:
    """What each worker runs under Ray Train: a pickled job in, a pickled TrainSummary out, or an error that would come
    again."""
    import ray.train

    context = ray.train.get_context()
    group = Group(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        on_this_node=context.get_local_world_size(),
        preempted=lambda: ray.train.get_preemption_info() is not None,
    )
    return train_in_group(config, group)


def train_in_group(config: Mapping[str, Any], group: Group) -> bytes:
    """The same for any group, also of one worker without Ray Train."""
    from training.backends.make import make_backend
    from training.faults import BadStep, Drained
    from training.feed import direct_feed
    from training.loop import run_training

    job: TrainJob = pickle.loads(config["job"])
    rank, world_size = group.rank, group.world_size
    job = job_at(job, world_size)  # an elastic run's number is known here
    asked = Asked(config["ask_key"])

    tell = _Gauges(job).tell if rank == 0 else None

    def publish(step: StepMetrics) -> None:
        if rank == 0:
            kv_put(config["progress_key"], json.dumps(dataclasses.asdict(step)).encode())

    try:
        if job.setup.threads is None:
            # Ray sets OMP_NUM_THREADS to the CPUs it has booked, 1 by default; the workers here share all of them.
            threads = (os.cpu_count() or 1) // group.on_this_node
            job = dataclasses.replace(job, setup=dataclasses.replace(job.setup, threads=max(1, threads)))
        backend = make_backend(job.setup, rank)
        rows = backend.row_share
        make_feed = ray_feed if job.feed == "ray" else direct_feed
        feed = make_feed(job, rows.part, rows.parts)
        while True:
            try:
                drain = _Notice(asked, group)
                return pickle.dumps(run_training(job, backend, feed, publish, drain=drain, tell=tell))
            except Drained as drained:
                logger.warning("%s", drained)
                if _wait_for_the_end(backend, asked, group):
                    return pickle.dumps(drained)
    except BadStep as error:
        return pickle.dumps(error)  # of every worker alike; the same rows would only meet it again
    except Exception as error:
        # Other workers may be waiting for this one: Ray stops them. Everything but the user's mistakes is tried again.
        if world_size > 1 or getattr(type(error), "exit_code", None) != UserError.exit_code:
            raise
        return pickle.dumps(error)


class _Gauges:
    """The run's gauges, as training/log/metrics.py names them, on this node's metrics port."""

    def __init__(self, job: TrainJob) -> None:
        from ray.util.metrics import Gauge

        from training.log.metrics import METRICS

        self.run = "/".join(job.checkpoints_uri.split("/")[-3:-1])  # stage/fingerprint
        self.gauges: dict[str, tuple[Any, dict[str, str]]] = {}
        for metric in METRICS.values():
            if metric.fields:
                gauge = Gauge(metric.name, description=f"{metric.help}; {metric.unit}", tag_keys=metric.labels)
                self.gauges |= {field: (gauge, {"run": self.run, **labels}) for field, labels in metric.fields.items()}

    def tell(self, values: Mapping[str, float]) -> None:
        """By field; of one that is not there nothing is said, which is not 0."""
        for field, value in values.items():
            gauge, labels = self.gauges[field]
            gauge.set(value, tags=labels)


class _Notice:
    """Asks Ray whether a machine of ours is about to be taken away, and the driver whether we are to stop or resize.

    The first question is a meeting of all workers in Ray's controller: 50 ms for two on one machine. So it is asked
    when the first worker's NOTICE_SECONDS are over, which the exchange behind every step tells all workers, beside what
    the driver has asked of any of them.
    """

    def __init__(self, asked: Asked, group: Group) -> None:
        self._by_driver, self._group, self._asked = asked, group, time.monotonic()

    def own(self) -> tuple[bool, ...]:
        due = time.monotonic() - self._asked >= NOTICE_SECONDS
        return due, due and self._by_driver()

    def agreed(self, everyone: Sequence[tuple[bool, ...]]) -> bool:
        any_due, any_asked = np.any(everyone, axis=0).tolist()
        if any_asked:
            return True
        if not any_due:
            return False
        self._asked = time.monotonic()
        return self._group.preempted()  # all workers meet here: each has to come


def _wait_for_the_end(backend: TrainBackend, asked: Asked, group: Group) -> bool:
    """Behind the checkpoint, until Ray ends this worker: steps taken now would be lost.

    Returns True where the run is to stop, False after a false alarm: all workers the same, since each question is
    answered by all of them. Where another worker is gone, as is expected of a machine that is taken away, this one
    must not raise before Ray has noticed: it would count as a failure. So it waits for GONE_SECONDS first.
    """
    while True:
        try:
            stop, resize = np.any(backend.gather(np.array([[asked.to_stop(), asked()]])), axis=0).tolist()
        except RuntimeError:
            time.sleep(GONE_SECONDS)
            raise
        if stop:
            return True
        if resize and backend.rank == 0:
            asked.saved()
        if not resize and not group.preempted():  # all workers meet here: each has to come
            return False
        time.sleep(NOTICE_SECONDS)


def ray_feed(job: TrainJob, rank: int, world_size: int) -> Feed:
    """A Ray Data pipeline over this worker's steps, mapped through the same loader as the direct feed, in order."""
    import ray.data

    def feed(start_step: int, stop_step: int) -> Iterator[tuple[int, HostBatch]]:
        if start_step >= stop_step:
            return
        steps = stop_step - start_step
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False

        def load(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            loader = _loader(job, rank, world_size)
            loaded = [loader.load(start_step + int(index)) for index in batch["id"]]
            return {"step": batch["id"] + start_step} | {
                name: np.stack([rows[name] for rows in loaded]) for name in loaded[0]
            }

        blocks = -(-steps // STEPS_IN_BLOCK)
        dataset = ray.data.range(steps, override_num_blocks=blocks).map_batches(load, batch_size=None)
        for batch in dataset.iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=STEPS_IN_BLOCK):
            # A copy: of Ray's own arrays, which cannot be written, torch warns.
            yield int(batch.pop("step")[0]), {name: np.array(column[0]) for name, column in batch.items()}

    return feed


_LOADERS: dict[tuple[str, int, int], Any] = {}


def _loader(job: TrainJob, rank: int, world_size: int) -> Any:
    """One loader in each reading process: opening the shards costs more than reading a block."""
    key = (job.checkpoints_uri, rank, world_size)
    if key not in _LOADERS:
        from training.feed import make_loader

        _LOADERS.clear()
        _LOADERS[key] = make_loader(job, rank, world_size)
    return _LOADERS[key]
