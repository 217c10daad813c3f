"""The product of hidden states with the embedding table, fast for a few positions on a CPU too.

A matrix product of a few rows with a large table is bound by reading the table. The CPU libraries behind PyTorch give
such a product to one core, and read column by column for two rows or more; a batch of products with parts of the table
goes to all cores: at 32,000 x 256 on two cores 7 times faster for 1 row, 9 for 2, 2.5 for 8 (`make bench` shows what
that does to decoding). The sums are the same up to their order.

Shapes: D model, V vocabulary.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

FEW_ROWS = 16
"""beyond, the ordinary product is as fast"""
MOST_PARTS = 64


def table_product(hidden: Tensor, weight_VD: Tensor) -> Tensor:
    """hidden [..., D] @ weight.T, as [..., V], in their common dtype."""
    rows = math.prod(hidden.shape[:-1])
    parts = _parts(len(weight_VD))
    if hidden.device.type != "cpu" or not 0 < rows <= FEW_ROWS or parts == 1:
        return F.linear(hidden, weight_VD)
    hidden_pDR = hidden.reshape(rows, -1).T.expand(parts, -1, -1)
    products_pvR = torch.bmm(weight_VD.unflatten(0, (parts, -1)), hidden_pDR)
    return products_pvR.flatten(0, 1).T.reshape(*hidden.shape[:-1], -1)


def _parts(vocabulary: int) -> int:
    """The largest number of equal parts, up to `MOST_PARTS`."""
    return max(parts for parts in range(1, MOST_PARTS + 1) if vocabulary % parts == 0)
