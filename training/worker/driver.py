"""The driver's side of a run under Ray Train.

    train_under_ray(job) in the driver -> Ray Train's controller
        -> on each worker: backend + feed + run_training -> TrainSummary

Ray Train places the workers, sets their environment before torch_xla is imported, and starts them again after a
failure. We choose the checkpoint to continue from ourselves (`run_training` looks for the newest committed one), so Ray
stores nothing. Progress goes through Ray's key-value store: through Ray Train it would be logged at INFO, one line for
each step.

Cost: a run starts two processes, the controller and a worker. The controller unpickles what it is given, so objects
that would make it import torch travel as bytes, and imports of ours are inside functions. Ray must be initialized.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import pickle
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import ray
import ray.train
from ray.train.backend import BackendConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

from infra.ray_private import PlacementGroupCleanerCallback, RayTrainError, dashboard_url, kv_delete, kv_get
from training.errors import UserError
from training.worker.budgets import CountedFailures, Counts, Limits, UsedUp
from training.worker.elastic import START_SECONDS, ElasticPolicy
from training.worker.on_worker import train_on_worker
from training.worker.places import TpuSlices
from training.worker.restarts import train_through_restarts
from training.worker.sizes import allowed_workers
from training.worker.slices import XlaConfig, hold_broken_slices, scaling_config
from training.worker.stops import stopping_on_signals
from training.worker.warm import Process, train_in_warm_process
from training.worker.watch import looking

if TYPE_CHECKING:
    from training.backends.abilities import Abilities
    from training.job import TrainJob
    from training.log.summary import StepMetrics, TrainSummary

logger = logging.getLogger(__name__)

PROGRESS_SECONDS = 1.0

# Ray Train reads these in the driver or hands them on; a variable that the caller has set stays as it is.
RAY_TRAIN_ENVIRONMENT = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative URIs mean the same in the worker
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # the controller notices the end of a run this late (default: 2)
}
ELASTIC_ENVIRONMENT = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": START_SECONDS}
# Services that only work with, or only feed, a dashboard: without a dashboard they are useless processes and threads.
WITHOUT_DASHBOARD_ENVIRONMENT = {
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION": "0",
}
# If the only node is taken away, there is no other node to go to.
ONE_NODE_ENVIRONMENT = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}


def train_under_ray(
    job: TrainJob,
    *,
    cpus_per_worker: float = 1.0,
    resources_per_worker: Mapping[str, float] | None = None,
    tpu: TpuSlices | None = None,
    max_failures: int = 0,
    max_preemptions: int = -1,
    fewest_workers: int | None = None,
    on_progress: Callable[[StepMetrics], None] | None = None,
    ray_storage_uri: str | None = None,
    warm: Process | None = None,
) -> TrainSummary:
    """Runs the job under Ray Train and returns its summary.

    `resources_per_worker` adds to the CPUs. With `tpu` the workers are on whole TPU slices, one on each host.
    `max_failures` limits how often the workers are started again after a worker or Ray's controller died,
    `max_preemptions` how often after a machine was taken away (-1: without limit). Both are counted over all
    controllers of this call (training/worker/budgets.py). With `fewest_workers` the run goes on with at least that many
    workers if nodes are missing, and grows up to `job.setup.workers` as nodes come (elastic.py). `on_progress` is
    called about once a second with the newest step, in a thread. `ray_storage_uri` is for Ray's own bookkeeping
    (default: a temporary directory; workers on several nodes need a directory that all of them can reach). With `warm`,
    a job of one worker that reads its rows itself runs in that process without Ray Train (training/worker/warm.py),
    which saves the time to start and changes nothing else.

    The first SIGTERM or Ctrl-C ends the run behind a checkpoint of its current step: `Drained`, from training.faults.

    Raises the worker's own error, with the worker's traceback as a note if it is a bug, and `UsedUp`, from
    training.worker.budgets, if workers, controllers or machines were lost more often than the limits allow.
    """
    from training.backends.devices import TPU_DEVICE, resolve_device
    from training.backends.make import abilities_of

    device = TPU_DEVICE if tpu else resolve_device(job.setup.device)
    job = dataclasses.replace(job, setup=dataclasses.replace(job.setup, device=device))
    abilities = abilities_of(device)
    abilities.check_workers(job.setup.workers, on_slices=tpu is not None and tpu.workers > 1)
    sizes = allowed_workers(job, fewest_workers or job.setup.workers, tpu.hosts if tpu else 1)
    if job.feed == "ray":
        _check_room_for_feed(sizes[0] * cpus_per_worker)
    resources = {"CPU": cpus_per_worker, **(resources_per_worker or {})}
    progress_key = f"training-progress/{os.getpid()}/{job.checkpoints_uri}".encode()
    ask_key = f"training-ask/{os.getpid()}/{job.checkpoints_uri}".encode()
    counts_key = f"training-counts/{os.getpid()}/{job.checkpoints_uri}".encode()
    limits = Limits(failures=max_failures, preemptions=max_preemptions)
    elastic = len(sizes) > 1
    config = {"job": pickle.dumps(job), "progress_key": progress_key, "ask_key": ask_key}
    with contextlib.ExitStack() as stack:
        stack.callback(kv_delete, counts_key)
        stack.enter_context(stopping_on_signals(ask_key))
        if on_progress is not None:
            stack.enter_context(_watching(progress_key, on_progress))
        if warm is not None:
            if tpu is None and sizes == (1,) and job.feed == "direct":
                return _summary(train_in_warm_process(warm, job, config, limits, counts_key))
            warm.close()  # a GPU that it has used is needed now
        if ray_storage_uri is None:
            ray_storage_uri = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        one_node = len(ray.nodes()) == 1 and not elastic
        environment = RAY_TRAIN_ENVIRONMENT | (ELASTIC_ENVIRONMENT if elastic else {})
        environment |= {} if _has_dashboard() else WITHOUT_DASHBOARD_ENVIRONMENT
        stack.enter_context(_environment(environment | (ONE_NODE_ENVIRONMENT if one_node else {})))

        def make_trainer(deaths: int) -> Trainer:
            return Trainer(
                train_on_worker,
                sizes=sizes,
                ask_key=ask_key,
                counts_key=counts_key,
                train_loop_config=config,
                backend_config=backend_config(abilities, job.setup.workers, tpu),
                scaling_config=scaling_config(sizes, resources, tpu, use_gpu=abilities.accelerator == "GPU"),
                run_config=ray.train.RunConfig(
                    name=f"train-{deaths}",  # Ray's notes about an earlier controller do not count
                    storage_path=ray_storage_uri,
                    failure_config=ray.train.FailureConfig(
                        max_failures=limits.failures, max_preemption_failures=limits.preemptions
                    ),
                ),
            )

        stack.enter_context(hold_broken_slices(tpu))
        try:
            return _summary(train_through_restarts(make_trainer, limits, counts_key))
        except TrainingFailedError as error:
            raise _own_error(error, Counts.read(counts_key).used_up(limits)) from error


def _summary(outcome: bytes) -> TrainSummary:
    """The summary that a worker returned. Raises the error that a worker returned instead."""
    summary: TrainSummary | BaseException = pickle.loads(outcome)
    if isinstance(summary, BaseException):
        raise summary
    return summary


class Trainer(DataParallelTrainer):
    """Ray's trainer, with our policies for failures and elastic runs, and without a watchdog that asks a dashboard.

    The watchdog asks the dashboard's state API whether the controller is alive. Without a dashboard each question
    times out after 10 s, the watchdog learns nothing, and the controller waits for the last question at the end of
    every run.
    """

    def __init__(
        self, *arguments: Any, sizes: tuple[int, ...], ask_key: bytes, counts_key: bytes, **settings: Any
    ) -> None:
        super().__init__(*arguments, **settings)
        self._sizes, self._ask_key, self._counts_key = sizes, ask_key, counts_key

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        settings["failure_policy"] = CountedFailures(self.run_config.failure_config, self._counts_key)
        if len(self._sizes) > 1:
            settings["scaling_policy"] = ElasticPolicy(self.scaling_config, self._sizes, self._ask_key)
        return super()._initialize_and_run_controller(**settings)

    def _register_sigint_handler(self, controller: Any) -> None:
        """Does nothing: Ray's handler leaves with exit code 0, without a checkpoint; ours is `stopping_on_signals`."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()
        if _has_dashboard():
            return callbacks
        return [callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)]


