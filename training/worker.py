"""Training under Ray Train: the one module here that imports ray.

    fit(job) in the driver -> Ray Train's controller -> on each worker: backend + feed + run_training -> TrainSummary

Ray Train places the workers, sets their environment before torch_xla is imported, and starts them again after a
failure; which checkpoint to continue from is our own business (`run_training` looks for the newest committed one), so
Ray stores nothing. Progress travels through Ray's key-value store: a report for each step would be logged at INFO,
one line a step.

Cost: a fit starts two processes, the controller and a worker. The controller unpickles what it is given, so
everything that would make it import torch travels as bytes, and imports of ours are inside functions. Ray has to be
initialised.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import pickle
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import ray.train
from ray.experimental import internal_kv
from ray.train.backend import Backend as RayBackend
from ray.train.backend import BackendConfig
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

if TYPE_CHECKING:
    from training.backend import Backend as TrainBackend
    from training.config import TrainJob
    from training.loop import Feed, HostBatch, StepReport, TrainSummary

logger = logging.getLogger(__name__)

PROGRESS_SECONDS = 1.0
NOTICE_SECONDS = 1.0  # between questions whether the machine is about to go: a question costs some milliseconds
STEPS_IN_BLOCK = 8  # of the Ray feed: enough to hide the cost of a task, few enough to start soon

# Read by Ray Train in the driver or handed on by it; what the caller has set stays as it is.
FIT_ENVIRONMENT = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative URIs mean the same in the worker
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # the controller sees the end of a run this late (default 2)
}
# Services that only work with, or only feed, a dashboard: without one they are processes and threads for nothing.
WITHOUT_DASHBOARD_ENVIRONMENT = {
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION": "0",
}
# On one node there is nowhere to go to when it is taken away.
ONE_NODE_ENVIRONMENT = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}


@dataclasses.dataclass
class XlaConfig(BackendConfig):
    """Ray Train's setup of PyTorch/XLA workers: their environment, before torch_xla is imported."""

    device: str = "CPU"
    """PJRT_DEVICE: CPU or TPU"""

    @property
    def backend_cls(self) -> type[_XlaWorkers]:
        return _XlaWorkers


class _XlaWorkers(RayBackend):
    def on_start(self, worker_group: Any, backend_config: XlaConfig) -> None:
        places = worker_group.execute(_worker_place)
        for index, environment in enumerate(xla_environments(backend_config.device, places)):
            worker_group.execute_single(index, os.environ.update, environment)


def xla_environments(device: str, places: Sequence[tuple[str | None, str]]) -> list[dict[str, str]]:
    """The environment of each worker, from its (TPU_WORKER_ID, address).

    A worker's place in a TPU slice is its TPU_WORKER_ID; its rank says nothing about it, Ray numbers workers as they
    come.
    """
    if device == "CPU":
        return [{"PJRT_DEVICE": "CPU"}] * len(places)
    if len(places) == 1:
        return [{"PJRT_DEVICE": device}]
    ids = [identity for identity, _ in places]
    if sorted(ids, key=str) != sorted(map(str, range(len(places)))):
        raise ValueError(
            f"the workers have the TPU_WORKER_IDs {ids}; a slice of {len(places)} hosts has each id from 0 to "
            f"{len(places) - 1} once: run one worker on each host of one slice"
        )
    hosts = ",".join(address for _, address in sorted(places, key=lambda place: int(place[0] or 0)))
    return [{"PJRT_DEVICE": device, "TPU_WORKER_ID": str(identity), "TPU_WORKER_HOSTNAMES": hosts} for identity in ids]


