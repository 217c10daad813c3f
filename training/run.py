"""The moving parts of a training run, which `training/loop.py` drives step by step.

    train(batch) -> train_step, values stay on the device -> flush(): read, check, report -> save(): a checkpoint

Values are read every few steps, so that the host prepares steps while the device computes earlier steps.
"""

import dataclasses
import logging
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from data.changes import Changes
from data.schema import METRICS
from model import Gemma2
from training.backends.base import Backend, SlotColumns, exchange
from training.checkpoints.background import BackgroundSaver
from training.checkpoints.files import Writer, state_sizes
from training.checkpoints.identity import check_can_be_carried_on, check_identity
from training.checkpoints.lineage import LineageRecorder
from training.checkpoints.records import checkpoint_uri, list_commits
from training.checkpoints.retention import apply_retention
from training.checkpoints.save_load import (
    ALONE,
    Checkpoint,
    check_same_model,
    load_checkpoint,
    load_newest,
    save_checkpoint,
)
from training.checkpoints.setups import SetupRecord, running_setup
from training.checkpoints.state import restore_state, snapshot_state
from training.errors import StoppedError
from training.faults import BadStep, WeightsWatch, bad_step_message, checksums, worst_rows
from training.feed import Feed, HostBatch
from training.job import TrainJob
from training.log.goodput import Meter
from training.log.run_log import MetricsLog, Tell
from training.log.summary import StepMetrics
from training.objective import loss_function
from training.optim import init_state, learning_rate, step_scalars
from training.step import COMPUTE_TYPES, train_step

logger = logging.getLogger(__name__)


FETCH_STEPS = 10
"""Steps between two readings of values: the host prepares steps while the device computes earlier steps."""


COMPILED_STEPS = 2
"""Steps at the start that compile, on a device that compiles."""


MODEL_COLUMNS = ("tokens", "segment_ids", "positions", "loss_mask")
TARGETS = "target_"
"""Prefix of the columns of a batch that a kind of cached distribution makes."""


