"""Losses as (sum over targets, number of targets), float32; the caller who has all sums divides once, at the end.

Target t of a row is token t+1, or the teacher's distribution there, at every t with `loss_mask[t]` set. The logits of a
whole batch never exist at once: the head runs on chunks of positions. In training the gradient of each chunk is taken
right away, in closed form and in the chunk's own memory, so that what is kept for the backward pass has the size of the
hidden states. Products, sums and gradients are float32 whatever the model's type. Cost: the head's three matrix
products, two chunks of logits, and one float32 gradient of the embedding table.

Each objective is the cross-entropy -sum_i p_i log q_i in nats to some target p; the objectives differ in what is known
of p. The student's q is softmax(logits / T) of the capped logits at `temperature` T, and p must be the teacher's at the
same temperature. By convention a loss at T is multiplied by T^2, because gradients shrink by about 1 / T^2 (arXiv
1503.02531, section 2). So neither the learning rate nor the share of the next token depends on T. In every loss to a
teacher, `alpha` is the share of the next-token loss, at temperature 1:

    (1 - alpha) T^2 -sum_i p_i log q_i  +  alpha -log softmax(logits)_next

One product with the table serves both terms; at T = 1 one softmax serves both too.

Batches are dicts of tensors: tokens, segment_ids, positions int32 [B, T]; loss_mask bool [B, T]; and for distillation
the columns of data/padding.py. The loss to each kind of cached distribution is in training/distill/kinds/; what all
losses share is here.

Shapes: B batch, T time, P positions of a chunk, D model, V vocabulary, K distinct ids at a target.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from model import TableModel
from training.config import DistillConfig
from training.errors import UserError
from training.loss_head import CHUNK_POSITIONS, Head, HeadLoss, Objective, RunHead, loop_head, to_weighted_ids

Batch = Mapping[str, Tensor]
LossFunction = Callable[[TableModel, Batch], tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """Settings of every loss, besides the model and the batch."""

    distill: DistillConfig = field(default_factory=DistillConfig)
    """Temperature, share of the next-token loss, and tail of a top-k, for losses to a teacher."""
    z_loss: float = 0.0
    """Weight of log(Z)^2 at each target in the gradient (arXiv 2204.02311, section 5); the loss sum leaves the term
    out."""
    chunk_positions: int = CHUNK_POSITIONS
    """Positions whose logits exist at once."""
    run_head: RunHead = loop_head
    """The backend's loop over the chunks."""

    def __post_init__(self) -> None:
        if self.chunk_positions < 1:
            raise UserError(
                f"chunk_positions is {self.chunk_positions}; it must be at least 1 (default: {CHUNK_POSITIONS})"
            )

    def teacher_head(self, model: TableModel, objective: Objective) -> Head:
        """The head of a loss to a teacher."""
        return Head(
            softcap=model.config.final_softcap,
            temperature=self.distill.temperature,
            objective=objective,
            chunk_positions=self.chunk_positions,
            alpha=self.distill.alpha,
            z_loss=self.z_loss,
        )


USUAL = LossOptions()


def next_token_loss(model: TableModel, batch: Batch, options: LossOptions = USUAL) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats to the next token, summed over targets, and the number of targets; both float32 scalars.

    `options.distill` is not used.
    """
    next_BT1 = next_ids(batch)
    weights_BT1 = torch.ones_like(next_BT1, dtype=torch.float32)
    head = Head(
        softcap=model.config.final_softcap,
        temperature=1.0,
        objective=to_weighted_ids,
        chunk_positions=options.chunk_positions,
        z_loss=options.z_loss,
    )
    return masked_sum(model, batch, head, [next_BT1, weights_BT1], options.run_head)


def next_ids(batch: Batch) -> Tensor:
    """The next token of each token, int64 [B, T, 1]; the last column wraps around, and no mask has it as a target."""
    return batch["tokens"].roll(-1, dims=1).long()[..., None]


def masked_sum(
    model: TableModel, batch: Batch, head: Head, targets: list[Tensor], run_head: RunHead
) -> tuple[Tensor, Tensor]:
    """The head's losses summed over the targets of the mask, and the number of targets.

    `targets` are what the head's objective takes, [B, T, ...] each. The next token is added if the head mixes it in.
    """
    hidden_BTD = model.hidden(batch["tokens"], batch["positions"], batch["segment_ids"])
    mask_BT = batch["loss_mask"].float()
    if head.alpha:
        targets = [*targets, next_ids(batch)]
    if torch.is_grad_enabled():
        loss_sum: Tensor = HeadLoss.apply(hidden_BTD, model.table, run_head, head, mask_BT, *targets)
    else:
        loss_sum, _ = run_head(head, hidden_BTD, model.table, mask_BT, targets, with_gradients=False)
    return loss_sum, mask_BT.sum()
