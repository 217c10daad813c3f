"""The training loop: from the newest committed checkpoint to the last step, the same on every device.

    feed -> host batch -> device -> train_step -> (every few steps) metrics -> (every so often) checkpoint

Steps count from 0 inside, and from 1 in metrics, lineage and checkpoint names ("after step 100"). The order of rows
is a pure function of the step, so continuing at step s means asking the feed for step s. Values are read from the
device every FETCH_STEPS steps, not at each: `on_step` hears of steps in order, a little late.
"""

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from data import storage
from data.logits import CodecSpec
from data.schema import LINEAGE, METRICS
from model import Gemma2
from training.backend import Backend
from training.checkpoint import (
    Checkpoint,
    check_same_model,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from training.config import TrainingConfig, TrainJob
from training.loss import (
    LossFunction,
    RunHead,
    distill_full_loss,
    distill_loss,
    distill_topk_loss,
    loop_head,
    next_token_loss,
)
from training.optim import OptimizerState, init_state, learning_rate, step_scalars
from training.step import train_step

FETCH_STEPS = 10
"""steps between reading values back: the host prepares steps while the device works on earlier ones"""

DEVICE_COLUMNS = ("tokens", "segment_ids", "positions", "loss_mask", "target_ids", "target_counts", "target_log_probs",
                  "target_tail", "target_probs")  # fmt: skip
"""columns of a batch that the step needs on the device"""

HostBatch = Mapping[str, np.ndarray]
Feed = Callable[[int, int], Iterable[tuple[int, HostBatch]]]
"""(start_step, stop_step) -> this worker's (step, batch), in order"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepReport:
    """One finished step, summed over all workers."""

    step: int
    """from 1"""
    loss_sum: float
    """nats over all targets"""
    targets: int
    """number of targets"""
    learning_rate: float
    """of the step"""
    grad_norm: float
    """of the mean gradient before clipping"""
    tokens_seen: int
    """targets of all steps so far"""

    @property
    def loss(self) -> float:
        """Mean loss of the step, in nats a target."""
        return self.loss_sum / max(1, self.targets)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSummary:
    """What a finished `run_training` did."""

    checkpoint_uri: str
    """the last checkpoint"""
    first_step: int
    """steps that were done before this run began (0, or those of the checkpoint it continued from)"""
    steps: int
    """steps that are done now"""
    tokens_seen: int
    """targets of all steps, earlier runs included"""
    loss: float | None
    """mean loss of the last step, in nats a target (None where nothing was left to do)"""
    device: str
    """the device it ran on: xla, cuda, cpu"""
    workers: int
    """processes that shared each step"""
    compiles: int
    """programs compiled"""
    loop_seconds: float
    """time from the first batch to the last checkpoint"""
    steps_per_second: float
    """over the steps after the first two, which compile; 0 where there were no more"""


def run_training(
    job: TrainJob, backend: Backend, feed: Feed, on_step: Callable[[StepReport], None] | None = None
) -> TrainSummary:
    """Trains to `job.config.steps` and returns what was done; `on_step` is called with every step, in order.

    Raises ValueError where the newest checkpoint belongs to another config or other data, RuntimeError where the
    lease was lost.
    """
    _use_threads(job.cpu_threads)
    run = _Run(job, backend, on_step)
    config = job.config
    began = time.perf_counter()
    warm: float | None = None
    for step, batch in feed(run.first_step, config.steps):
        assert step == run.step, f"the feed gave step {step} for step {run.step}"
        run.train(batch)
        if run.step - run.first_step == 2:
            run.flush()
            warm = time.perf_counter()
        if run.step % config.checkpoint_every_steps == 0 or run.step == config.steps:
            run.save()
        elif run.step % FETCH_STEPS == 0:
            run.flush()
    if run.step != config.steps:
        raise RuntimeError(f"the feed ended after step {run.step} of {config.steps}")
    ended = time.perf_counter()
    timed = config.steps - run.first_step - 2
    return TrainSummary(
        checkpoint_uri=run.checkpoint_uri,
        first_step=run.first_step,
        steps=run.step,
        tokens_seen=run.tokens_seen,
        loss=run.last_report.loss if run.last_report else None,
        device=backend.name,
        workers=backend.world_size,
        compiles=backend.compiles(),
        loop_seconds=ended - began,
        steps_per_second=timed / (ended - warm) if warm is not None and timed > 0 else 0.0,
    )


def loss_function(config: TrainingConfig, codec: CodecSpec | None, run_head: RunHead = loop_head) -> LossFunction:
    """The loss that the config's objective and the kind of cached logits name."""
    if config.objective == "next_token":
        return partial(next_token_loss, run_head=run_head)
    if codec is None:
        raise ValueError("objective 'distill' needs to know what the cached logits are; pass their codec")
    distill = config.distill
    mix: dict[str, Any] = {"temperature": distill.temperature, "alpha": distill.alpha, "run_head": run_head}
    if codec.draws is not None:
        return partial(distill_loss, draws=codec.draws, **mix)
    if codec.estimator == "topk":
        return partial(distill_topk_loss, tail=distill.tail, **mix)
    return partial(distill_full_loss, **mix)


class _Run:
    """The moving parts: model, moments, and the rows to be written with the next checkpoint."""

    def __init__(self, job: TrainJob, backend: Backend, on_step: Callable[[StepReport], None] | None) -> None:
        self.job, self.backend, self.on_step = job, backend, on_step
        self.loss = loss_function(job.config, job.codec, backend.run_head)
        self.checkpoint_uri = latest_checkpoint(job.checkpoints_uri) or ""
        self.step = self.tokens_seen = 0
        self.model = Gemma2(job.config.model, seed=job.config.seed)
        checkpoint = load_checkpoint(self.checkpoint_uri) if self.checkpoint_uri else None
        if checkpoint is not None:
            _check_identity(checkpoint, job)
            self.model.load_state_dict(checkpoint.weights)
            self.step, self.tokens_seen = checkpoint.step, checkpoint.state["tokens_seen"]
        elif job.initial_uri is not None:
            check_same_model(job.initial_uri, job.config.model)
            self.model.load_state_dict(load_checkpoint(job.initial_uri, with_optimizer=False).weights)
        self.first_step = self.step
        backend.place_model(self.model, training=True)
        parameters = {name: parameter.detach() for name, parameter in self.model.named_parameters()}
        self.optimizer = init_state(parameters)
        if checkpoint is not None and checkpoint.optimizer is not None:
            backend.restore(checkpoint.optimizer.first, self.optimizer.first)
            backend.restore(checkpoint.optimizer.second, self.optimizer.second)
        backend.step_boundary()
        self.pending: deque[tuple[int, Tensor]] = deque()
        self.metrics: list[StepReport] = []
        self.lineage: list[tuple[int, np.ndarray, np.ndarray]] = []
        self.last_report: StepReport | None = None

    def train(self, batch: HostBatch) -> None:
        config = self.job.config
        scalars = np.array(step_scalars(config.optimizer, self.step, config.steps), np.float32)
        rows = len(batch["tokens"])
        width = self.job.microbatch_rows or rows
        columns = [name for name in DEVICE_COLUMNS if name in batch]
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
        )
        self.backend.step_boundary()
        self.step += 1
        self.pending.append((self.step, values))
        self.lineage.append((self.step, batch["refs"], batch["sequence_hash"]))

    def flush(self) -> None:
        """Reads the values of the steps since the last time."""
        fetched = self.backend.fetch([values for _, values in self.pending])
        config = self.job.config
        for (step, _), (loss_sum, targets, grad_norm) in zip(self.pending, fetched, strict=True):
            self.tokens_seen += round(targets)
            self.last_report = StepReport(
                step=step,
                loss_sum=loss_sum,
                targets=round(targets),
                learning_rate=learning_rate(config.optimizer, step - 1, config.steps),
                grad_norm=grad_norm,
                tokens_seen=self.tokens_seen,
            )
            self.metrics.append(self.last_report)
            if self.on_step is not None:
                self.on_step(self.last_report)
        self.pending.clear()

    def save(self) -> None:
        self.flush()
        lineage = self._lineage_table()
        if self.backend.rank == 0:
            tensors = {f"weights/{name}": parameter.detach() for name, parameter in self.model.named_parameters()}
            tensors |= {f"first/{name}": tensor for name, tensor in self.optimizer.first.items()}
            tensors |= {f"second/{name}": tensor for name, tensor in self.optimizer.second.items()}
            host = self.backend.snapshot(tensors)
            self.checkpoint_uri = save_checkpoint(
                self.job.checkpoints_uri,
                step=self.step,
                weights=_under("weights/", host),
                optimizer=OptimizerState(first=_under("first/", host), second=_under("second/", host)),
                state={
                    "step": self.step,
                    "tokens_seen": self.tokens_seen,
                    "identity": self.job.identity(),
                    "setup": {
                        "device": self.backend.name,
                        "workers": self.backend.world_size,
                        "microbatch_rows": self.job.microbatch_rows,
                        "cpu_threads": self.job.cpu_threads,
                        "remat": self.backend.remat,
                    },
                },
                tables={"metrics": self._metrics_table(), "lineage": lineage},
                before_commit=lambda: check_lease(self.job),
            )
        self.metrics.clear()
        self.lineage.clear()

    def _metrics_table(self) -> pa.Table:
        rows = [dataclasses.asdict(report) for report in self.metrics]
        return pa.Table.from_pylist(rows, schema=METRICS)

    def _lineage_table(self) -> pa.Table:
        """The rows of all workers since the last checkpoint, in the order of steps and slots."""
        backend, rows = self.backend, self.job.worker_rows
        steps = np.repeat(np.array([step for step, _, _ in self.lineage], np.int64), rows)
        slots = np.tile(np.arange(backend.rank * rows, (backend.rank + 1) * rows, dtype=np.int32), len(self.lineage))
        refs = np.concatenate([refs for _, refs, _ in self.lineage])
        hashes = np.concatenate([hashes for _, _, hashes in self.lineage])
        steps, slots, refs, hashes = (backend.gather(part) for part in (steps, slots, refs, hashes))
        order = np.lexsort((slots, steps))
        names = pa.array([dataset.name for dataset, _ in self.job.sequences])
        columns: list[Any] = [
            steps[order],
            slots[order],
            names.take(pa.array(refs[order, 0])),
            refs[order, 1],
            refs[order, 2],
            hashes[order],
        ]
        return pa.Table.from_arrays([pa.array(column) for column in columns], schema=LINEAGE)