def device_columns(batch: HostBatch) -> dict[str, np.ndarray]:
    """The columns that the step needs on the device."""
    return {name: column for name, column in batch.items() if name in MODEL_COLUMNS or name.startswith(TARGETS)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Message:
    """What a worker sends to the other workers after a step."""

    ends: tuple[bool, ...]
    """Answer of its `Drain`; empty: no answer."""
    sums: np.ndarray | None
    """Checksums of the steps whose values were read (`WeightsWatch.sums`); None: no values were read."""
    rows: SlotColumns | None
    """Its rows since the last checkpoint (`LineageRecorder.columns`); None: no checkpoint is made."""


class Run:
    """The moving parts: model, moments, and the rows that the next checkpoint will hold."""

    def __init__(
        self,
        job: TrainJob,
        backend: Backend,
        on_step: Callable[[StepMetrics], None] | None,
        meter: Meter,
        feed: Feed,
        tell: Tell | None,
    ) -> None:
        self.job, self.backend, self.on_step, self.meter, self.feed = job, backend, on_step, meter, feed
        self.changes = job.changes or Changes(directory=job.checkpoints_uri)
        self.changes.check()  # before anything is read: a worker of a driver that slept ends here
        self.loss = loss_function(job.config, job.codec, backend.run_head)
        self.saver = BackgroundSaver()
        self.lineage = LineageRecorder(job, backend)
        self.metrics: list[dict[str, Any]] = []
        self.pending: deque[tuple[int, Tensor]] = deque()
        self.read: tuple[list[int], list[list[float]]] = [], []
        self.last_metrics: StepMetrics | None = None
        self.checkpoint_uri = ""
        self.interim_before = any(commit.get("interim") for _, commit in list_commits(job.checkpoints_uri))
        self.step = self.tokens_seen = 0
        self.model = Gemma2(job.config.model, seed=job.config.seed)
        self.writer = self._writer()
        checkpoint = self._start()
        self.first_step = self.step
        before = checkpoint.state["setups"] if checkpoint is not None and checkpoint.interim else ()
        self.setups = SetupRecord(running_setup(job.setup, backend).record(), self.step, before)
        if len(set(backend.gather(np.array([self.step])).tolist())) > 1:
            raise StoppedError(
                "the workers read different checkpoints; give a --root on storage that all workers share, and run again"
            )
        backend.place_model(self.model, training=True, compute_dtype=COMPUTE_TYPES[job.config.compute_dtype])
        config, parameters = job.config, {name: parameter.detach() for name, parameter in self.model.named_parameters()}
        wanted = config.optimizer.average_decay > 0, config.spike_sigmas > 0
        self.optimizer = init_state(parameters, *wanted, zeros=backend.zeros_like)
        if checkpoint is not None and checkpoint.optimizer is not None:
            restore_state(backend, checkpoint.optimizer, self.optimizer)
        backend.step_boundary()
        self.watch = WeightsWatch(backend, checkpoint.state.get("weights_checksum") if checkpoint else None)
        self.log = MetricsLog(job, meter, self.first_step, backend, tell)

    def _writer(self) -> Writer:
        """The writer of the checkpoints: the first worker, or every worker if each holds parts of the tensors."""
        backend, config = self.backend, self.job.config
        if not backend.snapshot_by_all:
            return ALONE
        attempt = int(backend.gather(np.array([secrets.randbits(62)]))[0])
        parameters = {
            name: parameter.numel() * parameter.element_size() for name, parameter in self.model.named_parameters()
        }
        average, statistics = config.optimizer.average_decay > 0, config.spike_sigmas > 0
        sizes = state_sizes(parameters, average=average, statistics=statistics)
        return Writer(rank=backend.rank, count=backend.world_size, attempt=f"{attempt:016x}", sizes=sizes)

    def _start(self) -> Checkpoint | None:
        """Sets the first weights and the first step; returns the checkpoint that the moments come from."""
        job = self.job
        checkpoint = load_newest(job.checkpoints_uri, rename=self.backend.rank == 0, changes=self.changes)
        if checkpoint is not None:
            check_identity(checkpoint, job)
            if checkpoint.interim:
                self.lineage.restore(checkpoint.tables["lineage"])
                self.metrics += checkpoint.tables["metrics"].to_pylist()
        elif job.carried_uri is not None:
            check_same_model(job.carried_uri, job.config.model)
            check_can_be_carried_on(job.carried_uri, job)
            checkpoint = load_checkpoint(job.carried_uri)
        elif job.initial_uri is not None:
            check_same_model(job.initial_uri, job.config.model)
            self.model.load_state_dict(load_checkpoint(job.initial_uri, with_optimizer=False).weights)
        if checkpoint is not None:
            self.checkpoint_uri = checkpoint.uri
            self.model.load_state_dict(checkpoint.weights)
            self.step, self.tokens_seen = checkpoint.step, checkpoint.state["tokens_seen"]
        return checkpoint

    def train(self, batch: HostBatch) -> None:
        config = self.job.config
        scalars = np.array(step_scalars(config.optimizer, self.step, config.steps), np.float32)
        rows = len(batch["tokens"])
        width = self.job.setup.microbatch_rows or rows
        columns = device_columns(batch)
        arrays = {"scalars": scalars}
        for start in range(0, rows, width):
            arrays |= {f"{name}/{start}": batch[name][start : start + width] for name in columns}
        on_device = self.backend.to_device(arrays)
        values = train_step(
            self.model,
            self.loss,
            self.optimizer,
            [{name: on_device[f"{name}/{start}"] for name in columns} for start in range(0, rows, width)],
            on_device["scalars"],
            config.optimizer,
            self.backend,
            compute_dtype=COMPUTE_TYPES[config.compute_dtype],
            spike_sigmas=config.spike_sigmas,
        )
        self.backend.step_boundary()
        self.step += 1
        self.pending.append((self.step, values))
        self.lineage.add(self.step, batch["refs"], batch["sequence_hash"])
        self.meter.step_ended()

    def exchange(self, *, reads: bool, saves: bool = False, ends: tuple[bool, ...] = ()) -> list[Message]:
        """What all workers must know of each other after a step, in rank order: one exchange at most.

        `reads`: values for `flush`; `saves`: rows for `save`; `ends`: the answer of this worker's `Drain`.
        """
        if reads:
            steps = [step for step, _ in self.pending]
            self.read = steps, self.backend.fetch([values for _, values in self.pending])
            self.pending.clear()
        own = Message(
            ends=ends,
            sums=self.watch.sums(self.read[1]) if reads else None,
            rows=self.lineage.columns() if saves else None,
        )
        return exchange(self.backend, own) if reads or saves or ends else [own]

    def flush(self, everyone: Sequence[Message]) -> None:
        """Reports the values that `exchange` has read, and checks them. Raises `BadStep` and `Corrupted`."""
        steps, fetched = self.read
        config = self.job.config
        all_metrics = []
        for step, values in zip(steps, fetched, strict=True):
            loss_sum, targets, grad_norm, bad, *_ = values
            self.tokens_seen += round(targets)
            sums = checksums(values)
            self.last_metrics = StepMetrics(
                step=step,
                loss_sum=loss_sum,
                targets=round(targets),
                learning_rate=learning_rate(config.optimizer, step - 1, config.steps),
                grad_norm=grad_norm,
                tokens_seen=self.tokens_seen,
                bad=bool(bad),
                weights_checksum=sums["weights_after"],
                gradients_checksum=sums["gradients"],
            )
            all_metrics.append(self.last_metrics)
            if self.on_step is not None:
                self.on_step(self.last_metrics)
        rows = [dataclasses.asdict(metrics) for metrics in all_metrics]
        self.metrics += rows
        if steps:
            self.log.steps(rows, max(0, COMPILED_STEPS - (steps[0] - 1 - self.first_step)))
        self.watch.check(steps, fetched, [message.sums for message in everyone if message.sums is not None])
        for metrics in all_metrics:
            if metrics.bad:
                self._meet_bad_step(metrics)

    def _meet_bad_step(self, metrics: StepMetrics) -> None:
        names = self.lineage.rows_of(metrics.step)
        self.log.event("bad_step", step=metrics.step, loss=metrics.loss, grad_norm=metrics.grad_norm, rows=names)
        if self.job.on_bad_step == "skip":
            logger.warning("step %d was skipped: loss %g, gradient %g", metrics.step, metrics.loss, metrics.grad_norm)
            return
        _, batch = next(iter(self.feed(metrics.step - 1, metrics.step)))
        columns = device_columns(batch)
        rows = worst_rows(self.model, self.loss, columns, names, self.backend)
        self.log.event("bad_rows", step=metrics.step, rows=rows)
        raise BadStep(bad_step_message(metrics.step, metrics.loss, metrics.grad_norm, rows))

    def save(self, everyone: Sequence[Message], interim: bool = False) -> None:
        """Takes a snapshot and hands it to the thread that writes it; called after `flush`."""
        with self.meter.spent("save"):
            tables = {
                "metrics": pa.Table.from_pylist(self.metrics, schema=METRICS),
                "lineage": self.lineage.table([message.rows for message in everyone if message.rows is not None]),
            }
            if self.backend.rank == 0 or self.backend.snapshot_by_all:
                self._hand_over(tables, interim)
        if not interim:
            self.metrics = []
            self.lineage.clear()
            self.setups.saved(self.step)
        self.log.summarize(self.step, checkpoint=True)

    def _hand_over(self, tables: dict[str, pa.Table], interim: bool) -> None:
        self.saver.wait()  # before the snapshot: two snapshots at once would need twice the memory
        job, config = self.job, self.job.config
        weights = {name: parameter.detach() for name, parameter in self.model.named_parameters()}
        host_weights, state = snapshot_state(self.backend, weights, self.optimizer, self.writer)
        step = self.step
        about = {
            "step": step,
            "tokens_seen": self.tokens_seen,
            "weights_checksum": self.last_metrics.weights_checksum if self.last_metrics else None,
            "identity": job.identity(),
            "setups": self.setups.listed(),
        }
        self.checkpoint_uri = checkpoint_uri(job.checkpoints_uri, step)

        interim_before, self.interim_before = self.interim_before, interim

        def write() -> None:
            save_checkpoint(
                job.checkpoints_uri,
                step=step,
                weights=host_weights,
                optimizer=state,
                state=about,
                tables=tables,
                interim=interim,
                writer=self.writer,
                changes=self.changes,
            )
            if self.writer.rank > 0:
                return
            if config.keep_last is not None or interim_before:
                apply_retention(job.checkpoints_uri, config.keep_last, config.keep_every_steps, self.changes)

        self.saver.submit(write)
