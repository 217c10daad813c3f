"""The head's product is the plain one, whatever the number of rows and the size of the table."""

import pytest
import torch
from torch.nn import functional as F

from model.head import table_product


@pytest.mark.parametrize("vocabulary", [97, 1000, 8192])
@pytest.mark.parametrize("shape", [(0, 24), (1, 24), (3, 1, 24), (16, 24), (17, 24), (24,)])
def test_parts_of_the_table_give_the_whole_product(vocabulary: int, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(vocabulary, 24, generator=generator, dtype=torch.float64, requires_grad=True)
    product, expected = table_product(hidden, weight), F.linear(hidden, weight)
    torch.testing.assert_close(product, expected)
    factor = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        torch.autograd.grad((product * factor).sum(), (hidden, weight)),
        torch.autograd.grad((expected * factor).sum(), (hidden, weight)),
    )
