"""Sums of bit patterns, which show that numbers are still the computed ones; cheap, and independent of order.

A checksum is the sum of the 32-bit patterns of all elements, modulo 2^32: the same however a tensor is divided or
walked, and another whenever one bit is flipped. Each step sums its weights before and after it and its gradients
(`training/step.py`). Weights that change between two steps are noticed at the next step, workers that disagree at
once, and a wrong computation when the step is computed again (`python -m pipelines replay`). Cost: three reads of the
weights per step, within the noise of a step's matrix products.

Each sum reaches the host as two halves of 16 bits, which float32 holds exactly, in the one vector that a step returns.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def checksum(tensors: Sequence[Tensor]) -> Tensor:
    """float32 [2]: the lower and upper 16 bits of the sum of all elements' bit patterns, of float32 tensors."""
    return halves(bit_sum(tensors))


def bit_sum(tensors: Sequence[Tensor]) -> Tensor:
    """The same sum as an int32 scalar that has wrapped around: the sums of a tensor's parts add up to its sum."""
    assert all(tensor.dtype == torch.float32 for tensor in tensors), "weights, moments and gradients are float32"
    if tensors[0].device.type == "cpu":
        # numpy's sum of int32 is ten times as fast as torch's, and wraps around without a warning.
        sums = [np.add.reduce(tensor.detach().numpy().view(np.int32).reshape(-1), dtype=np.int32) for tensor in tensors]
        return torch.tensor(int(np.add.reduce(sums, dtype=np.int32)), dtype=torch.int32)
    total = torch.zeros((), dtype=torch.int32, device=tensors[0].device)
    for tensor in tensors:
        total = total + tensor.detach().view(torch.int32).sum(dtype=torch.int32)
    return total


def halves(total: Tensor) -> Tensor:
    """The lowest 32 bits of an integer scalar, as float32 [2]."""
    return torch.stack([(total & 0xFFFF).float(), ((total >> 16) & 0xFFFF).float()])


def from_halves(low: float, high: float) -> int:
    """The sum from its halves, 0 to 2^32 - 1."""
    return int(high) << 16 | int(low)