def fit(
    job: TrainJob,
    *,
    cpus_per_worker: float = 1.0,
    resources_per_worker: Mapping[str, float] | None = None,
    max_failures: int = 0,
    max_preemptions: int = -1,
    on_progress: Callable[[StepReport], None] | None = None,
    ray_storage_uri: str | None = None,
) -> TrainSummary:
    """Runs the job under Ray Train and returns what it did.

    `resources_per_worker` adds to the CPUs (for example {"TPU": 4}). `max_failures` is how often Ray starts the
    workers again after one died, `max_preemptions` after a machine was taken away (-1: always). `on_progress` hears
    about once a second of the newest step, in a thread.
    `ray_storage_uri` is for Ray's own bookkeeping (default: a temporary directory; workers on several nodes need one
    that all of them see).

    Raises what the worker raised where that is an error of ours or of the user (ValueError, RuntimeError, ...).
    """
    from training.backend import check_workers, resolve_device

    job = dataclasses.replace(job, device=resolve_device(job.device))
    check_workers(job.device, job.workers)
    if job.feed == "ray":
        _check_room_for_feed(job.workers * cpus_per_worker)
    resources = {"CPU": cpus_per_worker, **(resources_per_worker or {})}
    progress_key = f"training-progress/{os.getpid()}/{job.checkpoints_uri}".encode()
    with contextlib.ExitStack() as stack:
        if ray_storage_uri is None:
            ray_storage_uri = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        environment = FIT_ENVIRONMENT | ({} if _has_dashboard() else WITHOUT_DASHBOARD_ENVIRONMENT)
        stack.enter_context(_environment(environment | ({} if len(ray.nodes()) > 1 else ONE_NODE_ENVIRONMENT)))
        trainer = _Trainer(
            _train_on_worker,
            train_loop_config={"job": pickle.dumps(job), "progress_key": progress_key},
            backend_config=_backend_config(job, resources),
            scaling_config=ray.train.ScalingConfig(
                num_workers=job.workers, use_gpu=job.device == "cuda", resources_per_worker=resources
            ),
            run_config=ray.train.RunConfig(
                name="train",
                storage_path=ray_storage_uri,
                failure_config=ray.train.FailureConfig(
                    max_failures=max_failures, max_preemption_failures=max_preemptions
                ),
            ),
        )
        if on_progress is not None:
            stack.enter_context(_watching(progress_key, on_progress))
        try:
            outcome = pickle.loads(trainer.fit().return_value)
        except TrainingFailedError as error:
            raise _own_error(error) from error
    if isinstance(outcome, BaseException):
        raise outcome
    summary: TrainSummary = outcome
    return summary


