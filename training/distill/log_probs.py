"""Kinds that keep log-probabilities of the most likely ids, or of all ids, and the mass of the ids that are not kept.

The kept values are exact, so the audit compares directly: log p of each kept id, the mass of the kept ids with the mass
of the K most likely ids, and the tails.

Shapes: P positions, V vocabulary, K ids kept at a position.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from data.logits import CodecSpec, Targets
from training.distill.blocks import block_weights, in_cache, take
from training.distill.kind import Check, Kind, Limits, Tally
from training.errors import UserError


@dataclass(frozen=True, kw_only=True)
class LogProbs(Kind):
    """Log-probabilities of the K most likely ids, and a tail."""

    sums: ClassVar[tuple[str, ...]] = ("entropy",)
    largest: ClassVar[tuple[str, ...]] = ("log p of kept ids", "lost mass", "tail")

    @abstractmethod
    def kept(self, vocab_size: int) -> int:
        """The number K of kept ids."""

    def codec(self, vocab_size: int) -> CodecSpec:
        return CodecSpec(vocab_size=vocab_size, estimator=self.name, temperature=self.temperature)

    def keep(self, logits_PV: Tensor, noise: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        return top_k_teacher(logits_PV, self.kept(logits_PV.shape[1]), self.temperature)

    def targets(self, *kept: np.ndarray) -> Targets:
        ids_PK, log_probs_PK, tail_P = kept
        return {"target_ids": ids_PK, "target_log_probs": log_probs_PK, "target_tail": tail_P}

    def statistics(self, logits_PV: Tensor, kept: Mapping[str, Tensor], coins_V: Tensor) -> Tensor:
        """The entropy, the largest difference of log p, the lost mass, and the difference of the tails."""
        log_p_PV = torch.log_softmax(logits_PV / self.temperature, -1)
        kept_PK = kept["target_log_probs"] > -torch.inf
        fresh_PK = log_p_PV.gather(1, kept["target_ids"].long())
        differences_PK = torch.where(kept_PK, (fresh_PK - kept["target_log_probs"]).abs(), 0.0)
        mass_P = torch.where(kept_PK, fresh_PK.exp(), 0.0).sum(-1)
        _, best_PK, tail_P = top_k_teacher(logits_PV, kept["target_ids"].shape[1], self.temperature)
        lost_P = best_PK.exp().sum(-1) - mass_P
        tails_P = (tail_P - kept["target_tail"]).abs()
        entropy_P = -(log_p_PV.exp() * log_p_PV).sum(-1)
        return torch.stack([entropy_P, differences_PK.amax(-1), lost_P, tails_P], -1)

    def checks(self, total: Tally, limits: Limits) -> list[Check]:
        entropy = total.sums.get("entropy", 0.0) / max(1, total.positions)
        detail = f"the largest difference of {total.positions} targets; entropy {entropy:.3f} nats"
        of_statistic = dict(zip(self.largest, (limits.log_prob_difference, *[limits.lost_mass] * 2), strict=True))
        return [
            Check(name=name, value=total.largest.get(name, 0.0), limit=limit, detail=detail)
            for name, limit in of_statistic.items()
        ]


def top_k_teacher(logits_PV: Tensor, k: int, temperature: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """The K most likely ids [P, K] int32, their log p [P, K], most likely first, and the mass [P] of all others.

    The mass of the others is summed by itself: 1 - sum p_i would lose its digits. Raises UserError for a K beyond the
    vocabulary.
    """
    if not 1 <= k <= logits_PV.shape[-1]:
        raise UserError(f"got k={k} for a vocabulary of {logits_PV.shape[-1]}; allowed are 1 to {logits_PV.shape[-1]}")

    def top(logits_PV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weights_PBW, highest_P1 = block_weights(logits_PV, 1.0 / temperature)
        positions, blocks, width = weights_PBW.shape
        if k <= blocks:
            # The K most likely ids are in the K blocks with the largest maxima.
            block_PK = weights_PBW.amax(-1).topk(k, dim=-1).indices
            top_PK, place_PK = take(weights_PBW, block_PK).flatten(1).topk(k, dim=-1)
            ids_PK = block_PK.gather(1, place_PK // width) * width + place_PK % width
        else:
            top_PK, ids_PK = weights_PBW.flatten(1).topk(k, dim=-1)
        others_PV = weights_PBW.flatten(1).scatter(1, ids_PK, 0.0)
        others_P1 = others_PV.view(positions, blocks, width).sum(-1).sum(-1, keepdim=True)
        total_P1 = top_PK.sum(-1, keepdim=True) + others_P1
        relative_PK = (logits_PV.gather(1, ids_PK) - highest_P1) / temperature
        log_probs_PK = relative_PK - total_P1.log()
        return ids_PK.int(), log_probs_PK, (others_P1 / total_P1)[:, 0]

    return in_cache(top, logits_PV)  # type: ignore[return-value]
