"""What bfloat16 costs, where implementations round: `python -m tests.programs.numerics` prints docs/numerics.md's.

Each function below is one place at which transformers, gemma_pytorch or DeepMind's JAX round and our model does not, or
the reverse. It is written for our model, so that its effect can be measured alone.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import model.gemma2
from model import Gemma2, gemma2_tiny
from model.attention import visible
from tests.programs.reference import in_transformers, lively_model, random_tokens

SEEDS = range(8)


def lower_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """transformers: sines and cosines are rounded to the model's type, and so is each product."""
    cos, sin = (torch.cat((part, part), dim=-1)[:, :, None].to(x.dtype) for part in (cos, sin))
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def lower_softmax(scores: Tensor) -> Tensor:
    """JAX: exponentials, their sum and the quotient in the model's type."""
    exponentials = torch.exp(scores - scores.amax(-1, keepdim=True))
    return exponentials / exponentials.sum(-1, keepdim=True)


def lower_attention(*, query_first: bool = False, softmax: Callable[[Tensor], Tensor] | None = None) -> Any:
    """Scores are scaled and capped in the model's type: in transformers, gemma_pytorch and JAX.

    `query_first`: the query is scaled, not the scores (gemma_pytorch, JAX); `softmax`: where it is not in float32.
    """

    def attend(
        q: Tensor, k: Tensor, v: Tensor, query: Any, key: Any, *, window: Any, scale: float, softcap: float
    ) -> Tensor:
        heads = q.shape[2] // k.shape[2]
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        k, v = k.repeat_interleave(heads, dim=1), v.repeat_interleave(heads, dim=1)
        scores = torch.matmul(q * scale, k.mT) if query_first else torch.matmul(q, k.mT) * scale
        scores = torch.tanh(scores / softcap) * softcap
        scores = scores.masked_fill(~visible(query, key, window)[:, None], torch.finfo(scores.dtype).min)
        weights = softmax(scores) if softmax else torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
        return torch.matmul(weights, v).transpose(1, 2)

    return attend


def lower_norm(self: Any, x: Tensor) -> Tensor:
    """JAX: mean, root and weight in the model's type."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * (1.0 + self.weight)


def lower_head(self: Any, hidden: Tensor) -> Tensor:
    """All three: product and cap of the logits in the model's type."""
    cap = self.config.final_softcap
    logits = torch.nn.functional.linear(hidden, self.model.embed_tokens.weight)
    return (torch.tanh(logits / cap) * cap).float()


VARIANTS: dict[str, dict[str, Any]] = {
    "ours": {},
    "rope tables rounded (transformers)": {"rope": lower_rope},
    "scores scaled and capped in bfloat16 (all three)": {"attention": lower_attention()},
    "the same, query scaled first (gemma_pytorch, JAX)": {"attention": lower_attention(query_first=True)},
    "the same, softmax in bfloat16 too (JAX)": {"attention": lower_attention(query_first=True, softmax=lower_softmax)},
    "norms in bfloat16 (JAX)": {"norm": lower_norm},
    "head and its cap in bfloat16 (all three)": {"head": lower_head},
    "all of transformers'": {"rope": lower_rope, "attention": lower_attention(), "head": lower_head},
    "all of gemma_pytorch's": {"attention": lower_attention(query_first=True), "head": lower_head},
    "all of JAX's": {
        "attention": lower_attention(query_first=True, softmax=lower_softmax), "norm": lower_norm, "head": lower_head,
    },
}  # fmt: skip


@contextmanager
def rounding(
    ours: Gemma2, *, rope: Any = None, attention: Any = None, norm: Any = None, head: Any = None
) -> Iterator[None]:
    """Our model, with the roundings of other implementations."""
    with ExitStack() as stack:
        for owner, name, other in (
            (model.gemma2, "rotate", rope), (ours, "attention", attention), (model.gemma2.RMSNorm, "forward", norm),
            (Gemma2, "logits", head),
        ):  # fmt: skip
            if other is not None:
                stack.enter_context(patch.object(owner, name, other))
        yield


def example(seed: int) -> Gemma2:
    """A model whose numbers do not happen to be exact: sqrt(56), 1 / sqrt(12)."""
    return lively_model(gemma2_tiny(layers=4, d_model=56, query_scale=12, window=9, init_std=0.06), seed=seed)


@torch.no_grad()
def bfloat16_logits(seeds: Iterable[int]) -> Iterator[tuple[Tensor, Tensor, dict[str, Tensor]]]:
    """For each seed: exact logits (float32), those of transformers in bfloat16, and those of each of VARIANTS."""
    for seed in seeds:
        ours = example(seed)
        tokens = random_tokens(4, 32, ours.config, seed)
        exact = ours(tokens)
        theirs = in_transformers(ours, torch.bfloat16)(tokens).logits.float()
        ours.to(torch.bfloat16)
        by_variant = {}
        for name, places in VARIANTS.items():
            with rounding(ours, **places):
                by_variant[name] = ours(tokens)
        yield exact, theirs, by_variant


def rms(difference: Tensor, of: Tensor) -> float:
    """Root mean square, as a share of the standard deviation of `of`."""
    return float(difference.square().mean().sqrt() / of.std())


def mean_rms(pairs: Iterable[tuple[Tensor, Tensor, Tensor]]) -> float:
    shares = [rms(actual - other, of) for actual, other, of in pairs]
    return sum(shares) / len(shares)


def main(say: Callable[[str], None] = print) -> None:
    runs = list(bfloat16_logits(SEEDS))
    say(f"rms over logits as a share of their standard deviation, mean of {len(runs)} models")
    say(f"{'':<52}{'to float32':>12}{'to ours':>12}{'to transformers':>17}")
    rows = {"transformers": [theirs for _, theirs, _ in runs]}
    rows |= {name: [by_variant[name] for _, _, by_variant in runs] for name in VARIANTS}
    for name, logits in rows.items():
        to_exact = mean_rms((candidate, exact, exact) for candidate, (exact, _, _) in zip(logits, runs, strict=True))
        to_ours = mean_rms(
            (candidate, by_variant["ours"], exact)
            for candidate, (exact, _, by_variant) in zip(logits, runs, strict=True)
        )
        to_theirs = mean_rms(
            (candidate, theirs, exact) for candidate, (exact, theirs, _) in zip(logits, runs, strict=True)
        )
        say(f"{name:<52}{to_exact:>12.5f}{to_ours:>12.5f}{to_theirs:>17.5f}")


if __name__ == "__main__":
    main()
