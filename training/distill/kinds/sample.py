"""`sample`: ids drawn from the teacher, and how often each was drawn. Unbiased, and the default kind.

N draws with replacement from q, c_i of them id i; the target is c_i / N. With q = p = softmax(z / T) it is unbiased:
E[c_i / N] = p_i (arXiv 2503.16870). With q proportional to p^s (`proposal` s) each id has the importance weight
p_i / q_i and the target is c_i / N * p_i / q_i: unbiased too, and the targets of a position sum to 1 only on average.
Variance of a target: p_i (p_i / q_i - p_i) / N.

Draws are a pure function of (seed, teacher hash, sequence hash, position) and of the logits: a counter-based generator
(Philox) is keyed by the first three and read at the fourth. So neither the order of rows nor the rest of a batch
changes a byte. A draw inverts the cumulative distribution in three levels of about V^(1/3) each: sums of blocks of
blocks, sums of blocks, ids. Each level has a uniform number of its own, so that no digits are lost from level to level.
All of it is float32, because TPUs emulate float64. Sums have a relative error of 1e-6, as the softmax itself. A uniform
has 32 bits below 2^-8, and the largest mass of a level comes last. So what the largest mass leaves is resolved to 2^-24
of itself, or to 2^-32 of the whole. Cost: three passes over the logits and N V^(1/3) additions for each position.

The audit: for functions f of an id, the mean over draws of f is compared with its expectation under p. f is taken
relative to its value at the most likely id, so that nothing cancels where the teacher is almost certain. One draw of a
position counts as w f(i), with w = p_i / q_i, which is 1 unless the proposal differs from p. By the teacher its mean is
E = sum p f and its variance is sum q (w f - E)^2. Over all positions the sum of differences, divided by the root of the
sum of variances / N, is about standard normal: z. The functions are

    log p           shows another temperature, another position, a support that was renormalized (its mean is the
    entropy gap) most likely id  shows a changed share of the most likely id p               shows a distribution that
    is more or less even coin            +1 or -1 for each id, by a seed: shows mass that was moved from some ids to
    others

Shapes: B batch, T time, P positions, V vocabulary, N draws, K different ids at a position, W ids in a block.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from data.logits import CodecSpec, Targets
from model import TableModel
from training.distill.blocks import block_weights, in_blocks, in_cache, take
from training.distill.kind import Check, Kind, Limits, Tally, check_finite, check_number, check_positive
from training.errors import UserError
from training.loss import USUAL, Batch, LossOptions, masked_sum
from training.loss_head import to_weighted_ids

FUNCTIONS = ("log p", "most likely id", "p", "coin")
LOG_FLOOR = -20.0
"""Floor of log p, in nats: without a floor one rare id would be most of the variance."""
WORDS_IN_BLOCK = 8
"""32-bit words that Philox gives for one value of its counter."""
LEVELS = 3
"""Levels of a draw, each with a uniform number."""
BELOW_ONE = np.float32(1 - 2.0**-24)
"""Largest uniform number: the float32 before 1."""


@dataclass(frozen=True, kw_only=True)
class Sample(Kind):
    """Counts of draws."""

    name: ClassVar[str] = "sample"
    sums: ClassVar[tuple[str, ...]] = (
        *(f"difference of {function}" for function in FUNCTIONS),
        *(f"variance of {function}" for function in FUNCTIONS),
        "entropy",
    )

    draws: int = 50
    """Number N of draws at each position."""
    proposal: float = 1.0
    """Exponent s of the proposal: draws come from p^s, normalized; 1 draws from p itself and needs no weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("draws", self.draws)
        check_positive("proposal", self.proposal)

    @property
    def weighted(self) -> bool:
        """Whether draws carry importance weights."""
        return self.proposal != 1.0

    @classmethod
    def described(cls, facts: Mapping[str, Any]) -> str:
        return f"{facts['draws']} draws from the teacher's distribution"

    def codec(self, vocab_size: int) -> CodecSpec:
        return CodecSpec(
            vocab_size=vocab_size,
            estimator=self.name,
            draws=self.draws,
            weighted=self.weighted,
            temperature=self.temperature,
        )

    def noise(
        self, batch: Mapping[str, np.ndarray], places: Sequence[np.ndarray], seed: int, teacher_hash: str
    ) -> dict[str, np.ndarray]:
        keyed = zip(batch["sequence_hash"].tolist(), places, strict=True)
        uniforms = [
            uniforms_of(self.draws, seed, teacher_hash, sequence_hash, positions) for sequence_hash, positions in keyed
        ]
        return {"uniforms": np.concatenate(uniforms)}

    def keep(self, logits_PV: Tensor, noise: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        return draw_ids(logits_PV, noise["uniforms"], self.temperature, self.proposal)

    def targets(self, *kept: np.ndarray) -> Targets:
        ids_PN, log_weights_PN, _ = kept
        return count_draws(ids_PN, log_weights_PN if self.weighted else None)

    @classmethod
    def loss(cls, model: TableModel, batch: Batch, codec: CodecSpec, options: LossOptions) -> tuple[Tensor, Tensor]:
        assert codec.draws is not None
        return distill_loss(model, batch, codec.draws, options)

    def statistics(self, logits_PV: Tensor, kept: Mapping[str, Tensor], coins_V: Tensor) -> Tensor:
        """For each function mean - expectation, then the variances of these differences, and finally the entropy."""
        log_p_PV = torch.log_softmax(logits_PV / self.temperature, -1)
        p_PV = log_p_PV.exp()
        weights_PV = torch.ones_like(p_PV)
        if self.weighted:
            weights_PV = (log_p_PV - torch.log_softmax(log_p_PV * self.proposal, -1)).exp()
        ids_PK = kept["target_ids"].long()
        drawn_PK = kept["target_counts"].float() / self.draws
        if "target_log_weights" in kept:
            drawn_PK = drawn_PK * kept["target_log_weights"].exp()
        best_P1 = log_p_PV.argmax(-1, keepdim=True)
        ids_V = torch.arange(log_p_PV.shape[1], device=log_p_PV.device)
        functions = (log_p_PV.clamp(min=LOG_FLOOR), (ids_V == best_P1).float(), p_PV, coins_V.expand_as(p_PV))
        differences, variances = [], []
        for f_PV in functions:
            relative_PV = f_PV - f_PV.gather(1, best_P1)
            expected_P1 = (p_PV * relative_PV).sum(-1, keepdim=True)
            mean_P = (drawn_PK * relative_PV.gather(1, ids_PK)).sum(-1)
            differences.append(mean_P - expected_P1[:, 0])
            squares_PV = (weights_PV * relative_PV - expected_P1).square()
            variances.append((p_PV / weights_PV * squares_PV).sum(-1) / self.draws)
        entropy_P = -(p_PV * log_p_PV).sum(-1)
        return torch.stack([*differences, *variances, entropy_P], -1)

    def checks(self, total: Tally, limits: Limits) -> list[Check]:
        limit, count = z_limit(limits.alpha), max(1, total.positions)
        checks = []
        for function in FUNCTIONS:
            z = z_of(total, function)
            gap = total.sums.get(f"difference of {function}", 0.0) / count
            detail = f"mean of draws - expectation is {gap:+.5f} at {total.positions} targets, z = {z:+.2f}"
            if function == "log p":
                entropy = total.sums.get("entropy", 0.0) / count
                detail += f"; the teacher's entropy is {entropy:.3f} nats"
            checks.append(Check(name=function, value=abs(z), limit=limit, detail=detail))
        return checks


def z_of(total: Tally, function: str) -> float:
    """The z of a function, which is about standard normal if the cache is honest."""
    difference = total.sums.get(f"difference of {function}", 0.0)
    variance = total.sums.get(f"variance of {function}", 0.0)
    if variance <= 0:
        return 0.0 if abs(difference) < 1e-6 * max(1, total.positions) else math.copysign(math.inf, difference)
    return difference / math.sqrt(variance)


def z_limit(alpha: float) -> float:
    """The |z| that an honest cache exceeds in any of the functions with probability at most `alpha` (Bonferroni)."""
    return NormalDist().inv_cdf(1 - alpha / (2 * len(FUNCTIONS)))


def distill_loss(model: TableModel, batch: Batch, draws: int, options: LossOptions = USUAL) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats to counts / N of the teacher's N `draws`, summed over targets, and the number of targets.

    The expectation of its gradient is the gradient of full distillation (arXiv 2503.16870). The ids of one target are
    distinct, apart from padding, which has count 0 and any id.
    """
    head = options.teacher_head(model, to_weighted_ids)
    weights_BTK = batch["target_counts"].float() * (head.target_mass / draws)
    return masked_sum(model, batch, head, [batch["target_ids"].long(), weights_BTK], options.run_head)


def sample_teacher(
    logits: np.ndarray, *, draws: int, seed: int, teacher_hash: str, sequence_hash: int, positions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Draws from softmax(logits) at some positions of one row.

    `logits`: float32 [P, V]. `positions`: int [P], the places of the logits in the row. Returns ids and counts, int32
    [P, K], ids ascending within a position, padded with id 0 and count 0; the counts of a position sum to `draws`.
    Raises UserError for logits that are not finite.
    """
    if logits.ndim != 2 or len(logits) != len(positions):
        raise UserError(
            f"got logits {logits.shape} for {len(positions)} positions; the shape must be [positions, vocabulary]"
        )
    uniforms = torch.from_numpy(uniforms_of(draws, seed, teacher_hash, sequence_hash, positions))
    ids_PN, _, highest_P = draw_ids(torch.from_numpy(np.asarray(logits, np.float32)), uniforms)
    check_finite(highest_P.numpy())
    counted = count_draws(ids_PN.numpy())
    return counted["target_ids"], counted["target_counts"]


def draw_ids(
    logits_PV: Tensor, uniforms_PNL: Tensor, temperature: float = 1.0, proposal: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """N draws for each position.

    uniforms_PNL: float32 in [0, 1), one for each level. Returns ids int32 [P, N] in the order of the uniforms,
    log(p / q) of each id, and the highest logit [P].
    """

    def draw(logits_PV: Tensor, uniforms_PNL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weights_PBW, highest_P1 = block_weights(logits_PV, proposal / temperature)
        blocks_PAW = in_blocks(weights_PBW.sum(-1), weights_PBW.shape[-1])
        groups_PA = blocks_PAW.sum(-1)
        of_group, of_block, of_id = uniforms_PNL.unbind(-1)
        group_PN = _choose(groups_PA[:, None], of_group)
        block_PN = _choose(take(blocks_PAW, group_PN), of_block) + group_PN * blocks_PAW.shape[-1]
        id_PN = _choose(take(weights_PBW, block_PN), of_id) + block_PN * weights_PBW.shape[-1]
        log_weights_PN = torch.zeros_like(of_id)
        if proposal != 1.0:
            # log p - log q, where log q = z s / T - log sum exp(z s / T)
            relative_PV = (logits_PV - highest_P1) / temperature
            chosen_PN = relative_PV.gather(1, id_PN)
            log_sums_P1 = groups_PA.sum(-1, keepdim=True).log() - relative_PV.logsumexp(-1, keepdim=True)
            log_weights_PN = chosen_PN * (1.0 - proposal) + log_sums_P1
        return id_PN.int(), log_weights_PN, highest_P1[:, 0]

    return in_cache(draw, logits_PV, uniforms_PNL)  # type: ignore[return-value]


def count_draws(drawn_PN: np.ndarray, log_weights_PN: np.ndarray | None = None) -> Targets:
    """Distinct ids, ascending, and how often each was drawn (with the weight of each id, if there are weights)."""
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

    columns = {
        "target_ids": padded(drawn_PN.ravel()[starts], np.int32),
        "target_counts": padded(np.diff(starts, append=positions * draws), np.int32),
    }
    if log_weights_PN is not None:
        columns["target_log_weights"] = padded(log_weights_PN.ravel()[starts], np.float32)
    return columns


def uniforms_of(draws: int, seed: int, teacher_hash: str, sequence_hash: int, positions: np.ndarray) -> np.ndarray:
    """float32 [P, N, LEVELS] in [0, 1), from 32 random bits each.

    The numbers of position p start at counter p * ceil(N * LEVELS / WORDS_IN_BLOCK) of the row's own stream.
    """
    digest = hashlib.sha256(f"{seed}/{teacher_hash}/{sequence_hash}".encode()).digest()
    blocks = -(-draws * LEVELS // WORDS_IN_BLOCK)
    generator = np.random.Philox(key=np.frombuffer(digest[:16], "<u8"))
    length = int(positions.max()) + 1 if len(positions) else 0
    raw = generator.random_raw(length * blocks * WORDS_IN_BLOCK // 2).astype("<u8").view("<u4")
    words = raw.reshape(length, blocks * WORDS_IN_BLOCK)[positions, : draws * LEVELS]
    uniforms: np.ndarray = np.minimum(words.astype(np.float32) * np.float32(2.0**-32), BELOW_ONE)
    return uniforms.reshape(len(positions), draws, LEVELS)


def _choose(masses_PNW: Tensor, uniforms_PN: Tensor) -> Tensor:
    """The index, int64 [P, N], of the mass in which a uniform share of their sum falls, the largest mass being last.

    It never finds a mass of zero, however sums are rounded.
    """
    width = masses_PNW.shape[-1]
    mass_PN1, largest_PN1 = masses_PNW.max(-1, keepdim=True)
    others_PNW = masses_PNW.scatter(-1, largest_PN1, 0.0)
    ends_PNW = others_PNW.cumsum(-1)
    total_PN = ends_PNW[..., -1] + mass_PN1[..., 0]
    index_PN = (ends_PNW <= (uniforms_PN * total_PN)[..., None]).sum(-1)
    found_PNW = others_PNW.expand(*index_PN.shape, -1)
    mass_PN = found_PNW.gather(-1, index_PN.clamp(max=width - 1)[..., None])[..., 0]
    return torch.where((index_PN < width) & (mass_PN > 0), index_PN, largest_PN1[..., 0])
