"""The teacher's side of distillation: what is kept of softmax(logits / T) at each target, and how it is taken.

Estimators, from float32 logits z after the final soft cap; p = softmax(z / T), T is `temperature`:

    sample  N draws with replacement from q, c_i of them id i; target c_i / N. With q = p unbiased: E[c_i / N] = p_i
            (arXiv 2503.16870). With q proportional to p^s (`proposal` s) each id has the importance weight p_i / q_i
            and the target is c_i / N * p_i / q_i: unbiased too, and the targets of a position sum to 1 only on average.
            Variance of a target: p_i (p_i / q_i - p_i) / N.
    topk    the K largest p_i, and the mass of all others. What it keeps is exact. As a target without the others
            (renormalized) it is biased: every kept id by 1 / (1 - tail), every other by -p_i.
    full    every p_i: no bias, no variance, V numbers a target. For tests.

Draws are a pure function of (seed, teacher hash, sequence hash, position) and of the logits: a counter-based generator
(Philox) is keyed by the first three and read at the fourth, so neither the order of rows nor what else is in a batch
changes a byte. A draw inverts the cumulative distribution in three levels of about V^(1/3) each: sums of blocks of
blocks, of blocks, of ids. Blocks are summed in float32, whose relative error of 1e-6 is that of the softmax itself;
everything above is float64.

All of this runs on the device, in chunks of one shape; only ids and a few numbers a target come to the host, while the
device works on the next batch. Cost: three passes over the logits and N V^(1/3) additions a position.

Shapes: B batch, T time, P positions, V vocabulary, N draws, K ids kept at a position, W ids in a block.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model import Gemma2
from training.backends.base import Backend
from training.errors import UserError
from training.feed import HostBatch

EstimatorName = Literal["sample", "topk", "full"]
Targets = dict[str, np.ndarray]
"""what is kept of P targets, by the names of a batch's columns: target_ids int32 [P, K]; of `sample` target_counts
int32 [P, K], 0 where there is no further id, and target_log_weights float32 [P, K] where the proposal is not p; of the
others target_log_probs float32 [P, K] and target_tail float32 [P]"""

Result = TypeVar("Result")

WORDS_IN_BLOCK = 4
"""64-bit words that Philox gives for one value of its counter"""
CHUNK_POSITIONS = 128
"""positions whose logits exist at once: rows enough for an efficient product, 131 MB at 256,000 ids"""
CACHED_ELEMENTS = 2**21
"""logits worked on at once on a CPU, so that the passes over them stay in its caches"""
BELOW_ONE = 1 - 2.0**-52
"""keeps a draw below the total it is a fraction of, whatever is rounded"""


@dataclass(frozen=True, kw_only=True)
class Estimator:
    """What is kept of the teacher's distribution (the module's docstring has the formulas)."""

    name: EstimatorName = "sample"
    draws: int = 50
    """N of `sample`"""
    top: int = 50
    """K of `topk`"""
    temperature: float = 1.0
    """T: the distribution is softmax(logits / T)"""
    proposal: float = 1.0
    """s of `sample`: draws come from p^s, normalized; 1 draws from p itself and needs no weights"""

    def __post_init__(self) -> None:
        if self.name not in get_args(EstimatorName):
            raise UserError(f"estimator is {self.name!r}; allowed are {', '.join(get_args(EstimatorName))}")
        if not 1 <= self.draws <= 65535:
            raise UserError(f"draws is {self.draws}; allowed are 1 to 65535, usually 50")
        if not 1 <= self.top <= 65535:
            raise UserError(f"top is {self.top}; allowed are 1 to 65535, usually 50")
        for name in ("temperature", "proposal"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise UserError(f"{name} is {getattr(self, name)}; it has to be above 0 and finite, usually 1")

    @property
    def weighted(self) -> bool:
        """Whether draws carry importance weights."""
        return self.name == "sample" and self.proposal != 1.0


def capture(
    model: Gemma2,
    backend: Backend,
    batches: Iterable[HostBatch],
    estimator: Estimator,
    *,
    seed: int,
    teacher_hash: str,
) -> Iterator[list[Targets]]:
    """For each batch, for each of its rows, what the estimator keeps at the row's targets, in order.

    The forward pass takes a batch as it is, the head only its targets, in chunks. Raises UserError for logits that are
    not finite.
    """
    before: _Launched | None = None
    for batch in batches:
        launched = _launch(model, backend, batch, estimator, seed, teacher_hash)
        if before is not None:
            yield before.collect()
        before = launched
    if before is not None:
        yield before.collect()


def capped_logits(model: Gemma2, hidden_PD: Tensor) -> Tensor:
    """`model.logits`, bit for bit, in the memory of the product."""
    products_PV = F.linear(hidden_PD.float(), model.model.embed_tokens.weight.float())
    return products_PV.div_(model.config.final_softcap).tanh_().mul_(model.config.final_softcap)


def sample_teacher(
    logits: np.ndarray, *, draws: int, seed: int, teacher_hash: str, sequence_hash: int, positions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Draws from softmax(logits) at some positions of one row.

    logits: float32 [P, V], `positions`: int [P], the place in the row of each. Returns ids and counts, int32 [P, K],
    ids ascending within a position, padded with id 0 and count 0; counts of a position sum to `draws`. Raises
    UserError for logits that are not finite.
    """
    if logits.ndim != 2 or len(logits) != len(positions):
        raise UserError(
            f"got logits {logits.shape} for {len(positions)} positions; they have to be [positions, vocabulary]"
        )
    uniforms = torch.from_numpy(uniforms_of(draws, seed, teacher_hash, sequence_hash, positions))
    ids_PN, _, highest_P = draw_ids(torch.from_numpy(np.asarray(logits, np.float32)), uniforms)
    _check_finite(highest_P.numpy())
    counted = count_draws(ids_PN.numpy())
    return counted["target_ids"], counted["target_counts"]


