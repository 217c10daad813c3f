"""A training step on one GPU against `transformers` and the GPU's measured matmul peak; no ray, no torch_xla:

    python -m tests.benchmarks.train_step --device cuda [--size 2b] [--length 8192] [--steps 5]

Our side is this benchmark's own path: `train_model --device cuda` has plain attention and computes in float32, unless
`--compute-dtype bfloat16` is given. Both sides have float32 weights and moments, bfloat16 in between (transformers by
autocast, the way its users get it), and one row. Soft cap and window are inside a fused attention (PyTorch's
flex_attention). The loss works in chunks. Without a GPU it prints "not run" and exits with 0. `--device cpu` runs the
same code in float32 without fusing, only for tests: its figures mean nothing.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from model import Attention, Gemma2, Gemma2Config, Placement, gemma2_2b, gemma2_tiny, train_flops_per_token
from tests.benchmarks.step_speed import Row
from tests.programs.reference import in_transformers
from training.backends.torch_backend import TorchBackend
from training.config import OptimizerConfig
from training.loss import next_token_loss
from training.optim import init_state, step_scalars
from training.step import train_step

SIZES: dict[str, Callable[[], Gemma2Config]] = {"2b": gemma2_2b, "tiny": gemma2_tiny}


def fused_attention(compiled: bool = True) -> Attention:
    """flex_attention with the mask of model/attention.py: masked blocks are skipped, and scores are not stored."""
    kernel: Any = torch.compile(flex_attention, dynamic=False) if compiled else flex_attention
    masks: dict[int | None, tuple[Placement, BlockMask]] = {}

    def block_mask(query: Placement, window: int | None) -> BlockMask:
        if window not in masks or masks[window][0] is not query:
            positions, segments = query.positions, query.segment_ids

            def seen(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
                distance = positions[b, q] - positions[b, k]
                same = (segments[b, q] == segments[b, k]) & (distance >= 0)
                return same if window is None else same & (distance < window)

            rows, length = positions.shape
            masks[window] = query, create_block_mask(seen, rows, None, length, length, device=str(positions.device))
        return masks[window][1]

    def attention(
        q_BTNH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor, query: Placement, key: Placement, *, window: int | None,
        scale: float, softcap: float,
    ) -> Tensor:  # fmt: skip
        def capped(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return softcap * torch.tanh(score / softcap)

        q_BNTH, k_BKSH, v_BKSH = (x.transpose(1, 2) for x in (q_BTNH, k_BSKH, v_BSKH))
        out_BNTH = kernel(
            q_BNTH, k_BKSH, v_BKSH, score_mod=capped, block_mask=block_mask(query, window), scale=scale, enable_gqa=True
        )
        return out_BNTH.transpose(1, 2)

    return attention


def our_step(config: Gemma2Config, device: str, length: int) -> Callable[[], float]:
    """One step of the product's own train_step. Returns the mean loss."""
    backend = TorchBackend("cuda" if device == "cuda" else "cpu")
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    torch.manual_seed(0)
    with torch.device(device):
        model = Gemma2(config)
    model.attention = fused_attention(compiled=device == "cuda")
    if device == "cuda":
        for layer in model.model.layers:
            layer.mlp.compile()  # the products stay; gate, gelu and up become one pass over memory
            for norm in (layer.input_layernorm, layer.post_attention_layernorm,
                         layer.pre_feedforward_layernorm, layer.post_feedforward_layernorm):  # fmt: skip
                norm.compile()
    state = init_state({name: parameter.detach() for name, parameter in model.named_parameters()})
    optimizer = OptimizerConfig(learning_rate=1e-5)
    scalars = torch.tensor(step_scalars(optimizer, 0, 100), device=device)
    mask = torch.ones(1, length, dtype=torch.bool, device=device)
    mask[:, -1] = False
    batch = {
        "tokens": _tokens(config, length).to(device),
        "segment_ids": torch.ones(1, length, dtype=torch.int32, device=device),
        "positions": torch.arange(length, dtype=torch.int32, device=device)[None],
        "loss_mask": mask,
    }

    def step() -> float:
        loss_sum, targets, *_ = train_step(
            model, next_token_loss, state, [batch], scalars, optimizer, backend, compute_dtype=dtype
        ).tolist()
        return float(loss_sum / targets)

    return step


