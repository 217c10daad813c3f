"""Training steps of one side in a separate process, which has its own peak memory:

    python -m tests.benchmarks.step_run ours|transformers xla|cpu VOCABULARY ROWS LENGTH STEPS

Prints one line of JSON: seconds of each step after the first, and the process's peak memory in bytes before and after.
"""

import json
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial

os.environ.setdefault("PJRT_DEVICE", "CPU")

import numpy as np
import torch

from model import Gemma2, Gemma2Config
from tests.programs.reference import in_transformers
from training.backends.base import Backend
from training.backends.make import make_backend
from training.config import OptimizerConfig
from training.loss import LossOptions, next_token_loss
from training.optim import init_state, step_scalars
from training.setup import Setup
from training.step import train_step


def config(vocab_size: int) -> Gemma2Config:
    """d256 L4, a size that two cores can train."""
    return Gemma2Config(
        vocab_size=vocab_size, d_model=256, layers=4, heads=4, kv_heads=2, head_dim=64, ffw_dim=1024, window=256,
        query_scale=64,
    )  # fmt: skip


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(side: str, device: str, vocab_size: str, rows: str, length: str, steps: str) -> None:
    warnings.simplefilter("ignore")  # of the rival
    size = config(int(vocab_size))
    tokens = np.random.default_rng(0).integers(500, size.vocab_size, (int(rows), int(length)), dtype=np.int32)
    if side == "ours":
        backend = make_backend(Setup(device="xla" if device == "xla" else "cpu"))
    before = peak_bytes()
    step = our_step(size, tokens, backend) if side == "ours" else transformers_step(size, tokens)
    seconds = []
    for _ in range(int(steps) + 1):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    print(json.dumps({"seconds": seconds[1:], "before_bytes": before, "peak_bytes": peak_bytes()}))


def our_step(config: Gemma2Config, tokens: np.ndarray, backend: Backend) -> Callable[[], object]:
    model = Gemma2(config)
    backend.place_model(model, training=True)
    state = init_state({name: parameter.detach() for name, parameter in model.named_parameters()})
    backend.step_boundary()
    optimizer = OptimizerConfig(learning_rate=1e-4)
    loss = partial(next_token_loss, options=LossOptions(run_head=backend.run_head))
    mask = np.ones(tokens.shape, bool)
    mask[:, -1] = False
    arrays = {
        "tokens": tokens,
        "segment_ids": np.ones_like(tokens),
        "positions": np.tile(np.arange(tokens.shape[1], dtype=np.int32), (len(tokens), 1)),
        "loss_mask": mask,
        "scalars": np.array(step_scalars(optimizer, 0, 100), np.float32),
    }

    def step() -> object:
        batch = backend.to_device(arrays)
        scalars = batch.pop("scalars")
        values = train_step(model, loss, state, [batch], scalars, optimizer, backend)
        backend.step_boundary()
        return backend.fetch([values])

    return step


def transformers_step(config: Gemma2Config, tokens: np.ndarray) -> Callable[[], object]:
    model = in_transformers(Gemma2(config)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    batch = torch.tensor(tokens, dtype=torch.long)

    def step() -> object:
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


if __name__ == "__main__":
    main(*sys.argv[1:])
