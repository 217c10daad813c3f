"""The head of a forward pass, a slice of rows x positions at a time, so that the logits of a batch never exist at once.

    hidden [B, T, D], table [V, D], columns [B, T, ...] -> RunSlices
        -> work(logits [P, V], columns [P, ...]) for each slice -> results [B, T, ...]

Work is done for every position, also where there is no target: shapes do not depend on the data, and a chip of a mesh
works on its own rows. Shapes: B batch, T time, D model, V vocabulary, P positions of a slice.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from training.loss_head import product

SLICE_POSITIONS = 128
"""Positions whose logits exist at once: enough rows for an efficient product, 131 MB at 256,000 ids."""

Columns = Mapping[str, Tensor]
Work = Callable[[Tensor, Columns, Columns], tuple[Tensor, ...]]
"""(capped logits [P, V] in float32, columns [P, ...], constants) -> results [P, ...] each."""


class RunSlices(Protocol):
    """The loop over slices; `loop_slices` is the reference, and a backend may provide another loop.

    Returns the results of `work`, [B, T, ...] each. Tensors that are the same for all positions are `constants`: a loop
    that is compiled must know them.
    """

    def __call__(
        self, hidden_BTD: Tensor, weight_VD: Tensor, softcap: float, columns: Columns, constants: Columns, work: Work
    ) -> tuple[Tensor, ...]: ...


def loop_slices(
    hidden_BTD: Tensor, weight_VD: Tensor, softcap: float, columns: Columns, constants: Columns, work: Work
) -> tuple[Tensor, ...]:
    """One slice after another."""
    rows = hidden_BTD.shape[0]
    # On hardware that sums in float32, bfloat16 factors are multiplied as they are; elsewhere as float32.
    factor_VD = weight_VD if weight_VD.is_cuda else weight_VD.float()
    width = max(1, SLICE_POSITIONS // rows)
    cut = [tensor.split(width, dim=1) for tensor in (hidden_BTD.to(factor_VD.dtype), *columns.values())]
    made = []
    for parts in zip(*cut, strict=True):
        hidden_PD, *of_slice = (part.flatten(0, 1) for part in parts)
        logits_PV = capped(product(hidden_PD, factor_VD.T), softcap)
        results = work(logits_PV, dict(zip(columns, of_slice, strict=True)), constants)
        made.append([result.unflatten(0, (rows, -1)) for result in results])
    return tuple(torch.cat(together, dim=1) for together in zip(*made, strict=True))


def capped(products: Tensor, softcap: float) -> Tensor:
    """The soft cap of `Gemma2.logits`, in the memory of the products."""
    return products.div_(softcap).tanh_().mul_(softcap)
