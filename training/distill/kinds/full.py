"""`full`: the probability of every id, V numbers for each target. No bias, no variance; for tests of the other kinds.

Shapes: B batch, T time, P positions, V vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from data.logits import CodecSpec
from data.padding import DENSE, Padding
from model import TableModel
from training.distill.log_probs import LogProbs
from training.errors import UserError
from training.loss import USUAL, Batch, LossOptions, masked_sum

MOST_IDS = 16_384
"""Largest vocabulary, in ids: 50 KB for each target."""


@dataclass(frozen=True, kw_only=True)
class Full(LogProbs):
    """All ids."""

    name: ClassVar[str] = "full"
    padding: ClassVar[Padding] = DENSE

    def kept(self, vocab_size: int) -> int:
        return vocab_size

    def codec(self, vocab_size: int) -> CodecSpec:
        if vocab_size > MOST_IDS:
            raise UserError(
                f"got a vocabulary of {vocab_size} ids for estimator 'full', which is for tests, up to {MOST_IDS} "
                "ids; use estimator 'sample'"
            )
        return super().codec(vocab_size)

    @classmethod
    def described(cls, facts: Mapping[str, Any]) -> str:
        return "the teacher's whole distribution"

    @classmethod
    def loss(cls, model: TableModel, batch: Batch, codec: CodecSpec, options: LossOptions) -> tuple[Tensor, Tensor]:
        return distill_full_loss(model, batch, options)


def distill_full_loss(model: TableModel, batch: Batch, options: LossOptions = USUAL) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats to the teacher's whole distribution, summed over targets, and the number of targets.

    `target_probs`: float [B, T, V].
    """
    head = options.teacher_head(model, _to_distribution)
    probs_BTV = batch["target_probs"].float()
    targets = [probs_BTV if head.target_mass == 1.0 else probs_BTV * head.target_mass]
    return masked_sum(model, batch, head, targets, options.run_head)


def _to_distribution(log_q_PV: Tensor, probs_PV: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
    """-sum_V p_i log q_i; gradient q - p."""
    losses_P = -(log_q_PV * probs_PV).sum(-1)
    return losses_P, lambda: log_q_PV.exp_().sub_(probs_PV)
