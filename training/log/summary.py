"""What the loop tells of a step, and of a run."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepMetrics:
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
    bad: bool = False
    """whether loss or gradient were not finite, or the loss a spike: the weights stayed as they were"""
    weights_checksum: int = 0
    """of the weights after the step (training/backends/checksum.py)"""
    gradients_checksum: int = 0
    """of the summed gradients"""

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
    metrics: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """goodput and where the time went, percentiles of steps, share of waiting for data (training/log/run_log.py)"""