def backend_config(abilities: Abilities, workers: int, tpu: TpuSlices | None) -> BackendConfig:
    """How Ray Train joins the workers of a backend."""
    if abilities.joined_by == "XlaConfig":
        return XlaConfig(device="TPU", hosts=tpu.hosts) if tpu else XlaConfig()
    if workers == 1:
        return BackendConfig()  # no other worker to join
    from ray.train.torch import TorchConfig

    return TorchConfig(backend=abilities.process_group)


def _check_room_for_feed(cpus: float) -> None:
    total = ray.cluster_resources().get("CPU", 0)
    if total < cpus + 1:
        raise UserError(
            f"got a cluster of {total:g} CPUs for feed 'ray', which needs one CPU in addition to the workers' "
            f"{cpus:g}; use feed 'direct'"
        )


def _has_dashboard() -> bool:
    try:
        return bool(dashboard_url())
    except Exception:  # not a public interface: after an unknown answer Ray's own ways stay
        return True


def _own_error(error: TrainingFailedError, used_up: str) -> BaseException:
    """The error that a worker raised, out of Ray's wrapping; UsedUp if a worker died; otherwise Ray's own error.

    Of several workers' errors, an error that is no bug counts first: the errors of other workers may follow from it.
    """
    if not isinstance(error, WorkerGroupError) or not error.worker_failures:
        return UsedUp(f"a machine was taken away; {used_up}") if used_up else error
    failures = [_unwrapped(error.worker_failures[rank]) for rank in sorted(error.worker_failures)]
    if used_up and any(isinstance(failure, ray.exceptions.RayError | RayTrainError) for failure in failures):
        return UsedUp(f"a training worker died; {used_up}")  # the errors of the other workers follow from that
    failure = next((failure for failure in failures if hasattr(type(failure), "exit_code")), failures[0])
    if used_up and getattr(type(failure), "exit_code", None) != UserError.exit_code:
        logger.warning("the workers failed through an error of their own; %s", used_up)
    failure.add_note(f"a training worker failed:\n{error}")
    return failure


def _unwrapped(failure: BaseException) -> BaseException:
    while isinstance(failure, ray.exceptions.RayError | RayTrainError) or not hasattr(type(failure), "exit_code"):
        inner = getattr(failure, "cause", None) or getattr(failure, "_base_exc", None) or failure.__cause__
        if not isinstance(inner, BaseException):
            return failure
        failure = inner
    return failure


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Sets the variables that are not set, while the context is open."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextlib.contextmanager
def _watching(key: bytes, on_progress: Callable[[StepMetrics], None]) -> Iterator[None]:
    from training.log.summary import StepMetrics

    last = 0

    def look() -> None:
        nonlocal last
        if (value := kv_get(key)) is not None:
            metrics = StepMetrics(**json.loads(value))
            if metrics.step != last:
                last = metrics.step
                on_progress(metrics)

    try:
        with looking("training progress", look, PROGRESS_SECONDS):
            yield
    finally:
        kv_delete(key)
