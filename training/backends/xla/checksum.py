"""Sums of bit patterns inside the traced step.

torch_xla has no lowering for a view as another type, and would fetch the tensor to the host in the middle of a step.
So the reinterpretation is XLA's own BitcastConvertType, passed in as a computation of one operation.
"""

import functools
from collections.abc import Sequence

import torch
import torch_xla
import torch_xla.core.xla_builder as xb
from torch import Tensor

from training.backends.checksum import halves


def checksum(tensors: Sequence[Tensor]) -> Tensor:
    """`training.backends.checksum.checksum` for float32 tensors on an XLA device."""
    total = torch.zeros((), dtype=torch.int32, device=tensors[0].device)
    for tensor in tensors:
        tensor = tensor.detach()
        (bits,) = torch_xla._XLAC._xla_user_computation(
            "training::bits", [tensor], _bitcast(tuple(tensor.shape), tensor.dtype)
        )
        total = total + bits.sum(dtype=torch.int32)
    return halves(total)


@functools.cache
def _bitcast(shape: tuple[int, ...], dtype: torch.dtype) -> object:
    assert dtype == torch.float32, f"got {dtype}: weights, moments and gradients are float32"
    parameter = xb.mkparam(xb.create_builder("bits"), 0, xb.mkshape(xb.Type.F32, shape))
    return parameter.bitcast(xb.Type.S32).build("bits")
