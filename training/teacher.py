"""The teacher's side of distillation: N draws from softmax(logits) at every position, kept as ids and counts.

Draws are a pure function of (seed, teacher hash, sequence hash, position) and of the logits: a counter-based
generator (Philox) is keyed by the first three and read at the fourth, so neither the order of rows nor what else is
in a batch changes a byte. All sums are sums of integers, which no order of summation changes either. Counts / N is an
unbiased estimate of the teacher's distribution (arXiv 2503.16870).

Each draw is an inverse of the cumulative distribution in two levels: first the block of about sqrt(V) ids, then the
id within it. Cost: one pass over the logits and N * sqrt(V) additions a position; 32 positions of 8192 ids take about
a millisecond.

Shapes: P positions, V vocabulary, N draws, K most distinct ids at a position.
"""

import hashlib
import math
from collections.abc import Mapping

import numpy as np
import torch

from model import Gemma2
from training.backend import Backend
from training.loop import HostBatch

WEIGHT_BITS = 36
"""weights are exp(logit - max) in units of 2^-36: an id that is less likely by more than that is never drawn"""
WORDS_IN_BLOCK = 4
"""64-bit words that Philox gives for one value of its counter"""
CHUNK_POSITIONS = 32
"""positions worked on at once, so that the intermediate arrays stay in the cache"""


def sample_teacher(
    logits: np.ndarray, *, draws: int, seed: int, teacher_hash: str, sequence_hash: int, positions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Draws at some positions of one row.

    logits: float32 [P, V], `positions`: int [P], the place in the row of each. Returns ids and counts, int32 [P, K],
    ids ascending within a position, padded with id 0 and count 0; counts of a position sum to `draws`. Raises
    ValueError for logits that are not finite.
    """
    if logits.ndim != 2 or len(logits) != len(positions):
        raise ValueError(
            f"got logits {logits.shape} for {len(positions)} positions; they have to be [positions, vocabulary]"
        )
    uniforms = _uniforms(draws, seed, teacher_hash, sequence_hash, positions)
    parts = [
        _draw(
            np.asarray(logits[start : start + CHUNK_POSITIONS], np.float32), uniforms[start : start + CHUNK_POSITIONS]
        )
        for start in range(0, len(logits), CHUNK_POSITIONS)
    ]
    drawn = np.concatenate(parts) if parts else np.zeros((0, draws), np.int64)
    return _count(drawn)


def teacher_targets(
    model: Gemma2, backend: Backend, batch: HostBatch, *, draws: int, seed: int, teacher_hash: str
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Draws at every target of every row of a batch: for each row (ids, counts), int32 [targets of the row, K].

    The forward pass takes the batch as it is. Logits are made a row at a time, all of one shape, and drawn from on
    the host.
    """
    columns = {name: batch[name] for name in ("tokens", "positions", "segment_ids")}
    found = []
    with torch.no_grad():
        on_device = backend.to_device(columns)
        hidden_BTD = model.hidden(on_device["tokens"], on_device["positions"], on_device["segment_ids"])
        backend.step_boundary()
        for row, mask in enumerate(batch["loss_mask"]):
            logits_TV = model.logits(hidden_BTD[row]).cpu().numpy()
            (targets,) = np.nonzero(mask)
            found.append(
                sample_teacher(
                    logits_TV[targets],
                    draws=draws,
                    seed=seed,
                    teacher_hash=teacher_hash,
                    sequence_hash=int(batch["sequence_hash"][row]),
                    positions=targets,
                )
            )
    return found


def weights_hash(weights: Mapping[str, torch.Tensor]) -> str:
    """sha256 over names, types, shapes and values of all weights: what `teacher_hash` should be."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _uniforms(draws: int, seed: int, teacher_hash: str, sequence_hash: int, positions: np.ndarray) -> np.ndarray:
    """float64 [P, N] in [0, 1): those of position p start at counter p * ceil(N / 4) of the row's own stream."""
    digest = hashlib.sha256(f"{seed}/{teacher_hash}/{sequence_hash}".encode()).digest()
    blocks = -(-draws // WORDS_IN_BLOCK)
    generator = np.random.Philox(key=np.frombuffer(digest[:16], "<u8"))
    length = int(positions.max()) + 1 if len(positions) else 0
    words = generator.random_raw(length * blocks * WORDS_IN_BLOCK).reshape(length, blocks * WORDS_IN_BLOCK)
    return (words[positions, :draws] >> np.uint64(11)) * 2.0**-53


def _draw(logits_PV: np.ndarray, uniforms_PN: np.ndarray) -> np.ndarray:
    """Ids [P, N], ascending within a position."""
    positions, vocab = logits_PV.shape
    width = 1 << max(1, round(math.log2(vocab) / 2))
    blocks = -(-vocab // width)
    highest = logits_PV.max(axis=1, keepdims=True)
    if not np.isfinite(highest).all():
        raise ValueError("the teacher's logits are not finite; check its weights")
    weights = np.zeros((positions, blocks * width), np.int64)
    # Scaling by a power of two is exact, and so is everything after the conversion to integers.
    weights[:, :vocab] = np.exp(logits_PV - highest) * np.float32(2.0**WEIGHT_BITS)
    weights_PBW = weights.reshape(positions, blocks, width)
    ends_PB = weights_PBW.sum(axis=2).cumsum(axis=1)
    totals = ends_PB[:, -1]
    wanted = np.minimum((uniforms_PN * totals[:, None]).astype(np.int64), totals[:, None] - 1)
    wanted.sort(axis=1)

    # All positions in one ascending list, each shifted by what lies before it: one search for all draws.
    shift = np.cumsum(totals) - totals
    block = np.searchsorted((ends_PB + shift[:, None]).ravel(), (wanted + shift[:, None]).ravel(), side="right")
    within_RW = weights_PBW.reshape(-1, width)[block].cumsum(axis=1)
    before = (ends_PB.ravel()[block] - within_RW[:, -1])[:, None]
    inside = (within_RW <= wanted.reshape(-1, 1) - before).sum(axis=1)
    ids: np.ndarray = (block % blocks * width + inside).reshape(positions, -1)
    return ids


def _count(drawn_PN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct ids and how often each was drawn, from ascending draws."""
    positions, draws = drawn_PN.shape
    first = np.ones((positions, draws), bool)
    first[:, 1:] = drawn_PN[:, 1:] != drawn_PN[:, :-1]
    unique = first.sum(axis=1)
    width = int(unique.max(initial=0))
    filled = np.arange(width) < unique[:, None]
    starts = np.flatnonzero(first)
    ids = np.zeros((positions, width), np.int32)
    counts = np.zeros((positions, width), np.int32)
    ids[filled] = drawn_PN.ravel()[starts]
    counts[filled] = np.diff(starts, append=positions * draws)
    return ids, counts
