"""`sample`: ids drawn from the teacher, and how often each was drawn. Unbiased, and the default kind.

N draws with replacement from q, c_i of them id i; the target is c_i / N. With q = p = softmax(z / T) it is unbiased:
E[c_i / N] = p_i (arXiv 2503.16870). With q proportional to p^s (`proposal` s) each id has the importance weight
p_i / q_i and the target is c_i / N * p_i / q_i: unbiased too, and the targets of a position sum to 1 only on average.
Variance of a target: p_i (p_i / q_i - p_i) / N.

Draws are a pure function of (seed, teacher hash, sequence hash, position) and of the logits: a counter-based generator
(Philox) is keyed by the first three and read at the fourth. So neither the order of rows nor the rest of a batch
changes a byte. A draw inverts the cumulative distribution in three levels of about V^(1/3) each: sums of blocks of
blocks, sums of blocks, ids. Blocks are summed in float32, whose relative error of 1e-6 is that of the softmax itself;
the levels above are float64. Cost: three passes over the logits and N V^(1/3) additions for each position.

The audit: for functions f of an id, the mean over draws of f is compared with its expectation under p. One draw of a
position counts as w f(i), with w = p_i / q_i, which is 1 unless the proposal differs from p. By the teacher its mean is
sum p f and its variance is sum p w f^2 - (sum p f)^2. Over all positions the sum of differences, divided by the root of
the sum of variances / N, is about standard normal: z. The functions are

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
WORDS_IN_BLOCK = 4
"""64-bit words that Philox gives for one value of its counter."""
BELOW_ONE = 1 - 2.0**-52
"""Largest fraction: it keeps a draw below the total, however the values are rounded."""


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
            # float64: variances of a teacher that is almost certain are differences of almost equal numbers
            expected_P1 = (p_PV.double() * f_PV.double()).sum(-1, keepdim=True)
            mean_P = (drawn_PK.double() * f_PV.gather(1, ids_PK).double()).sum(-1)
            differences.append(mean_P - expected_P1[:, 0])
            if self.weighted:
                squares_P = (p_PV.double() * weights_PV.double() * f_PV.double().square()).sum(-1)
                variance_P = squares_P - expected_P1[:, 0].square()
            else:
                variance_P = (p_PV.double() * (f_PV.double() - expected_P1).square()).sum(-1)
            variances.append(variance_P / self.draws)
        entropy_P = -(p_PV * log_p_PV).sum(-1).double()
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
    logits_PV: Tensor, uniforms_PN: Tensor, temperature: float = 1.0, proposal: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """N draws for each position.

    uniforms_PN: float64 in [0, 1). Returns ids int32 [P, N] in the order of the uniforms, log(p / q) of each id, and
    the highest logit [P].
    """

    def draw(logits_PV: Tensor, uniforms_PN: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weights_PBW, highest_P1 = block_weights(logits_PV, proposal / temperature)
        blocks_PB = weights_PBW.sum(-1).double()
        blocks_PAW = in_blocks(blocks_PB, weights_PBW.shape[-1])
        groups_PA = blocks_PAW.sum(-1)
        group_PN, fraction_PN = _invert(groups_PA[:, None], uniforms_PN)
        block_PN, fraction_PN = _invert(take(blocks_PAW, group_PN), fraction_PN)
        block_PN = block_PN + group_PN * blocks_PAW.shape[-1]
        id_PN, _ = _invert(take(weights_PBW, block_PN).double(), fraction_PN)
        id_PN = id_PN + block_PN * weights_PBW.shape[-1]
        log_weights_PN = torch.zeros_like(uniforms_PN, dtype=torch.float32)
        if proposal != 1.0:
            # log p - log q, where log q = z s / T - log sum exp(z s / T)
            relative_PV = (logits_PV - highest_P1) / temperature
            chosen_PN = relative_PV.gather(1, id_PN)
            log_sums_P1 = groups_PA.sum(-1, keepdim=True).log().float() - relative_PV.logsumexp(-1, keepdim=True)
            log_weights_PN = chosen_PN * (1.0 - proposal) + log_sums_P1
        return id_PN.int(), log_weights_PN, highest_P1[:, 0]

    return in_cache(draw, logits_PV, uniforms_PN)  # type: ignore[return-value]


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
    """float64 [P, N] in [0, 1): the numbers of position p start at counter p * ceil(N / 4) of the row's own stream."""
    digest = hashlib.sha256(f"{seed}/{teacher_hash}/{sequence_hash}".encode()).digest()
    blocks = -(-draws // WORDS_IN_BLOCK)
    generator = np.random.Philox(key=np.frombuffer(digest[:16], "<u8"))
    length = int(positions.max()) + 1 if len(positions) else 0
    words = generator.random_raw(length * blocks * WORDS_IN_BLOCK).reshape(length, blocks * WORDS_IN_BLOCK)
    uniforms: np.ndarray = (words[positions, :draws] >> np.uint64(11)) * 2.0**-53
    return uniforms


def _invert(masses_PNW: Tensor, fractions_PN: Tensor) -> tuple[Tensor, Tensor]:
    """The index, int64 [P, N], of the mass in which a fraction of their sum falls, and the fraction of that mass.

    It never finds a mass of zero: the fraction stays below the whole, and a boundary belongs to the mass that follows.
    """
    ends_PNW = masses_PNW.cumsum(-1)
    wanted_PN1 = (fractions_PN * ends_PNW[..., -1]).minimum(ends_PNW[..., -1] * BELOW_ONE)[..., None]
    index_PN = (ends_PNW <= wanted_PN1).sum(-1)
    ends_PNW, masses_PNW = (part.expand(-1, fractions_PN.shape[1], -1) for part in (ends_PNW, masses_PNW))
    mass_PN1 = masses_PNW.gather(-1, index_PN[..., None])
    before_PN1 = ends_PNW.gather(-1, index_PN[..., None]) - mass_PN1
    return index_PN, ((wanted_PN1 - before_PN1) / mass_PN1).clamp(0.0, BELOW_ONE)[..., 0]
