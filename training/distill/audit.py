"""Is a cache of logits what its teacher says? Statistics of kept targets against the teacher's logits, on any device.

Of `sample`: for functions f of an id, the mean over draws of f is compared with its expectation under p. One draw of
a position is worth w f(i), where w = p_i / q_i is 1 unless the proposal is not p; the teacher says that it has mean
sum p f and variance sum p w f^2 - (sum p f)^2. Over all positions the sum of differences, divided by the root of the
sum of variances / N, is about standard normal: z. The functions are

    log p           another temperature, another position, a support that was renormalized (its mean is the entropy gap)
    most likely id  the share of the head
    p               how even the distribution is
    coin            +1 or -1 for each id, by a seed: whether mass was moved from some ids to others

Of `topk` and `full` there is nothing random: log p of each kept id, the mass of the kept ids against that of the
best K ids, and the tail are compared directly.

Shapes: P positions, V vocabulary, K ids kept at a position, F functions.
"""

import math
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from model import Gemma2
from training.backends.base import Backend
from training.distill.teacher import Estimator, Targets, map_logits, top_k_teacher
from training.feed import HostBatch

FUNCTIONS = ("log p", "most likely id", "p", "coin")
LOG_FLOOR = -20.0
"""nats: log p below it counts as it, or one rare id would be most of the variance"""


@dataclass(kw_only=True)
class Tally:
    """Sums over audited targets; sums of two parts are the sum."""

    positions: int = 0
    differences: dict[str, float] = field(default_factory=lambda: dict.fromkeys(FUNCTIONS, 0.0))
    """mean over draws - expectation, summed over positions"""
    variances: dict[str, float] = field(default_factory=lambda: dict.fromkeys(FUNCTIONS, 0.0))
    """of that sum"""
    entropy: float = 0.0
    """of the teacher, in nats, summed"""
    largest_difference: float = 0.0
    """of log p of a kept id, in nats"""
    largest_lost_mass: float = 0.0
    """that the best K ids have more than those kept"""
    largest_tail_difference: float = 0.0

    def z(self, name: str) -> float:
        """Standard normal, about, where the cache is honest."""
        difference = self.differences[name]
        if self.variances[name] <= 0:
            return 0.0 if abs(difference) < 1e-6 * max(1, self.positions) else math.copysign(math.inf, difference)
        return difference / math.sqrt(self.variances[name])

    def add(self, other: "Tally") -> None:
        self.positions += other.positions
        self.entropy += other.entropy
        for name in FUNCTIONS:
            self.differences[name] += other.differences[name]
            self.variances[name] += other.variances[name]
        for name in ("largest_difference", "largest_lost_mass", "largest_tail_difference"):
            setattr(self, name, max(getattr(self, name), getattr(other, name)))


def z_limit(alpha: float) -> float:
    """|z| that an honest cache exceeds in any of the functions with probability `alpha` at most (Bonferroni)."""
    return NormalDist().inv_cdf(1 - alpha / (2 * len(FUNCTIONS)))


@torch.no_grad()
def tally(
    model: Gemma2, backend: Backend, batch: HostBatch, kept: Targets, estimator: Estimator, coin_seed: int = 0
) -> Tally:
    """The statistics of a batch whose kept targets, all rows together, are `kept`, padded to one K."""
    positions = len(kept["target_ids"])
    vocabulary = model.config.vocab_size
    coins = np.random.default_rng(coin_seed).integers(0, 2, vocabulary).astype(np.float32) * 2 - 1
    coins_V = backend.to_device({"coins": coins})["coins"]

    def work(logits_PV: Tensor, of: dict[str, Tensor]) -> Tensor:
        if estimator.name == "sample":
            return _of_draws(logits_PV, of, estimator, coins_V)
        return _of_top(logits_PV, of, estimator)

    found = map_logits(model, backend, batch, kept, work)
    figures = np.concatenate([part.cpu().numpy() for part in found])[:positions].astype(np.float64)
    total = Tally(positions=positions)
    if estimator.name != "sample":
        for column, name in enumerate(("largest_difference", "largest_lost_mass", "largest_tail_difference")):
            setattr(total, name, float(figures[:, column].max(initial=0.0)))
        total.entropy = float(figures[:, 3].sum())
        return total
    for column, name in enumerate(FUNCTIONS):
        total.differences[name] = float(figures[:, column].sum())
        total.variances[name] = float(figures[:, len(FUNCTIONS) + column].sum())
    total.entropy = float(figures[:, -1].sum())
    return total


def _of_draws(logits_PV: Tensor, of: dict[str, Tensor], estimator: Estimator, coins_V: Tensor) -> Tensor:
    """[P, 2 F + 1]: for each function mean - expectation and the variance of that, and the entropy."""
    log_p_PV = torch.log_softmax(logits_PV / estimator.temperature, -1)
    p_PV = log_p_PV.exp()
    weights_PV = torch.ones_like(p_PV)
    if estimator.weighted:
        weights_PV = (log_p_PV - torch.log_softmax(log_p_PV * estimator.proposal, -1)).exp()
    ids_PK = of["target_ids"].long()
    drawn_PK = of["target_counts"].float() / estimator.draws
    if "target_log_weights" in of:
        drawn_PK = drawn_PK * of["target_log_weights"].exp()
    best_P1 = log_p_PV.argmax(-1, keepdim=True)
    ids_V = torch.arange(log_p_PV.shape[1], device=log_p_PV.device)
    functions = (log_p_PV.clamp(min=LOG_FLOOR), (ids_V == best_P1).float(), p_PV, coins_V.expand_as(p_PV))
    differences, variances = [], []
    for f_PV in functions:
        # float64: variances of a teacher that is almost certain are differences of almost equal numbers
        expected_P1 = (p_PV.double() * f_PV.double()).sum(-1, keepdim=True)
        mean_P = (drawn_PK.double() * f_PV.gather(1, ids_PK).double()).sum(-1)
        differences.append(mean_P - expected_P1[:, 0])
        if estimator.weighted:
            squares_P = (p_PV.double() * weights_PV.double() * f_PV.double().square()).sum(-1)
            variance_P = squares_P - expected_P1[:, 0].square()
        else:
            variance_P = (p_PV.double() * (f_PV.double() - expected_P1).square()).sum(-1)
        variances.append(variance_P / estimator.draws)
    entropy_P = -(p_PV * log_p_PV).sum(-1).double()
    return torch.stack([*differences, *variances, entropy_P], -1)


def _of_top(logits_PV: Tensor, of: dict[str, Tensor], estimator: Estimator) -> Tensor:
    """[P, 4]: the largest difference of log p, the mass lost, the difference of the tail, the entropy."""
    log_p_PV = torch.log_softmax(logits_PV / estimator.temperature, -1)
    kept_PK = of["target_log_probs"] > -torch.inf
    fresh_PK = log_p_PV.gather(1, of["target_ids"].long())
    differences_PK = torch.where(kept_PK, (fresh_PK - of["target_log_probs"]).abs(), 0.0)
    mass_P = torch.where(kept_PK, fresh_PK.exp(), 0.0).double().sum(-1)
    _, best_PK, tail_P = top_k_teacher(logits_PV, of["target_ids"].shape[1], estimator.temperature)
    lost_P = best_PK.exp().double().sum(-1) - mass_P
    tails_P = (tail_P - of["target_tail"]).abs().double()
    entropy_P = -(log_p_PV.exp() * log_p_PV).sum(-1).double()
    return torch.stack([differences_PK.amax(-1).double(), lost_P, tails_P, entropy_P], -1)
