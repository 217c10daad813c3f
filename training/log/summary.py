"""What the loop reports about a step, and about a run."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """One finished step, summed over all workers."""

    step: int
    """Number of the step, counted from 1."""
    loss_sum: float
    """Sum of the loss over all targets, in nats."""
    targets: int
    """Number of targets."""
    learning_rate: float
    """Learning rate of the step."""
    grad_norm: float
    """Norm of the mean gradient before clipping."""
    tokens_seen: int
    """Number of targets of all steps so far."""
    bad: bool = False
    """Whether loss or gradient was not finite, or the loss was a spike; then the weights stayed as they were."""
    weights_checksum: int = 0
    """Checksum of the weights after the step (training/backends/checksum.py)."""
    gradients_checksum: int = 0
    """Checksum of the summed gradients."""

    @property
    def loss(self) -> float:
        """Mean loss of the step, in nats per target."""
        return self.loss_sum / max(1, self.targets)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSummary:
    """What a finished `run_training` did."""

    checkpoint_uri: str
    """Directory of the last checkpoint."""
    first_step: int
    """Steps that were done before this call (0, or the steps of the checkpoint that it started from)."""
    steps: int
    """Steps that are done now."""
    tokens_seen: int
    """Number of targets of all steps, earlier calls included."""
    loss: float | None
    """Mean loss of the last step, in nats per target; None: no step was left to do."""
    device: str
    """Device that the run used: xla, cuda or cpu."""
    workers: int
    """Processes that shared each step."""
    compiles: int
    """Number of compiled programs."""
    loop_seconds: float
    """Time from the first batch to the last checkpoint, in seconds."""
    steps_per_second: float
    """Speed over the steps after the first two, which compile; 0: there were no further steps."""
    metrics: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Goodput, seconds by cause, percentiles of steps, share of waiting for data (training/log/run_log.py)."""
