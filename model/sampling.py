"""Text generation: prompts in, new tokens out, with a cache of keys and values.

Prompts of different lengths run as one batch, padded on the right. Each row has its own positions. The model runs on
its own device, and each step sends [B, V] logits to the host. There, every row draws with its own generator, seeded by
(seed, prompt, number of earlier prompts that are the same). So the tokens of a row depend on its neighbours only
through the last bits of the logits, which may differ with the shape of the batch.

Cost: one forward pass over the prompts, then one for each token. The cache holds the longest prompt and
`max_new_tokens`.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from model.cache import Cache
from model.errors import UserError
from model.gemma2 import Gemma2

EOS = 1
END_OF_TURN = 107
PROMPT_WIDTH_STEP = 32
"""Width of prompts is padded to a multiple of this, so that a device that compiles sees few widths."""


@torch.no_grad()
def generate(
    model: Gemma2,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop_ids: Sequence[int] = (EOS, END_OF_TURN),
    vocab_size: int | None = None,
    step_boundary: Callable[[], None] | None = None,
) -> list[list[int]]:
    """The new tokens of each prompt, up to `max_new_tokens`. A stop id ends a row, and is its last token.

    Temperature 0 is greedy. Otherwise logits are divided by the temperature, then cut to the `top_k` largest, then to
    the smallest set whose probabilities reach `top_p`. Ids from `vocab_size` on are never chosen: they are padding rows
    of an embedding with more rows than its tokenizer has ids. `step_boundary` is called after each forward pass (on
    XLA: `torch_xla.sync`).
    Raises UserError for numbers out of range, an empty prompt, ids outside the vocabulary, or logits that are not
    finite.
    """
    _check(model, prompts, max_new_tokens, temperature, top_k, top_p, vocab_size)
    if not prompts:
        return []
    table = model.table
    lengths = [len(prompt) for prompt in prompts]
    width = -(-max(lengths) // PROMPT_WIDTH_STEP) * PROMPT_WIDTH_STEP
    rows = len(prompts)
    cache = Cache(
        model.config, batch_rows=rows, max_length=width + max_new_tokens, device=table.device, dtype=table.dtype
    )
    generators = _row_generators(prompts, seed)
    stops = frozenset(stop_ids)
    generated: list[list[int]] = [[] for _ in prompts]
    running = [True] * rows

    # Padding has token 0 and segment 0. Its positions continue the count, so all tokens of a row differ in position.
    tokens_BT = torch.tensor([[*prompt, *([0] * (width - len(prompt)))] for prompt in prompts], dtype=torch.int32)
    positions_BT = torch.arange(width, dtype=torch.int32).expand(rows, width)
    lengths_B = torch.tensor(lengths, dtype=torch.int32)
    segment_ids_BT = (positions_BT < lengths_B[:, None]).to(torch.int32)
    last_B = (lengths_B - 1).long()
    for step in range(max_new_tokens):
        device = table.device
        hidden_BTD = model.hidden(tokens_BT.to(device), positions_BT.to(device), segment_ids_BT.to(device), cache)
        last_B1D = last_B.to(device)[:, None, None].expand(-1, 1, hidden_BTD.shape[-1])
        logits_BV = model.logits(hidden_BTD.gather(1, last_B1D)[:, 0])
        if step_boundary is not None:
            step_boundary()
        logits_BV = logits_BV.cpu()[:, :vocab_size]
        if bad := [row for row in range(rows) if running[row] and not torch.isfinite(logits_BV[row]).all()]:
            raise UserError(
                f"the model's logits are not finite after {step} tokens of prompt {bad[0]}; check its weights"
            )
        if temperature == 0.0:
            chosen = logits_BV.argmax(-1).tolist()
        else:
            chosen = [
                choose(logits_BV[row], generators[row], temperature=temperature, top_k=top_k, top_p=top_p)
                if running[row]
                else None
                for row in range(rows)
            ]
        for row, token in enumerate(chosen):
            if running[row]:
                generated[row].append(token)
                running[row] = token not in stops
        if not any(running):
            break
        tokens_BT = torch.tensor([[row[-1]] for row in generated], dtype=torch.int32)
        positions_BT = (lengths_B + step)[:, None]
        segment_ids_BT = torch.tensor([[int(alive)] for alive in running], dtype=torch.int32)
        last_B = torch.zeros(rows, dtype=torch.int64)
    return generated


def choose(
    logits_V: Tensor,
    generator: torch.Generator,
    *,
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
) -> int:
    """One token from logits [V] on the host. Temperature 0 takes the largest logit; equal logits are ordered by id.

    One uniform number is drawn and looked up in the cumulative distribution, in float64. So a difference in the last
    bits of the logits changes the choice only with a probability of the same size.
    """
    if temperature == 0.0:
        return int(logits_V.argmax())
    scaled_V, ids_V = logits_V.double() / temperature, torch.arange(len(logits_V))
    if top_k is not None or top_p is not None:
        scaled_V, ids_V = torch.sort(scaled_V, descending=True, stable=True)
    probabilities = torch.softmax(scaled_V[:top_k], dim=0)
    if top_p is not None:
        before = probabilities.cumsum(0) - probabilities
        probabilities = probabilities[before < top_p]
    cumulative = probabilities.cumsum(0)
    drawn = torch.rand(1, dtype=torch.float64, generator=generator) * cumulative[-1]
    index = int(torch.searchsorted(cumulative, drawn, right=True))
    return int(ids_V[min(index, len(cumulative) - 1)])


def _row_generators(prompts: Sequence[Sequence[int]], seed: int) -> list[torch.Generator]:
    seen: Counter[tuple[int, ...]] = Counter()
    generators = []
    for prompt in prompts:
        key = tuple(prompt)
        digest = hashlib.sha256(f"{seed}/{seen[key]}/{','.join(map(str, key))}".encode()).digest()
        generators.append(torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little") >> 1))
        seen[key] += 1
    return generators


def _check(
    model: Gemma2,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    vocab_size: int | None,
) -> None:
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens is {max_new_tokens}, but must be at least 1; ask for one token or more")
    if not temperature >= 0.0:
        raise UserError(
            f"temperature is {temperature}, but must be 0 (greedy) or above; give 1 to sample from the model itself"
        )
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k is {top_k}, but must be at least 1; leave it out to keep the whole vocabulary")
    if top_p is not None and not 0.0 < top_p <= 1.0:
        raise UserError(f"top_p is {top_p}, but must be above 0 and at most 1; leave it out to keep all tokens")
    if vocab_size is not None and not 1 <= vocab_size <= model.config.vocab_size:
        raise UserError(
            f"vocab_size is {vocab_size}, but the model has {model.config.vocab_size} ids; give at most that number, "
            "or leave it out to choose among all ids"
        )
    for number, prompt in enumerate(prompts):
        if not prompt:
            raise UserError(f"prompt {number} is empty, but generation needs a first token; begin it with <bos> (2)")
        if not (min(prompt) >= 0 and max(prompt) < model.config.vocab_size):
            raise UserError(
                f"prompt {number} has ids from {min(prompt)} to {max(prompt)}, but the model's vocabulary is 0 to "
                f"{model.config.vocab_size - 1}; encode it with the tokenizer that the model was trained with"
            )
