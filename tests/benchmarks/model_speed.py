"""Train step and decoding against `transformers`, eager: the only attention it has for Gemma 2 with a soft cap."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from model import Gemma2, Gemma2Config, generate
from tests.model.reference import in_transformers
from training.backend import Backend, make_backend
from training.config import OptimizerConfig
from training.loss import next_token_loss
from training.optim import init_state, step_scalars
from training.step import train_step

ROWS, LENGTH = 4, 512
PROMPT_TOKENS, NEW_TOKENS = 64, 64


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Two ways to do one thing."""

    what: str
    amount: int
    unit: str
    ours: Callable[[], object]
    rival_name: str
    rival: Callable[[], object]


def benchmarks() -> Iterator[Benchmark]:
    config = Gemma2Config(
        vocab_size=32_000, d_model=256, layers=4, heads=4, kv_heads=2, head_dim=64, ffw_dim=1024, window=256,
        query_scale=64,
    )  # fmt: skip
    tokens = np.random.default_rng(0).integers(500, config.vocab_size, (ROWS, LENGTH), dtype=np.int32)
    rival = _transformers_step(config, tokens)
    what = f"train step, d256 L4 V32k, {ROWS} x {LENGTH}"
    for device in ("xla", "cpu"):  # xla first: it must meet autograd before a plain CPU backward does
        ours = _our_step(config, tokens, make_backend(device))
        yield Benchmark(
            what=f"{what}, {device}",
            amount=ROWS * LENGTH,
            unit="tok",
            ours=ours,
            rival_name="transformers",
            rival=rival,
        )
    model = Gemma2(config)
    theirs = in_transformers(model)
    for rows in (1, 8):
        prompts = np.random.default_rng(1).integers(500, config.vocab_size, (rows, PROMPT_TOKENS)).tolist()
        yield Benchmark(
            what=f"decode with the cache, batch {rows}",
            amount=rows * NEW_TOKENS,
            unit="tok",
            ours=partial(generate, model, prompts, NEW_TOKENS, temperature=0.0, stop_ids=()),
            rival_name="transformers.generate",
            rival=partial(_generate_theirs, theirs, torch.tensor(prompts)),
        )


def _our_step(config: Gemma2Config, tokens: np.ndarray, backend: Backend) -> Callable[[], object]:
    model = Gemma2(config)
    backend.place_model(model, training=True)
    state = init_state({name: parameter.detach() for name, parameter in model.named_parameters()})
    backend.step_boundary()
    optimizer = OptimizerConfig(learning_rate=1e-4)
    loss = partial(next_token_loss, run_head=backend.run_head)
    mask = np.ones(tokens.shape, bool)
    mask[:, -1] = False
    arrays = {
        "tokens": tokens,
        "segment_ids": np.ones_like(tokens),
        "positions": np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1)),
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


def _transformers_step(config: Gemma2Config, tokens: np.ndarray) -> Callable[[], object]:
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


def _generate_theirs(model: Any, prompts: torch.Tensor) -> Any:
    mask = torch.ones_like(prompts)
    return model.generate(
        prompts,
        attention_mask=mask,
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        do_sample=False,
        pad_token_id=0,
    )
