"""What each worker runs under Ray Train: backend, feed, loop, gauges, and the notice of a machine to be taken away."""

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

NOTICE_SECONDS = 1.0  # between questions whether a machine is about to be taken away; a question costs milliseconds
GONE_SECONDS = 120.0  # that Ray has to end the remaining workers, when one was lost with its machine
STEPS_IN_BLOCK = 8  # steps in a block of the Ray feed: enough to hide the cost of a task, and few, to start soon


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """The workers that share a run, from the view of one worker."""

    rank: int = 0
    world_size: int = 1
    on_this_node: int = 1
    preempted: Callable[[], bool] = lambda: False
    """Whether a machine of the group is about to be taken away; all workers must ask."""


def train_on_worker(config: dict[str, Any]) -> bytes:
    """What each worker runs under Ray Train: takes a pickled job, returns a pickled TrainSummary, or a pickled error
    that would come again."""
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
    """`train_on_worker` for any group, also for one worker without Ray Train."""
    from data.changes import LeaseLost
    from training.backends.make import make_backend
    from training.faults import BadStep, Drained
    from training.feed import direct_feed
    from training.loop import run_training

    job: TrainJob = pickle.loads(config["job"])
    rank, world_size = group.rank, group.world_size
    job = job_at(job, world_size)  # an elastic run's number of workers is known here
    if job.changes is not None and not job.changes.held():  # the same in every worker; it comes after a restart
        return pickle.dumps(job.changes.lost())
    asked = Asked(config["ask_key"])

    tell = _Gauges(job).tell if rank == 0 else None

    def publish(step: StepMetrics) -> None:
        if rank == 0:
            kv_put(config["progress_key"], json.dumps(dataclasses.asdict(step)).encode())

    try:
        if job.setup.threads is None:
            # Ray sets OMP_NUM_THREADS to the booked CPUs, 1 by default; the workers of this node share all of its CPUs.
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
        return pickle.dumps(error)  # the same in every worker; the same rows would only cause it again
    except Exception as error:
        # Other workers may wait for this worker: Ray stops them. Everything but the user's mistakes is tried again.
        final = isinstance(error, LeaseLost) or getattr(type(error), "exit_code", None) == UserError.exit_code
        if world_size > 1 or not final:
            raise
        return pickle.dumps(error)


class _Gauges:
    """The run's gauges, with their names in training/log/metrics.py, on this node's metrics port."""

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
        """Sets the gauges by field; the gauge of a missing field is not set, which is not the same as 0."""
        for field, value in values.items():
            gauge, labels = self.gauges[field]
            gauge.set(value, tags=labels)


class _Notice:
    """Asks Ray whether a machine of ours is about to be taken away, and the driver whether to stop or to resize.

    The question to Ray is a meeting of all workers in Ray's controller: 50 ms for two workers on one machine. So it is
    asked only when a worker's NOTICE_SECONDS are over. The exchange after every step tells all workers whether they are
    over, and whether the driver has asked any worker.
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
        return self._group.preempted()  # all workers meet here: each must ask


def _wait_for_the_end(backend: TrainBackend, asked: Asked, group: Group) -> bool:
    """Waits after the checkpoint until Ray ends this worker: steps taken now would be lost.

    Returns True if the run stops, False after a false alarm; all workers return the same, since all of them answer each
    question. If another worker is lost, as is expected with a machine that is taken away, this worker must not raise
    before Ray has noticed: its error would count as a failure. So it waits for GONE_SECONDS first.
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
        if not resize and not group.preempted():  # all workers meet here: each must ask
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
            # A copy: torch warns about Ray's own arrays, which are read-only.
            yield int(batch.pop("step")[0]), {name: np.array(column[0]) for name, column in batch.items()}

    return feed


_LOADERS: dict[tuple[str, int, int], Any] = {}


def _loader(job: TrainJob, rank: int, world_size: int) -> Any:
    """The loader of this reading process, made once: opening the shards costs more than reading a block."""
    key = (job.checkpoints_uri, rank, world_size)
    if key not in _LOADERS:
        from training.feed import make_loader

        _LOADERS.clear()
        _LOADERS[key] = make_loader(job, rank, world_size)
    return _LOADERS[key]
