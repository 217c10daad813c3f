"""The product of hidden states with a table, and what a model needs for one: `TableModel`.

The product is fast for a few positions on a CPU too.
A matrix product of a few rows with a large table is bound by reading the table. The CPU libraries behind PyTorch give
such a product to one core, and read column by column for two rows or more; a batch of products with parts of the table
goes to all cores: at 32,000 x 256 on two cores 7 times faster for 1 row, 9 for 2, 2.5 for 8 (`make bench` shows what
that does to decoding). The sums are the same up to their order.

Shapes: D model, V vocabulary.
"""

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from model.cache import Cache
from model.config import Gemma2Config

FEW_ROWS = 16
"""beyond, the ordinary product is as fast"""
MOST_PARTS = 64


class TableModel(Protocol):
    """A model whose outputs are products of its hidden states with a table.

    Of `Gemma2` the table is the embedding, and the products are logits before the soft cap. Losses, captures and
    evaluations take any such model, so a head with another table, of one row for a reward, fits them.
    """

    @property
    def config(self) -> Gemma2Config:
        """Sizes, and the soft cap."""

    @property
    def table(self) -> Tensor:
        """[V, D], one row an output."""

    def hidden(
        self,
        tokens_BT: Tensor,
        positions: Tensor | None = None,
        segment_ids: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Hidden states [B, T, D]; arguments as in `Gemma2.hidden`."""


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
