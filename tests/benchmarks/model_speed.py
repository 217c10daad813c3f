"""Decoding with the cache against `transformers.generate`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from model import Gemma2, generate
from tests.benchmarks import step_run
from tests.programs.reference import in_transformers

PROMPT_TOKENS, NEW_TOKENS = 64, 64


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Two ways of one computation."""

    what: str
    amount: int
    unit: str
    ours: Callable[[], object]
    rival_name: str
    rival: Callable[[], object]


def benchmarks() -> Iterator[Benchmark]:
    config = step_run.config(32_000)
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
