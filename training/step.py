"""One optimizer step: the only function that is traced and compiled, so everything in it depends on shapes alone.

Gradients of the SUM of losses are taken for each micro-batch, added in float32, summed over workers together with loss
and count, and divided once by the number of targets inside the optimizer. Parameters and moments change in place,
unless the step is bad: then nothing changes, and the host learns of it when it reads the values.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from model import Gemma2
from training.backend import Backend
from training.config import OptimizerConfig
from training.loss import Batch, LossFunction
from training.optim import OptimizerState, adamw_, global_norm, loss_is_spike, update_statistics_

VALUES = (
    "loss_sum",
    "targets",
    "grad_norm",
    "bad",
    *(f"{name}_{half}" for name in ("weights_before", "gradients", "weights_after") for half in ("low", "high")),
)
"""what a step gives, float32 each; the checksums in halves of 16 bits (training/integrity.py)"""


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
    a copy of the weights where that is not theirs. Counts are exact up to 2^24 targets in a step.
    """
    parameters = dict(model.named_parameters())
    weights_before = backend.checksum(list(parameters.values()))
    gradients: list[Tensor] = []
    sums = torch.zeros(2, device=scalars.device)
    lowered = _lowered(parameters, compute_dtype)
    for batch in micro_batches:
        if lowered is None:
            loss_sum, targets = loss_function(model, batch)
            of_batch = torch.autograd.grad(loss_sum, list(parameters.values()))
        else:
            loss_sum, targets = _with_weights(model, lowered, loss_function, batch)
            of_batch = tuple(one.float() for one in torch.autograd.grad(loss_sum, list(lowered.values())))
        if gradients:
            torch._foreach_add_(gradients, of_batch)
        else:
            gradients = list(of_batch)
        sums = sums + torch.stack([loss_sum.detach(), targets])
    backend.all_reduce_([*gradients, sums])
    gradient_scale = 1.0 / sums[1].clamp(min=1.0)
    of_gradients = backend.checksum(gradients)
    loss, norm = sums[0] * gradient_scale, global_norm(gradients) * gradient_scale
    keep = torch.isfinite(loss) & torch.isfinite(norm)
    if state.loss_statistics is not None:
        keep = keep & ~loss_is_spike(state.loss_statistics, loss, spike_sigmas)
        update_statistics_(state.loss_statistics, loss, keep)
    adamw_(parameters, gradients, state, scalars, gradient_scale, config, norm, keep)
    weights_after = backend.checksum(list(parameters.values()))
    return torch.cat([sums, norm[None], (~keep).float()[None], weights_before, of_gradients, weights_after])


def _lowered(parameters: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor] | None:
    """Copies in `dtype` to compute with; None where the parameters have it already."""
    if all(parameter.dtype == dtype for parameter in parameters.values()) or dtype == torch.float32:
        return None
    return {name: parameter.detach().to(dtype).requires_grad_() for name, parameter in parameters.items()}


def _with_weights(
    model: Gemma2, weights: Mapping[str, Tensor], loss_function: LossFunction, batch: Batch
) -> tuple[Tensor, Tensor]:
    """The loss of the model with other weights in the places of its own."""
    named = {f"model.{name}": tensor for name, tensor in weights.items()}
    result: tuple[Tensor, Tensor] = torch.func.functional_call(_Loss(model), named, (loss_function, batch))
    return result


class _Loss(nn.Module):
    """A loss as a module, which is what `functional_call` takes."""

    def __init__(self, model: Gemma2) -> None:
        super().__init__()
        self.model = model

    def forward(self, loss_function: LossFunction, batch: Batch) -> Any:
        return loss_function(self.model, batch)
