"""The measurements of `test_attention.py`: `python -m tests.programs.attention_run`.

With the word `all`, more windows and each remat.
"""

import dataclasses
import json
import sys
from collections.abc import Iterable
from typing import Any, get_args

import numpy as np
import torch
import torch_xla
import torch_xla.core.xla_builder as xb
import torch_xla.runtime as xr
from torch import Tensor

from model import attend
from model.attention import Attention, Placement
from model.sharding import MeshShape
from tests.programs.xla_examples import example_batch, example_config, largest_difference, loss_and_gradients
from training.backends.torch_backend import TorchBackend
from training.backends.xla.attention import LANES, _backward, _Call, _forward, splash_attention
from training.backends.xla.backend import XlaBackend
from training.config import Remat

B, T, N, K, H = 2, 2 * LANES, 4, 2, LANES


def placement() -> Placement:
    """Two documents, one of them across the edge of a block, then padding; and one document alone."""
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


def kernel_differences(windows: Iterable[int | None]) -> dict[str, list[float]]:
    """By window: differences of the output and of the gradients of queries, keys and values."""
    device = torch_xla.device()
    by_window = {}
    for window in windows:
        expected = output_and_gradients(attend, "cpu", window)
        got = output_and_gradients(splash_attention(interpret=True), device, window)
        by_window[str(window)] = [
            float((actual - other).abs().max()) for actual, other in zip(got, expected, strict=True)
        ]
    return by_window


def model_differences(remats: Iterable[Remat]) -> dict[str, float]:
    """Differences in scanned layers, with each remat, on one device and on a mesh."""
    config = dataclasses.replace(example_config(2), head_dim=LANES, window=50)
    batch = example_batch(rows=2, length=LANES)
    expected = loss_and_gradients(config, TorchBackend("cpu"), "next_token", batch)
    by_remat = {}
    for remat in remats:
        mesh = MeshShape(data=2, model=2) if remat == "full" else None
        attention = splash_attention(mesh, interpret=True)
        got = loss_and_gradients(config, XlaBackend(remat=remat, mesh=mesh), "next_token", batch, attention)
        by_remat[remat] = largest_difference(got, expected)
    return by_remat


def kernels_in_tpu_programs() -> list[int]:
    """Calls of the kernel in the program for a TPU, forward and backward. Nothing of it is run here."""
    call = _Call(2, 2 * LANES, 8, 4, LANES, torch.bfloat16, 100, 50.0, MeshShape(data=2, model=2), False)
    return [xb.get_computation_hlo(program(call)).count("tpu_custom_call") for program in (_forward, _backward)]


def refusal(head_dim: int, length: int, cache: bool) -> str:
    where = Placement(torch.zeros(1, length, dtype=torch.int32), torch.ones(1, length, dtype=torch.int32))
    q = torch.zeros(1, length, 2, head_dim)
    key = Placement(*where) if cache else where
    try:
        splash_attention(interpret=True)(q, q, q, where, key, window=None, scale=1.0, softcap=50.0)
    except (ValueError, AssertionError) as error:
        return str(error)
    return ""


def main(*words: str) -> dict[str, Any]:
    everything = words == ("all",)
    xr.use_spmd()
    xr.global_runtime_device_count()  # starts the client, before PyTorch's engine counts devices once for all
    return {
        "kernel": kernel_differences((None, 1, 100, 128) if everything else (None, 100)),
        "model": model_differences(get_args(Remat) if everything else ("none", "full")),
        "tpu": kernels_in_tpu_programs(),
        "refused": [refusal(64, LANES, False), refusal(LANES, 100, False), refusal(LANES, LANES, True)],
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