def check_lease(job: TrainJob) -> None:
    """Raises RuntimeError where the lease file is gone or no longer carries the job's token."""
    if job.lease_uri is None or job.lease_token is None:
        return
    try:
        held = job.lease_token.encode() in storage.read_bytes(job.lease_uri)
    except FileNotFoundError:
        held = False
    if not held:
        raise RuntimeError(
            f"the lease {job.lease_uri} is not ours any more: another driver has taken over this run; this one stops "
            "without committing its checkpoint"
        )


def _check_identity(checkpoint: Checkpoint, job: TrainJob) -> None:
    saved, ours = checkpoint.state["identity"], job.identity()
    differing = sorted(_differences(saved, ours))
    if differing:
        raise ValueError(
            f"{checkpoint.uri} belongs to another run: {'; '.join(differing)}; "
            "give this run another checkpoints directory, or the config and inputs of that one"
        )


def _differences(saved: Any, ours: Any, path: str = "") -> Iterable[str]:
    if isinstance(saved, dict) and isinstance(ours, dict):
        for name in saved.keys() | ours.keys():
            yield from _differences(saved.get(name), ours.get(name), f"{path}.{name}" if path else name)
    elif saved != ours:
        yield f"{path} was {saved!r} and is {ours!r}"


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _use_threads(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