def draw_ids(
    logits_PV: Tensor, uniforms_PN: Tensor, temperature: float = 1.0, proposal: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """N draws a position: ids int32 [P, N] in the order of the uniforms, log(p / q) of each, the highest logit [P].

    uniforms_PN: float64 in [0, 1).
    """

    def draw(logits_PV: Tensor, uniforms_PN: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weights_PBW, highest_P1 = _block_weights(logits_PV, proposal / temperature)
        blocks_PB = weights_PBW.sum(-1).double()
        blocks_PAW = _in_blocks(blocks_PB, weights_PBW.shape[-1])
        groups_PA = blocks_PAW.sum(-1)
        group_PN, fraction_PN = _invert(groups_PA[:, None], uniforms_PN)
        block_PN, fraction_PN = _invert(_take(blocks_PAW, group_PN), fraction_PN)
        block_PN = block_PN + group_PN * blocks_PAW.shape[-1]
        id_PN, _ = _invert(_take(weights_PBW, block_PN).double(), fraction_PN)
        id_PN = id_PN + block_PN * weights_PBW.shape[-1]
        log_weights_PN = torch.zeros_like(uniforms_PN, dtype=torch.float32)
        if proposal != 1.0:
            # log p - log q, where log q = z s / T - log sum exp(z s / T)
            relative_PV = (logits_PV - highest_P1) / temperature
            chosen_PN = relative_PV.gather(1, id_PN)
            log_sums_P1 = groups_PA.sum(-1, keepdim=True).log().float() - relative_PV.logsumexp(-1, keepdim=True)
            log_weights_PN = chosen_PN * (1.0 - proposal) + log_sums_P1
        return id_PN.int(), log_weights_PN, highest_P1[:, 0]

    return _in_cache(draw, logits_PV, uniforms_PN)  # type: ignore[return-value]


def top_k_teacher(logits_PV: Tensor, k: int, temperature: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """The K most likely ids [P, K] int32, their log p [P, K], most likely first, and the mass [P] of all others.

    The tail is summed by itself: 1 - sum p_i would lose its digits. Raises UserError for a K beyond the vocabulary.
    """
    if not 1 <= k <= logits_PV.shape[-1]:
        raise UserError(f"got k={k} of a vocabulary of {logits_PV.shape[-1]}; allowed are 1 to the vocabulary")

    def top(logits_PV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weights_PBW, highest_P1 = _block_weights(logits_PV, 1.0 / temperature)
        positions, blocks, width = weights_PBW.shape
        if k <= blocks:
            # The K largest ids lie in the K blocks with the largest maxima.
            block_PK = weights_PBW.amax(-1).topk(k, dim=-1).indices
            top_PK, place_PK = _take(weights_PBW, block_PK).flatten(1).topk(k, dim=-1)
            ids_PK = block_PK.gather(1, place_PK // width) * width + place_PK % width
        else:
            top_PK, ids_PK = weights_PBW.flatten(1).topk(k, dim=-1)
        others_PV = weights_PBW.flatten(1).scatter(1, ids_PK, 0.0)
        others_P1 = others_PV.view(positions, blocks, width).sum(-1).double().sum(-1, keepdim=True)
        total_P1 = top_PK.double().sum(-1, keepdim=True) + others_P1
        relative_PK = (logits_PV.gather(1, ids_PK) - highest_P1) / temperature
        log_probs_PK = relative_PK - total_P1.log().float()
        return ids_PK.int(), log_probs_PK, (others_P1 / total_P1).float()[:, 0]

    return _in_cache(top, logits_PV)  # type: ignore[return-value]


def count_draws(drawn_PN: np.ndarray, log_weights_PN: np.ndarray | None = None) -> Targets:
    """Distinct ids, ascending, and how often each was drawn (with the weight of each, where there are weights)."""
    positions, draws = drawn_PN.shape
    if log_weights_PN is None:
        drawn_PN = np.sort(drawn_PN, axis=1)
    else:
        order = np.argsort(drawn_PN, axis=1, kind="stable")
        drawn_PN, log_weights_PN = (np.take_along_axis(part, order, 1) for part in (drawn_PN, log_weights_PN))
    first = np.ones((positions, draws), bool)
    first[:, 1:] = drawn_PN[:, 1:] != drawn_PN[:, :-1]
    unique = first.sum(axis=1)
    filled = np.arange(int(unique.max(initial=0))) < unique[:, None]
    starts = np.flatnonzero(first)

    def padded(values: np.ndarray, kind: type) -> np.ndarray:
        out = np.zeros(filled.shape, kind)
        out[filled] = values
        return out

    found = {
        "target_ids": padded(drawn_PN.ravel()[starts], np.int32),
        "target_counts": padded(np.diff(starts, append=positions * draws), np.int32),
    }
    if log_weights_PN is not None:
        found["target_log_weights"] = padded(log_weights_PN.ravel()[starts], np.float32)
    return found


def uniforms_of(draws: int, seed: int, teacher_hash: str, sequence_hash: int, positions: np.ndarray) -> np.ndarray:
    """float64 [P, N] in [0, 1): those of position p start at counter p * ceil(N / 4) of the row's own stream."""
    digest = hashlib.sha256(f"{seed}/{teacher_hash}/{sequence_hash}".encode()).digest()
    blocks = -(-draws // WORDS_IN_BLOCK)
    generator = np.random.Philox(key=np.frombuffer(digest[:16], "<u8"))
    length = int(positions.max()) + 1 if len(positions) else 0
    words = generator.random_raw(length * blocks * WORDS_IN_BLOCK).reshape(length, blocks * WORDS_IN_BLOCK)
    uniforms: np.ndarray = (words[positions, :draws] >> np.uint64(11)) * 2.0**-53
    return uniforms


def weights_hash(weights: Mapping[str, torch.Tensor]) -> str:
    """sha256 over names, types, shapes and values of all weights: what `teacher_hash` should be."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class _Launched:
    """A batch that the device works on."""

    estimator: Estimator
    chunks: list[tuple[Tensor, Tensor, Tensor]]
    row_targets: list[int]

    def collect(self) -> list[Targets]:
        """Waits for the device. Each row's targets, cut out of the chunks."""
        total, ends = sum(self.row_targets), np.cumsum(self.row_targets)[:-1]
        on_host = zip(*([part.cpu().numpy() for part in chunk] for chunk in self.chunks), strict=True)
        ids, values, checked = (np.concatenate(parts)[:total] for parts in on_host)
        _check_finite(checked)
        rows = zip(*(np.split(part, ends) for part in (ids, values, checked)), strict=True)
        if self.estimator.name == "sample":
            return [count_draws(ids, values if self.estimator.weighted else None) for ids, values, _ in rows]
        return [
            {"target_ids": ids, "target_log_probs": log_probs, "target_tail": tail} for ids, log_probs, tail in rows
        ]


def map_logits(
    model: Gemma2,
    backend: Backend,
    batch: HostBatch,
    arrays: Mapping[str, np.ndarray],
    work: Callable[[Tensor, dict[str, Tensor]], Result],
) -> list[Result]:
    """`work` of the logits [CHUNK_POSITIONS, V] at the targets of a batch, row by row, chunk by chunk.

    It is also given the rows of `arrays`, which have one a target, that go with the logits. What it makes of positions
    beyond the last target is of no use. All chunks have one shape, so XLA compiles one program, and `work` is part of
    it: logits are never written out.
    """
    length = batch["tokens"].shape[1]
    index = np.concatenate([row * length + np.flatnonzero(mask) for row, mask in enumerate(batch["loss_mask"])])
    chunks = max(1, -(-len(index) // CHUNK_POSITIONS))
    padded = {
        name: np.concatenate([array, np.zeros((chunks * CHUNK_POSITIONS - len(index), *array.shape[1:]), array.dtype)])
        for name, array in {**arrays, "index": index.astype(np.int32)}.items()
    }
    columns = backend.to_device({name: batch[name] for name in ("tokens", "positions", "segment_ids")})
    hidden_RD = model.hidden(columns["tokens"], columns["positions"], columns["segment_ids"]).flatten(0, 1)
    backend.step_boundary()
    found = []
    for start in range(0, chunks * CHUNK_POSITIONS, CHUNK_POSITIONS):
        of = backend.to_device({name: array[start : start + CHUNK_POSITIONS] for name, array in padded.items()})
        found.append(work(capped_logits(model, hidden_RD.index_select(0, of["index"])), of))
        backend.step_boundary()
    return found


@torch.no_grad()
def _launch(
    model: Gemma2, backend: Backend, batch: HostBatch, estimator: Estimator, seed: int, teacher_hash: str
) -> _Launched:
    """Hands forward pass and chunks to the device."""
    places = [np.flatnonzero(mask) for mask in batch["loss_mask"]]
    arrays = {}
    if estimator.name == "sample":
        keyed = zip(batch["sequence_hash"].tolist(), places, strict=True)
        uniforms = [uniforms_of(estimator.draws, seed, teacher_hash, of, targets) for of, targets in keyed]
        arrays["uniforms"] = np.concatenate(uniforms)

    def keep(logits_PV: Tensor, of: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        if estimator.name == "sample":
            return draw_ids(logits_PV, of["uniforms"], estimator.temperature, estimator.proposal)
        kept = estimator.top if estimator.name == "topk" else logits_PV.shape[1]
        return top_k_teacher(logits_PV, kept, estimator.temperature)

    launched = map_logits(model, backend, batch, arrays, keep)
    return _Launched(estimator, launched, [len(targets) for targets in places])


def _block_weights(logits_PV: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """exp((logits - highest) * factor) as [P, B, W], zero beyond the vocabulary, and the highest logits [P, 1]."""
    width = 1 << max(1, round(math.log2(logits_PV.shape[1]) / 3))
    highest_P1 = logits_PV.amax(-1, keepdim=True)
    weights_PV = logits_PV - highest_P1
    if factor != 1.0:
        weights_PV = weights_PV.mul_(factor)
    return _in_blocks(weights_PV.exp_(), width), highest_P1


def _in_blocks(values_PV: Tensor, width: int) -> Tensor:
    """[P, V] as [P, B, W], filled up with zeros."""
    missing = -values_PV.shape[1] % width
    if missing:
        values_PV = F.pad(values_PV, (0, missing))
    return values_PV.unflatten(1, (-1, width))


def _take(parts_PBW: Tensor, block_PN: Tensor) -> Tensor:
    """[P, N, W]: the chosen blocks of each position."""
    rows_P1 = torch.arange(len(parts_PBW), device=parts_PBW.device)[:, None]
    return parts_PBW[rows_P1, block_PN]


def _invert(masses_PNW: Tensor, fractions_PN: Tensor) -> tuple[Tensor, Tensor]:
    """Where among the masses (float64) a fraction of their sum falls, int64 [P, N], and how far into that mass.

    Never a mass of zero: the fraction stays below the whole, and a boundary belongs to what follows it.
    """
    ends_PNW = masses_PNW.cumsum(-1)
    wanted_PN1 = (fractions_PN * ends_PNW[..., -1]).minimum(ends_PNW[..., -1] * BELOW_ONE)[..., None]
    index_PN = (ends_PNW <= wanted_PN1).sum(-1)
    ends_PNW, masses_PNW = (part.expand(-1, fractions_PN.shape[1], -1) for part in (ends_PNW, masses_PNW))
    mass_PN1 = masses_PNW.gather(-1, index_PN[..., None])
    before_PN1 = ends_PNW.gather(-1, index_PN[..., None]) - mass_PN1
    return index_PN, ((wanted_PN1 - before_PN1) / mass_PN1).clamp(0.0, BELOW_ONE)[..., 0]


def _in_cache(work: Callable[..., tuple[Tensor, ...]], *rows: Tensor) -> tuple[Tensor, ...]:
    """`work` over parts of the rows that fit a CPU's caches; at once elsewhere."""
    count, vocabulary = rows[0].shape
    size = max(1, CACHED_ELEMENTS // vocabulary)
    if rows[0].device.type != "cpu" or count <= size:
        return work(*rows)
    parts = [work(*part) for part in zip(*(tensor.split(size) for tensor in rows), strict=True)]
    return tuple(torch.cat(together) for together in zip(*parts, strict=True))


def _check_finite(values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise UserError("the teacher's logits are not finite; check its weights")
