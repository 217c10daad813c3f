"""Softmax weights of a large vocabulary in blocks of about V^(1/3) ids, for draws and for the most likely ids.

On a CPU a function of logits is faster on parts that fit the caches: `in_cache`.

Shapes: P positions, V vocabulary, B blocks, W ids in a block, N chosen blocks.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

CACHED_ELEMENTS = 2**21
"""Logits that are processed at once on a CPU, so that all passes over them stay in the CPU's caches."""


def block_weights(logits_PV: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """exp((logits - highest) * factor) as [P, B, W], zero beyond the vocabulary, and the highest logits [P, 1]."""
    width = 1 << max(1, round(math.log2(logits_PV.shape[1]) / 3))
    highest_P1 = logits_PV.amax(-1, keepdim=True)
    weights_PV = logits_PV - highest_P1
    if factor != 1.0:
        weights_PV = weights_PV.mul_(factor)
    return in_blocks(weights_PV.exp_(), width), highest_P1


def in_blocks(values_PV: Tensor, width: int) -> Tensor:
    """[P, V] as [P, B, W], filled up with zeros."""
    missing = -values_PV.shape[1] % width
    if missing:
        values_PV = F.pad(values_PV, (0, missing))
    return values_PV.unflatten(1, (-1, width))


def take(parts_PBW: Tensor, block_PN: Tensor) -> Tensor:
    """[P, N, W]: the chosen blocks of each position."""
    rows_P1 = torch.arange(len(parts_PBW), device=parts_PBW.device)[:, None]
    return parts_PBW[rows_P1, block_PN]


def in_cache(work: Callable[..., tuple[Tensor, ...]], *rows: Tensor) -> tuple[Tensor, ...]:
    """`work` over parts of the rows that fit a CPU's caches; on other devices over all rows at once."""
    count, vocabulary = rows[0].shape
    size = max(1, CACHED_ELEMENTS // vocabulary)
    if rows[0].device.type != "cpu" or count <= size:
        return work(*rows)
    parts = [work(*part) for part in zip(*(tensor.split(size) for tensor in rows), strict=True)]
    return tuple(torch.cat(together) for together in zip(*parts, strict=True))
