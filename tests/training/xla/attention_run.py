"""What `test_attention.py` looks at: `python -m tests.training.xla.attention_run`."""

import json
from typing import Any

import numpy as np
import torch
import torch_xla
from torch import Tensor

from model import attend
from model.attention import Attention, Placement
from training.xla.attention import splash_attention

B, T, N, K, H = 2, 256, 4, 2, 128


def placement() -> Placement:
    """Two documents, one over a block's edge, then padding; and one document alone."""
    positions = np.stack([np.concatenate([np.arange(150), np.arange(T - 150)]), np.arange(T)])
    segment_ids = np.stack([np.repeat([1, 2, 0], [150, 90, T - 240]), np.ones(T, int)])
    return Placement(torch.tensor(positions.astype(np.int32)), torch.tensor(segment_ids.astype(np.int32)))


def output_and_gradients(attention: Attention, device: Any, window: int | None) -> list[Tensor]:
    """Of what is no padding; the soft cap bends the scores."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(B, T, N, H), (B, T, K, H), (B, T, K, H)]
    q, k, v = (torch.randn(shape, generator=generator).to(device).requires_grad_() for shape in shapes)
    where = Placement(*(tensor.to(device) for tensor in placement()))
    out = attention(q, k, v, where, where, window=window, scale=H**-0.5, softcap=2.0)
    out = out * (where.segment_ids > 0)[..., None, None]
    gradients = torch.autograd.grad(out.sin().sum(), (q, k, v))
    torch_xla.sync()
    return [tensor.detach().cpu() for tensor in (out, *gradients)]


def main() -> dict[str, Any]:
    device = torch_xla.device()
    kernel = splash_attention(interpret=True)
    found = {}
    for window in (None, 1, 100, 128):
        expected = output_and_gradients(attend, "cpu", window)
        got = output_and_gradients(kernel, device, window)
        found[str(window)] = [float((one - other).abs().max()) for one, other in zip(got, expected, strict=True)]
    return {"differences": found}


if __name__ == "__main__":
    print(json.dumps(main()))
