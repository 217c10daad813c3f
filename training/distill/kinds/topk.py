"""`topk`: the K largest probabilities, and the mass of all other ids.

The kept values are exact. As a target without the tail (renormalized) they are biased: every kept id by the factor
1 / (1 - tail), every other id by -p_i.

Shapes: B batch, T time, P positions, V vocabulary, K ids kept at a position.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from data.logits import CodecSpec
from model import TableModel
from training.distill.kind import check_number
from training.distill.log_probs import LogProbs
from training.errors import UserError
from training.loss import USUAL, Batch, LossOptions, masked_sum, next_ids
from training.loss_head import to_weighted_ids


@dataclass(frozen=True, kw_only=True)
class TopK(LogProbs):
    """The most likely ids."""

    name: ClassVar[str] = "topk"
    has_tail: ClassVar[bool] = True

    top: int = 50
    """Number K of ids kept at each position."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("top", self.top)

    def kept(self, vocab_size: int) -> int:
        return self.top

    def codec(self, vocab_size: int) -> CodecSpec:
        if self.top > vocab_size:
            raise UserError(
                f"top is {self.top}, and the vocabulary has {vocab_size} ids; give --top {vocab_size} or less"
            )
        return super().codec(vocab_size)

    @classmethod
    def described(cls, facts: Mapping[str, Any]) -> str:
        return f"the teacher's {facts['max_unique']} most likely ids and the mass of all others"

    @classmethod
    def loss(cls, model: TableModel, batch: Batch, codec: CodecSpec, options: LossOptions) -> tuple[Tensor, Tensor]:
        return distill_topk_loss(model, batch, options)


def distill_topk_loss(model: TableModel, batch: Batch, options: LossOptions = USUAL) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats to the teacher's K best ids and their tail, summed over targets, and the number of targets.

    `target_tail` is p_tail, the teacher's mass outside of the K ids, which the cache keeps because 1 - sum p_i would
    lose its digits. At least one id of each target is real. `options.distill.tail` decides the treatment of the tail:

    `bucket`        -sum_K p_i log q_i - p_tail log q_tail, where q_tail is the student's mass outside of the K ids: the
                    student is free in how it spreads the tail, and is not pushed to have none
    `renormalize`   the K probabilities divided by their sum: the usual top-k, whose optimum has no tail at all
    `ground_truth`  p_tail goes to the true next token, among the K or not (the "naive fix" of arXiv 2503.16870)
    """
    log_probs_BTK = batch["target_log_probs"].float()
    ids_BTK = batch["target_ids"].long()
    # Padding repeats the first id, so that padding takes nothing out of the tail.
    ids_BTK = torch.where(log_probs_BTK == -torch.inf, ids_BTK[..., :1], ids_BTK)
    tail = options.distill.tail
    head = options.teacher_head(model, _to_top_and_tail if tail == "bucket" else to_weighted_ids)
    probs_BTK = log_probs_BTK.exp()
    tail_BT1 = batch["target_tail"].float()[..., None] * head.target_mass
    match tail:
        case "bucket":
            targets = [ids_BTK, probs_BTK * head.target_mass, tail_BT1]
        case "renormalize":
            kept_BT1 = probs_BTK.sum(-1, keepdim=True)  # 0 where there is no target
            tiny = torch.finfo(torch.float32).tiny
            targets = [ids_BTK, probs_BTK * (head.target_mass / kept_BT1.clamp_min(tiny))]
        case "ground_truth":
            ids_BTK = torch.cat([ids_BTK, next_ids(batch)], dim=-1)
            targets = [ids_BTK, torch.cat([probs_BTK * head.target_mass, tail_BT1], dim=-1)]
    return masked_sum(model, batch, head, targets, options.run_head)


def _to_top_and_tail(
    log_q_PV: Tensor, ids_PK: Tensor, probs_PK: Tensor, tail_P1: Tensor
) -> tuple[Tensor, Callable[[], Tensor]]:
    """-sum_K p_i log q_i - p_tail log q_tail; gradient q_i - p_i at the K ids, q_j (1 - p_tail / q_tail) elsewhere.

    q_tail is summed over the other ids, relative to the greatest of these: 1 - sum_K q_i would cancel, and underflow
    could make its logarithm infinite. If there is no other id, the term is a finite number times p_tail = 0.
    """
    log_top_PK = log_q_PV.gather(-1, ids_PK)
    others_PV = log_q_PV.scatter_(-1, ids_PK, torch.finfo(torch.float32).min)
    greatest_P1 = others_PV.amax(-1, keepdim=True)
    others_PV = others_PV.sub_(greatest_P1).exp_()
    sum_P1 = others_PV.sum(-1, keepdim=True)
    losses_P1 = -(log_top_PK * probs_PK).sum(-1, keepdim=True) - tail_P1 * (greatest_P1 + sum_P1.log())

    def gradient() -> Tensor:
        others_PV.mul_(greatest_P1.exp() - tail_P1 / sum_P1)
        return others_PV.scatter_(-1, ids_PK, log_top_PK.exp()).scatter_add_(-1, ids_PK, -probs_PK)

    return losses_P1[..., 0], gradient
