"""Losses as (sum over targets, number of targets), float32; whoever has all sums divides once, at the end.

Target t of a row is token t+1, or the teacher's distribution there, wherever `loss_mask[t]` is set. The logits of a
whole batch never exist at once: the head runs on slices of time, and in training each slice's gradient is taken right
away, so what is kept for the backward pass is the size of the hidden states. Cost: the head's three matrix products,
and one slice of logits.

Batches are dicts of tensors: tokens, segment_ids, positions int32 [B, T]; loss_mask bool [B, T]; for distillation
target_ids and target_counts int32 [B, T, K], padded with count 0. Shapes: B batch, T time, D model, V vocabulary, K
distinct ids at a target.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from model import Gemma2

CHUNK_POSITIONS = 256
"""positions in a slice of logits: rows enough for an efficient matrix product; 8 MiB at 8192 ids, 250 MiB at 256,000"""

Batch = Mapping[str, Tensor]
LossFunction = Callable[[Gemma2, Batch], tuple[Tensor, Tensor]]
TokenLosses = Callable[..., Tensor]


def next_token_loss(model: Gemma2, batch: Batch) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats to the next token, summed over targets, and the number of targets; both float32 scalars."""
    next_BT = batch["tokens"].roll(-1, dims=1).long()  # the last column wraps around, and loss_mask never sets it
    return _masked_sum(model, batch, _cross_entropy, [next_BT])


def distill_loss(model: Gemma2, batch: Batch, draws: int) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats to the teacher's sampled distribution, summed over targets, and their number.

    log Z - sum_i (c_i / N) logit_i: its gradient has full distillation's as its expectation (arXiv 2503.16870).
    """
    weights_BTK = batch["target_counts"].float() / draws
    return _masked_sum(model, batch, _cross_entropy_to_counts, [batch["target_ids"].long(), weights_BTK])


def _cross_entropy(logits_BTV: Tensor, next_BT: Tensor) -> Tensor:
    return logits_BTV.logsumexp(-1) - logits_BTV.gather(-1, next_BT[..., None])[..., 0]


def _cross_entropy_to_counts(logits_BTV: Tensor, ids_BTK: Tensor, weights_BTK: Tensor) -> Tensor:
    return logits_BTV.logsumexp(-1) - (logits_BTV.gather(-1, ids_BTK) * weights_BTK).sum(-1)


def _masked_sum(model: Gemma2, batch: Batch, losses: TokenLosses, targets: list[Tensor]) -> tuple[Tensor, Tensor]:
    hidden_BTD = model.hidden(batch["tokens"], batch["positions"], batch["segment_ids"])
    mask_BT = batch["loss_mask"].float()
    if torch.is_grad_enabled():
        weight_VD = model.model.embed_tokens.weight
        loss_sum = _HeadLoss.apply(hidden_BTD, weight_VD, model.logits, losses, mask_BT, *targets)
    else:
        parts = [
            (losses(model.logits(hidden), *of) * mask).sum()
            for hidden, mask, *of in _slices(hidden_BTD, mask_BT, *targets)
        ]
        loss_sum = torch.stack(parts).sum()
    return loss_sum, mask_BT.sum()


class _HeadLoss(torch.autograd.Function):
    """The sum of losses from hidden states, with its gradients computed slice by slice during the forward pass.

    They only have to be scaled in the backward pass, since the loss is a scalar. `head` uses `weight_VD`, its one
    parameter.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_BTD: Tensor,
        weight_VD: Tensor,
        head: Callable[[Tensor], Tensor],
        losses: TokenLosses,
        mask_BT: Tensor,
        *targets: Tensor,
    ) -> Tensor:
        total: Tensor | None = None
        weight_gradient: Tensor | None = None
        hidden_gradients: list[Tensor] = []
        for hidden, mask, *of in _slices(hidden_BTD, mask_BT, *targets):
            with torch.enable_grad():
                hidden = hidden.detach().requires_grad_()
                loss = (losses(head(hidden), *of) * mask).sum()
                of_hidden, of_weight = torch.autograd.grad(loss, (hidden, weight_VD))
            total = loss.detach() if total is None else total + loss.detach()
            weight_gradient = of_weight if weight_gradient is None else weight_gradient.add_(of_weight)
            hidden_gradients.append(of_hidden)
        assert total is not None
        ctx.save_for_backward(torch.cat(hidden_gradients, dim=1), weight_gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        of_hidden, of_weight = ctx.saved_tensors
        return (of_hidden * gradient, of_weight * gradient, *[None] * (len(ctx.needs_input_grad) - 2))


def _slices(hidden_BTD: Tensor, *others: Tensor) -> list[tuple[Tensor, ...]]:
    """Cuts [B, T, ...] tensors along time (rows stay on their devices) into slices of CHUNK_POSITIONS positions."""
    width = max(1, CHUNK_POSITIONS // hidden_BTD.shape[0])
    return list(zip(*(tensor.split(width, dim=1) for tensor in (hidden_BTD, *others)), strict=True))
