"""Gradients of the SUM of losses of a worker's micro-batches, added in float32, for models that are whole here.

If weights are divided over workers, `training/backends/fsdp.py` computes the gradients.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from model import Gemma2
from training.loss import Batch, LossFunction


def sum_gradients(
    model: Gemma2, loss_function: LossFunction, micro_batches: Sequence[Batch], compute_dtype: torch.dtype
) -> tuple[list[Tensor], Tensor]:
    """Gradients in the order of the parameters, and float32 [loss_sum, targets].

    Forward and backward run in `compute_dtype`, from a copy of the weights if the weights have another type.
    """
    parameters = dict(model.named_parameters())
    gradients: list[Tensor] = []
    sums = torch.zeros(2, device=next(iter(parameters.values())).device)
    lowered = _lowered(parameters, compute_dtype)
    for batch in micro_batches:
        if lowered is None:
            loss_sum, targets = loss_function(model, batch)
            of_batch = torch.autograd.grad(loss_sum, list(parameters.values()))
        else:
            loss_sum, targets = _with_weights(model, lowered, loss_function, batch)
            of_batch = tuple(gradient.float() for gradient in torch.autograd.grad(loss_sum, list(lowered.values())))
        if gradients:
            torch._foreach_add_(gradients, of_batch)
        else:
            gradients = list(of_batch)
        sums = sums + torch.stack([loss_sum.detach(), targets])
    return gradients, sums


def _lowered(parameters: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor] | None:
    """Copies in `dtype` to compute with; None if the parameters have this type already."""
    if all(parameter.dtype == dtype for parameter in parameters.values()) or dtype == torch.float32:
        return None
    return {name: parameter.detach().to(dtype).requires_grad_() for name, parameter in parameters.items()}


def _with_weights(
    model: Gemma2, weights: Mapping[str, Tensor], loss_function: LossFunction, batch: Batch
) -> tuple[Tensor, Tensor]:
    """The loss of the model with the given weights in place of its own."""
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
