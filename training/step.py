"""One optimizer step: the only function that is traced and compiled, so everything in it depends on shapes alone.

Gradients of the SUM of losses are taken for each micro-batch, added, summed over workers together with loss and
count, and divided once by the number of targets inside the optimizer. Parameters and moments change in place.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from model import Gemma2
from training.backend import Backend
from training.config import OptimizerConfig
from training.loss import Batch, LossFunction
from training.optim import OptimizerState, adamw_


def train_step(
    model: Gemma2,
    loss_function: LossFunction,
    state: OptimizerState,
    micro_batches: Sequence[Batch],
    scalars: Tensor,
    config: OptimizerConfig,
    backend: Backend,
) -> Tensor:
    """Updates `model` and `state` in place; returns [loss_sum, targets, grad_norm], float32 on the device.

    `scalars` is `optim.step_scalars(...)` of this step on the device. Counts are exact up to 2^24 targets in a step.
    """
    parameters = dict(model.named_parameters())
    gradients: list[Tensor] = []
    sums = torch.zeros(2, device=scalars.device)
    for batch in micro_batches:
        loss_sum, targets = loss_function(model, batch)
        of_batch = torch.autograd.grad(loss_sum, list(parameters.values()))
        if gradients:
            torch._foreach_add_(gradients, of_batch)
        else:
            gradients = list(of_batch)
        sums = sums + torch.stack([loss_sum.detach(), targets])
    backend.all_reduce_([*gradients, sums])
    gradient_scale = 1.0 / sums[1].clamp(min=1.0)
    norm = adamw_(parameters, gradients, state, scalars, gradient_scale, config)
    return torch.cat([sums, norm[None]])