class _Trainer(DataParallelTrainer):
    """Ray's trainer, less a watchdog that cannot work without a dashboard.

    The watchdog asks the dashboard's state API whether the controller is alive. Without a dashboard each question
    times out after 10 s, it never learns anything, and the controller waits for the last question at the end of every
    run.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()
        if _has_dashboard():
            return callbacks
        return [callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)]


def _train_on_worker(config: dict[str, Any]) -> bytes:
    """What each worker runs: a pickled job in, a pickled TrainSummary or ValueError out."""
    from model.flops import train_flops_per_token
    from training.backend import make_backend
    from training.faults import BadStep, Drained
    from training.feed import direct_feed
    from training.loop import run_training
    from training.metrics import StepMeter

    job: TrainJob = pickle.loads(config["job"])
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()

    meter = StepMeter(
        tokens_per_step=job.config.global_batch * job.sequence_length,
        flops_per_token=train_flops_per_token(job.config.model, job.sequence_length),
    )
    told = _Gauges(job) if rank == 0 else None

    def report(step: StepReport) -> None:
        if told is not None:
            internal_kv._internal_kv_put(config["progress_key"], json.dumps(dataclasses.asdict(step)))
            told.tell(step, meter.report(step.step))

    try:
        if job.cpu_threads is None:
            # Ray sets OMP_NUM_THREADS to the CPUs it has booked, 1 by default; the workers here share all of them.
            share = (os.cpu_count() or 1) // context.get_local_world_size()
            job = dataclasses.replace(job, cpu_threads=max(1, share))
        backend = make_backend(job.device, rank, world_size, job.remat, job.mesh)
        feed = ray_feed(job, rank, world_size) if job.feed == "ray" else direct_feed(job, rank, world_size)
        timed: Feed = lambda *steps: meter.timed(feed(*steps))  # noqa: E731 - as short as the thing is
        while True:
            try:
                return pickle.dumps(run_training(job, backend, timed, report, drain=_Notice(backend)))
            except Drained as drained:
                logger.warning("%s", drained)
                _wait_for_the_end()
    except BadStep as error:
        return pickle.dumps(error)  # of every worker alike; the same rows would only meet it again
    except ValueError as error:
        if world_size > 1:
            raise  # the others may be waiting for this worker; Ray stops them
        return pickle.dumps(error)  # not a failure that starting again would mend


class _Gauges:
    """The run's gauges, as training/metrics.py names them, on this node's metrics port."""

    def __init__(self, job: TrainJob) -> None:
        from ray.util.metrics import Gauge

        from training.metrics import METRICS

        self.run = "/".join(job.checkpoints_uri.split("/")[-3:-1])  # stage/fingerprint
        mine = [one for one in METRICS.values() if one.kind == "gauge"]
        self.gauges = {one.name: Gauge(one.name, description=one.help, tag_keys=one.labels) for one in mine}
        self._set("gemma2_train_steps_wanted", job.config.steps)

    def tell(self, step: StepReport, measured: Mapping[str, float]) -> None:
        known = {"loss": step.loss, "grad_norm": step.grad_norm, "learning_rate": step.learning_rate}
        for name, value in {**measured, **{f"gemma2_train_{key}": one for key, one in known.items()}}.items():
            self._set(name, value)

    def _set(self, name: str, value: float) -> None:
        self.gauges[name].set(value, tags={"run": self.run})


class _Notice:
    """Asks Ray whether a machine of ours is about to be taken away.

    The question is a meeting of all workers in Ray's controller: 50 ms for two on one machine. So it is asked when
    the first worker's NOTICE_SECONDS are over, which a cheap exchange after every step tells the others.
    """

    def __init__(self, backend: TrainBackend) -> None:
        self._backend, self._asked = backend, time.monotonic()

    def __call__(self) -> bool:
        due = time.monotonic() - self._asked >= NOTICE_SECONDS
        if not self._backend.gather(np.array([due])).any():
            return False
        self._asked = time.monotonic()
        return ray.train.get_preemption_info() is not None


def _wait_for_the_end() -> None:
    """Behind the checkpoint, until Ray ends this worker: steps taken now would be lost. Returns after a false alarm."""
    while ray.train.get_preemption_info() is not None:
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
                name: np.stack([one[name] for one in loaded]) for name in loaded[0]
            }

        blocks = -(-steps // STEPS_IN_BLOCK)
        dataset = ray.data.range(steps, override_num_blocks=blocks).map_batches(load, batch_size=None)
        for batch in dataset.iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=STEPS_IN_BLOCK):
            yield int(batch.pop("step")[0]), {name: np.ascontiguousarray(column[0]) for name, column in batch.items()}

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


def _backend_config(job: TrainJob, resources: Mapping[str, float]) -> BackendConfig:
    if job.device == "xla":
        return XlaConfig(device="TPU" if resources.get("TPU") else "CPU")
    if job.workers == 1:
        return BackendConfig()  # nobody to talk to
    from ray.train.torch import TorchConfig

    return TorchConfig(backend="nccl" if job.device == "cuda" else "gloo")


def _check_room_for_feed(cpus: float) -> None:
    total = ray.cluster_resources().get("CPU", 0)
    if total < cpus + 1:
        raise ValueError(
            f"feed 'ray' needs one CPU beside the workers' {cpus:g}, and the cluster has {total:g}; use feed 'direct'"
        )


def _worker_place() -> tuple[str | None, str]:
    return os.environ.get("TPU_WORKER_ID"), ray.util.get_node_ip_address()


def _has_dashboard() -> bool:
    try:
        return bool(ray._private.worker.get_dashboard_url())
    except Exception:  # no public question; an answer we do not understand keeps Ray's own ways
        return True


def _own_error(error: TrainingFailedError) -> BaseException:
    """The error that a worker raised, out of Ray's wrapping; Ray's own where no worker raised one."""
    if not isinstance(error, WorkerGroupError) or not error.worker_failures:
        return error
    failure: BaseException = error.worker_failures[min(error.worker_failures)]
    while True:
        inner = getattr(failure, "cause", None) or getattr(failure, "_base_exc", None) or failure.__cause__
        if not isinstance(inner, BaseException):
            return failure
        failure = inner


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Sets what is not set, for a while."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextlib.contextmanager
def _watching(key: bytes, on_progress: Callable[[StepReport], None]) -> Iterator[None]:
    from training.loop import StepReport

    stop = threading.Event()

    def watch() -> None:
        last, stopped = 0, False
        while not stopped:
            stopped = stop.wait(PROGRESS_SECONDS)  # one more look after the end
            if (value := internal_kv._internal_kv_get(key)) is not None:
                report = StepReport(**json.loads(value))
                if report.step != last:
                    on_progress(report)
                    last = report.step

    thread = threading.Thread(target=watch, name="training-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        internal_kv._internal_kv_del(key)
