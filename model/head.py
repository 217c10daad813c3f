"""The product of hidden states with a table, and the interface of a model that has one: `TableModel`.

The product is fast for a few positions, also on a CPU. A product of a few rows with a large table is limited by reading
the table. The CPU libraries behind PyTorch use one core for such a product, and read column by column for two rows or
more. A batch of products with parts of the table uses all cores. At 32,000 x 256 on two cores it is 7 times faster for
1 row, 9 times for 2, and 2.5 times for 8 (`make bench` shows the effect on decoding). The sums differ only in their
order.

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
"""largest number of rows for which a batch of products is faster"""
MOST_PARTS = 64
"""largest number of parts of the table"""


class TableModel(Protocol):
    """A model whose outputs are products of its hidden states with a table.

    The table of `Gemma2` is the embedding, and the products are logits before the soft cap. Losses, captures and
    evaluations take any such model, so they also work for a head with another table, such as one row for a reward.
    """

    @property
    def config(self) -> Gemma2Config:
        """Sizes of the model, and the soft cap."""

    @property
    def table(self) -> Tensor:
        """The table [V, D], with one row for each output."""

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
    """The largest number of equal parts of the vocabulary, up to `MOST_PARTS`."""
    return max(parts for parts in range(1, MOST_PARTS + 1) if vocabulary % parts == 0)