def transformers_step(config: Gemma2Config, device: str, length: int, attention: str) -> Callable[[], float]:
    """The same step by transformers and torch's fused AdamW. Returns the loss."""
    torch.manual_seed(0)
    with torch.device(device):
        model = in_transformers(Gemma2(config)).train()
    model.set_attn_implementation(attention)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=device == "cuda")
    tokens = _tokens(config, length).long().to(device)

    def step() -> float:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.item())

    return step


def _tokens(config: Gemma2Config, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, config.vocab_size, (1, length), generator=generator, dtype=torch.int32)


def matmul_peak(device: str, dtype: torch.dtype, size: int) -> float:
    """Operations a second of the fastest of some products of square matrices."""
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2.0 * size**3 / min(_timed(lambda: torch.mm(left, right), device, 10))


def _timed(call: Callable[[], object], device: str, rounds: int) -> list[float]:
    """Seconds of each call, after three calls to warm up."""
    seconds = []
    for number in range(rounds + 3):
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        if number >= 3:
            seconds.append(time.perf_counter() - began)
    return seconds


def rows(size: str = "2b", device: str = "cuda", length: int = 8192, steps: int = 5) -> Iterator[Row]:
    """Speed against transformers, the share of the peak (MFU), and peak memory of each side."""
    config = SIZES[size]()
    if device == "cuda":
        torch.set_float32_matmul_precision("high")
    peak = matmul_peak(device, torch.bfloat16 if device == "cuda" else torch.float32, 8192 if device == "cuda" else 512)
    sides: dict[str, Callable[[], Callable[[], float]]] = {"ours": partial(our_step, config, device, length)}
    for attention in ("eager", "flex_attention"):
        sides[f"transformers {attention}"] = partial(transformers_step, config, device, length, attention)
    rates: dict[str, float] = {}
    for name, make in sides.items():
        rate, memory, failed = _measured(make, device, length, steps, may_fail=name != "ours")
        if rate:
            rates[name] = rate
        share = f", MFU {rate * train_flops_per_token(config, length) / peak:.1%}" if rate else ""
        text = failed or f"{rate:,.0f} tok/s{share}, {memory / 1e9:.1f} GB"
        ratio = f"{rates['ours'] / rate:.2f}x" if rate and name != "ours" and "ours" in rates else ""
        what = f"train step, {size}, {length} tokens, {device}; matmul peak {peak / 1e12:,.1f} TFLOP/s"
        ours, rival = (text, "") if name == "ours" else ("", f"{name}: {text}")
        yield Row(what=what if name == "ours" else "  against", ours=ours, rival=rival, ratio=ratio)


def _measured(
    make: Callable[[], Callable[[], float]], device: str, length: int, steps: int, *, may_fail: bool
) -> tuple[float, int, str]:
    """(tokens a second, peak bytes, reason of a failure). A rival's failure is a result; our own is an error."""
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        seconds = statistics.median(_timed(make(), device, steps))
    except (ValueError, NotImplementedError, RuntimeError) as error:  # torch.OutOfMemoryError is one of them
        if not may_fail:
            raise
        return 0.0, 0, f"refused: {str(error).splitlines()[0][:80]}"
    return length / seconds, torch.cuda.max_memory_allocated() if device == "cuda" else 0, ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", choices=tuple(SIZES), default="2b")
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=5)
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print("train step on a GPU: not run (PyTorch sees no GPU here)")
        return 0
    if given.device == "cuda":
        print(torch.cuda.get_device_name())
    for row in rows(given.size, given.device, given.length, given.steps):
        print("  ".join(part for part in (row.what, row.ours, row.rival, row.ratio) if part), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
