"""One optimizer step: the only function that is traced and compiled, so everything in it depends on shapes alone.

Gradients of the SUM of losses are taken for each micro-batch, added in float32, summed over workers together with the
loss and the count, and divided once by the number of targets inside the optimizer. Parameters and moments change in
place, unless the step is bad: then nothing changes, and the host learns of the bad step when it reads the values.

If parameters are divided over workers, each worker updates its own parts; norms and checksums are over all parts.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from model import Gemma2
from training.backends.base import Backend
from training.config import OptimizerConfig
from training.loss import Batch, LossFunction
from training.optim import OptimizerState, adamw_, loss_is_spike, update_statistics_

COMPUTE_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""The types that `TrainingConfig.compute_dtype` names."""

VALUES = (
    "loss_sum",
    "targets",
    "grad_norm",
    "bad",
    *(f"{name}_{half}" for name in ("weights_before", "gradients", "weights_after") for half in ("low", "high")),
)
"""Values that a step returns, float32 each; the checksums in halves of 16 bits (training/backends/checksum.py)."""


def train_step(
    model: Gemma2,
    loss_function: LossFunction,
    state: OptimizerState,
    micro_batches: Sequence[Batch],
    scalars: Tensor,
    config: OptimizerConfig,
    backend: Backend,
    *,
    compute_dtype: torch.dtype = torch.float32,
    spike_sigmas: float = 0.0,
) -> Tensor:
    """Updates `model` and `state` in place; returns the VALUES, float32 on the device.

    `scalars` is `optim.step_scalars(...)` of this step on the device. Forward and backward run in `compute_dtype`, from
    a copy of the weights if the weights have another type. Counts are exact up to 2^24 targets in a step.
    """
    named = dict(model.named_parameters())
    weights_before = backend.checksum(list(backend.parts(named).values()))
    gradients, sums = backend.gradients(model, loss_function, micro_batches, compute_dtype)
    parameters = backend.parts(named)  # taken again: the first forward may move them
    moments = _parts_of(state, backend)
    backend.all_reduce_([*gradients, sums])
    gradient_scale = 1.0 / sums[1].clamp(min=1.0)
    of_gradients = backend.checksum(gradients)
    loss, norm = sums[0] * gradient_scale, backend.norm(gradients) * gradient_scale
    keep = torch.isfinite(loss) & torch.isfinite(norm)
    if state.loss_statistics is not None:
        keep = keep & ~loss_is_spike(state.loss_statistics, loss, spike_sigmas)
        update_statistics_(state.loss_statistics, loss, keep)
    adamw_(parameters, gradients, moments, scalars, gradient_scale, config, norm, keep)
    weights_after = backend.checksum(list(parameters.values()))
    return torch.cat([sums, norm[None], (~keep).float()[None], weights_before, of_gradients, weights_after])


def _parts_of(state: OptimizerState, backend: Backend) -> OptimizerState:
    """The moments as `backend.parts` returns them, in the same memory."""
    return dataclasses.replace(
        state,
        first=backend.parts(state.first),
        second=backend.parts(state.second),
        average=None if state.average is None else backend.parts(state.average),
    )
