"""A model, batches and all losses for the programs of these tests; they print one JSON object as their last line."""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor

from model import Gemma2, Gemma2Config, attend, gemma2_tiny
from model.attention import Attention
from training.backends.base import Backend
from training.config import DistillConfig
from training.distill.kinds.full import distill_full_loss
from training.distill.kinds.sample import distill_loss
from training.distill.kinds.topk import distill_topk_loss
from training.loss import LossFunction, LossOptions, next_token_loss

VOCAB, DRAWS, TOP = 64, 5, 4
LOSSES: Mapping[str, tuple[Callable[..., tuple[Tensor, Tensor]], DistillConfig]] = {
    "next_token": (next_token_loss, DistillConfig()),
    "distill": (partial(distill_loss, draws=DRAWS), DistillConfig(temperature=1.5, alpha=0.3)),
    "topk": (distill_topk_loss, DistillConfig(alpha=0.2)),
    "full": (distill_full_loss, DistillConfig(temperature=0.7)),
}
CHUNK = 20
"""positions in a chunk, so that there are several chunks and the last one is padded"""


def example_config(layers: int) -> Gemma2Config:
    """Heads and widths that four chips can divide; a window shorter than the rows."""
    sizes = {"d_model": 32, "ffw_dim": 64, "heads": 8, "kv_heads": 4, "head_dim": 8, "query_scale": 8}
    return gemma2_tiny(vocab_size=VOCAB, layers=layers, window=5, init_std=0.2, **sizes)


def example_batch(seed: int = 0, rows: int = 4, length: int = 18) -> dict[str, np.ndarray]:
    """Two documents and some padding in each row, and the targets of every objective."""
    rng = np.random.default_rng(seed)
    ends = np.array([11, length - 2])
    segment_ids = np.tile((np.arange(length)[:, None] < ends).sum(1)[None], (rows, 1)).astype(np.int32)
    positions = np.where(np.arange(length) < ends[0], np.arange(length), np.arange(length) - ends[0])
    draws = rng.integers(0, VOCAB, (rows, length, DRAWS))
    distinct = (np.sort(draws)[..., None] == np.sort(draws)[..., None, :]).argmax(-1) == np.arange(DRAWS)
    counts = (np.sort(draws)[..., None] == np.sort(draws)[..., None, :]).sum(-1) * distinct
    probs = rng.dirichlet(np.full(VOCAB, 0.2), (rows, length)).astype(np.float32)
    best = np.argsort(-probs)[..., :TOP].astype(np.int32)
    best_probs = np.take_along_axis(probs, best, -1)
    return {
        "tokens": rng.integers(3, VOCAB, (rows, length)).astype(np.int32),
        "segment_ids": segment_ids,
        "positions": np.tile(positions.astype(np.int32), (rows, 1)),
        "loss_mask": (rng.random((rows, length)) < 0.7) & (segment_ids > 0),
        "target_ids": np.sort(draws).astype(np.int32),
        "target_counts": counts.astype(np.int32),
        "best_ids": best,
        "target_log_probs": np.log(best_probs),
        "target_tail": (1.0 - best_probs.sum(-1)).astype(np.float32),
        "target_probs": probs,
    }


def batch_of(objective: str, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The columns that an objective needs."""
    names = ["tokens", "segment_ids", "positions", "loss_mask"]
    names += {
        "next_token": [],
        "distill": ["target_ids", "target_counts"],
        "topk": ["best_ids", "target_log_probs", "target_tail"],
        "full": ["target_probs"],
    }[objective]
    return {"target_ids" if name == "best_ids" else name: batch[name] for name in names}


def loss_function(objective: str, backend: Backend) -> LossFunction:
    """The objective, with its loop over chunks as in the backend."""
    loss, distill = LOSSES[objective]
    return partial(loss, options=LossOptions(distill=distill, chunk_positions=CHUNK, run_head=backend.run_head))


def loss_and_gradients(
    config: Gemma2Config,
    backend: Backend,
    objective: str,
    batch: Mapping[str, np.ndarray],
    attention: Attention = attend,
) -> tuple[float, dict[str, Tensor]]:
    """Gradients on the host, by Hugging Face's names."""
    model = backend.place_model(Gemma2(config), training=True)
    model.attention = attention
    on_device = backend.to_device(batch_of(objective, batch))
    loss, count = loss_function(objective, backend)(model, on_device)
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    by_parameter = dict(zip(parameters, gradients, strict=True))
    host = backend.snapshot(by_parameter)
    ((value, _),) = backend.fetch([torch.stack([loss.detach(), count])])
    return value, host


def largest_difference(actual: tuple[float, dict[str, Tensor]], expected: tuple[float, dict[str, Tensor]]) -> float:
    """Differences of the loss and of every gradient, relative to its norm."""
    assert actual[1].keys() == expected[1].keys()
    differences = [abs(actual[0] - expected[0]) / abs(expected[0])]
    for name, gradient in expected[1].items():
        differences.append(float((actual[1][name] - gradient).norm() / gradient.norm()))
    return max(differences)
