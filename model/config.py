"""The shape of a Gemma 2 model: one frozen dataclass, and the published sizes (arXiv 2408.00118, Table 1).

No I/O and no torch here: a configuration can be read, hashed and compared without loading anything heavy.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

from model.errors import UserError

VOCAB_SIZE = 256_000
"""Pieces of Gemma's tokenizer, and rows of the embedding in the published PyTorch and Hugging Face weights."""

PAPER_VOCAB_SIZE = 256_128
"""Rows of the embedding in the paper (Table 2) and in the JAX weights, of which 128 are padding."""


@dataclass(frozen=True, kw_only=True)
class Gemma2Config:
    """The architecture of the model, without anything about devices, batches or training."""

    vocab_size: int
    """Rows of the embedding, which is also the output head."""
    d_model: int
    """Width of the residual stream."""
    layers: int
    """Number of blocks. Blocks 0, 2, 4, ... see their window, blocks 1, 3, 5, ... the whole document."""
    heads: int
    """Number of query heads; heads * head_dim need not be d_model."""
    kv_heads: int
    """Number of key and value heads; each serves heads / kv_heads consecutive query heads."""
    head_dim: int
    """Width of one head, an even number because rotary embeddings pair its halves."""
    ffw_dim: int
    """Width of each branch of the gated MLP; the paper gives gate and up together, twice this number."""
    window: int
    """Number of keys that a query of a local block sees, its own included."""
    query_scale: int
    """Number whose root divides the scores: head_dim for 2B and 9B, d_model / heads = 144 for 27B."""
    attention_softcap: float = 50.0
    """Cap of the scores before the mask, by cap * tanh(score / cap)."""
    final_softcap: float = 30.0
    """Cap of the logits, by cap * tanh(logit / cap)."""
    rope_theta: float = 10_000.0
    """Base of the wavelengths of the rotary embedding, the same in every block."""
    norm_eps: float = 1e-6
    """Number added to the mean square under the root of every norm."""
    init_std: float = 0.02
    """Standard deviation of newly drawn matrices; the paper gives none, the default is Hugging Face's."""

    def __post_init__(self) -> None:
        for name in (
            "vocab_size", "d_model", "layers", "heads", "kv_heads", "head_dim", "ffw_dim", "window", "query_scale",
        ):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"{name} is {value!r}, but must be a whole number of at least 1; set {name}=1 or more")
            if value >= 2**31:
                raise UserError(f"{name} is {value}, but must be less than 2**31; set a size that a tensor can have")
        for name in ("attention_softcap", "final_softcap", "rope_theta", "norm_eps", "init_std"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
                raise UserError(
                    f"{name} is {value!r}, but must be a finite number above 0; leave it out for Gemma 2's own"
                )
        if self.heads % self.kv_heads:
            raise UserError(
                f"heads is {self.heads} and kv_heads is {self.kv_heads}, but every key head serves the same number of "
                f"query heads; choose a kv_heads that divides {self.heads}"
            )
        if self.head_dim % 2:
            raise UserError(
                f"head_dim is {self.head_dim}, but rotary embeddings need an even one; try {self.head_dim + 1}"
            )

    def layer_window(self, layer: int) -> int | None:
        """The window of block `layer`; None for a block that sees the whole document (every odd one)."""
        return self.window if layer % 2 == 0 else None


def gemma2_2b(vocab_size: int = VOCAB_SIZE) -> Gemma2Config:
    """Gemma 2 2B: 2,614,341,888 parameters (2,614,636,800 with the paper's padded vocabulary)."""
    return Gemma2Config(
        vocab_size=vocab_size, d_model=2304, layers=26, heads=8, kv_heads=4, head_dim=256, ffw_dim=9216,
        window=4096, query_scale=256,
    )  # fmt: skip


def gemma2_9b(vocab_size: int = VOCAB_SIZE) -> Gemma2Config:
    """Gemma 2 9B: 9,241,705,984 parameters. query_scale is 256; the first public code's 224 was a mistake."""
    return Gemma2Config(
        vocab_size=vocab_size, d_model=3584, layers=42, heads=16, kv_heads=8, head_dim=256, ffw_dim=14336,
        window=4096, query_scale=256,
    )  # fmt: skip


def gemma2_27b(vocab_size: int = VOCAB_SIZE) -> Gemma2Config:
    """Gemma 2 27B: 27,227,128,320 parameters. query_scale is d_model / heads = 144, not head_dim."""
    return Gemma2Config(
        vocab_size=vocab_size, d_model=4608, layers=46, heads=32, kv_heads=16, head_dim=128, ffw_dim=36864,
        window=4096, query_scale=144,
    )  # fmt: skip


def gemma2_tiny(**overrides: Any) -> Gemma2Config:
    """A model that runs anywhere in milliseconds. Any field can be given by keyword.

    heads * head_dim differs from d_model and the window is short, so tests find mistakes in both.
    """
    tiny = Gemma2Config(
        vocab_size=1024, d_model=64, layers=2, heads=4, kv_heads=2, head_dim=32, ffw_dim=128, window=16, query_scale=32
    )
    return replace(tiny, **overrides)
