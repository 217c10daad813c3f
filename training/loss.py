"""Losses as (sum over targets, number of targets), float32; whoever has all sums divides once, at the end.

Target t of a row is token t+1, or the teacher's distribution there, wherever `loss_mask[t]` is set. The logits of a
whole batch never exist at once: the head runs on slices of time, and in training each slice's gradient is taken right
away, in closed form and in the slice's own memory, so what is kept for the backward pass is the size of the hidden
states. Products, sums and gradients are float32 whatever the model's type. Cost: the head's three matrix products, two
slices of logits, and one float32 gradient of the embedding table.

Each objective is cross-entropy -sum_i p_i log q_i in nats to some target p; they differ in what is known of p. The
student's q is softmax(logits / temperature) of the capped logits, and p has to be the teacher's at the same
temperature. No factor T^2 is applied: gradients shrink by about 1 / T^2 (arXiv 1503.02531, section 2), and whoever adds
a hard-label loss to one at T != 1 multiplies the latter by T^2.

Batches are dicts of tensors: tokens, segment_ids, positions int32 [B, T]; loss_mask bool [B, T]; and for distillation
    sampled   target_ids, target_counts int32 [B, T, K], padded with count 0
    top-k     target_ids int32, target_log_probs float [B, T, K], padded with -inf, and target_tail float [B, T]
    full      target_probs float [B, T, V]
The ids of one target are distinct, apart from padding, whose id may be any.

Shapes: B batch, T time, P positions of a slice, D model, V vocabulary, K distinct ids at a target.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from model import Gemma2

CHUNK_POSITIONS = 256
"""positions in a slice of logits: rows enough for an efficient matrix product; 8 MiB at 8192 ids, 250 MiB at 256,000"""

Batch = Mapping[str, Tensor]
LossFunction = Callable[[Gemma2, Batch], tuple[Tensor, Tensor]]
Objective = Callable[..., tuple[Tensor, Callable[[], Tensor]]]
"""(log_q_PV, *targets) -> losses [P] and a function for their gradient by the logits [P, V].

That function may be called once, and only before `log_q_PV` is used for something else: it works in its memory.
"""


def next_token_loss(
    model: Gemma2,
    batch: Batch,
    *,
    chunk_positions: int = CHUNK_POSITIONS,
    run_head: "RunHead | None" = None,
    z_loss: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats to the next token, summed over targets, and the number of targets; both float32 scalars.

    `run_head`, here and below: how the backend walks the slices; None is `loop_head`. `z_loss`: weight of log(Z)^2 at
    each target in the gradient (arXiv 2204.02311, section 5); the sum is without it.
    """
    next_BT1 = batch["tokens"].roll(-1, dims=1).long()[..., None]  # the last column wraps around; no mask sets it
    weights_BT1 = torch.ones_like(next_BT1, dtype=torch.float32)
    return _masked_sum(model, batch, _to_weighted_ids, [next_BT1, weights_BT1], 1.0, chunk_positions, run_head, z_loss)


def distill_loss(
    model: Gemma2,
    batch: Batch,
    draws: int,
    *,
    temperature: float = 1.0,
    chunk_positions: int = CHUNK_POSITIONS,
    run_head: "RunHead | None" = None,
    z_loss: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats to counts / N of the teacher's N `draws`, summed over targets, and their number.

    Its gradient has full distillation's as its expectation (arXiv 2503.16870).
    """
    weights_BTK = batch["target_counts"].float() / draws
    targets = [batch["target_ids"].long(), weights_BTK]
    return _masked_sum(model, batch, _to_weighted_ids, targets, temperature, chunk_positions, run_head, z_loss)


def distill_topk_loss(
    model: Gemma2,
    batch: Batch,
    *,
    temperature: float = 1.0,
    chunk_positions: int = CHUNK_POSITIONS,
    run_head: "RunHead | None" = None,
    z_loss: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats to the teacher's K best ids and all others as one, summed over targets, and their number.

    -sum_K p_i log q_i - p_tail log q_tail, where q_tail is the student's mass outside of the K ids. `target_tail` is
    p_tail, which the cache keeps because 1 - sum p_i would lose its digits. At least one id of each target is real.
    The gradient leaves the student free in how it spreads the tail, so unlike a renormalised top-k it does not push
    the tail to zero.
    """
    log_probs_BTK = batch["target_log_probs"].float()
    ids_BTK = batch["target_ids"].long()
    # Padding repeats the first id, so that it takes nothing out of the tail.
    ids_BTK = torch.where(log_probs_BTK == -torch.inf, ids_BTK[..., :1], ids_BTK)
    targets = [ids_BTK, log_probs_BTK.exp(), batch["target_tail"].float()[..., None]]
    return _masked_sum(model, batch, _to_top_and_tail, targets, temperature, chunk_positions, run_head, z_loss)


def distill_full_loss(
    model: Gemma2,
    batch: Batch,
    *,
    temperature: float = 1.0,
    chunk_positions: int = CHUNK_POSITIONS,
    run_head: "RunHead | None" = None,
    z_loss: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats to the teacher's whole distribution: what the others estimate, for tests of them."""
    targets = [batch["target_probs"].float()]
    return _masked_sum(model, batch, _to_distribution, targets, temperature, chunk_positions, run_head, z_loss)


def _to_weighted_ids(log_q_PV: Tensor, ids_PK: Tensor, weights_PK: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
    """-sum_K w_i log q_i, with weights that sum to 1; gradient q - w."""
    losses_P = -(log_q_PV.gather(-1, ids_PK) * weights_PK).sum(-1)
    return losses_P, lambda: log_q_PV.exp_().scatter_add_(-1, ids_PK, -weights_PK)


def _to_top_and_tail(
    log_q_PV: Tensor, ids_PK: Tensor, probs_PK: Tensor, tail_P1: Tensor
) -> tuple[Tensor, Callable[[], Tensor]]:
    """-sum_K p_i log q_i - p_tail log q_tail; gradient q_i - p_i at the K ids, q_j (1 - p_tail / q_tail) elsewhere.

    q_tail is summed over the other ids relative to the greatest of them: 1 - sum_K q_i would cancel, and underflow
    could make its logarithm infinite. Without any other id all of this is a finite number times p_tail = 0.
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


def _to_distribution(log_q_PV: Tensor, probs_PV: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
    """-sum_V p_i log q_i, with probabilities that sum to 1; gradient q - p."""
    losses_P = -(log_q_PV * probs_PV).sum(-1)
    return losses_P, lambda: log_q_PV.exp_().sub_(probs_PV)


def _masked_sum(
    model: Gemma2,
    batch: Batch,
    objective: Objective,
    targets: list[Tensor],
    temperature: float,
    chunk_positions: int,
    run_head: "RunHead | None",
    z_loss: float,
) -> tuple[Tensor, Tensor]:
    if not 0.0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature}, but must be above 0 and finite; 1 takes the model as it is")
    if chunk_positions < 1:
        raise ValueError(f"chunk_positions is {chunk_positions}, but must be at least 1; {CHUNK_POSITIONS} does well")
    hidden_BTD = model.hidden(batch["tokens"], batch["positions"], batch["segment_ids"])
    weight_VD = model.model.embed_tokens.weight
    mask_BT = batch["loss_mask"].float()
    head = Head(model.config.final_softcap, temperature, objective, chunk_positions, z_loss)
    run = run_head or loop_head
    if torch.is_grad_enabled():
        loss_sum: Tensor = _HeadLoss.apply(hidden_BTD, weight_VD, run, head, mask_BT, *targets)
    else:
        loss_sum, _ = run(head, hidden_BTD, weight_VD, mask_BT, targets, with_gradients=False)
    return loss_sum, mask_BT.sum()


class _HeadLoss(torch.autograd.Function):
    """The sum of losses from hidden states, with its gradients computed slice by slice during the forward pass.

    They only have to be scaled in the backward pass, since the loss is a scalar. It can be taken once: the scaling is
    done in place.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_BTD: Tensor, weight_VD: Tensor, run: "RunHead", head: "Head", mask_BT: Tensor, *targets: Tensor
    ) -> Tensor:
        total, gradients = run(head, hidden_BTD, weight_VD, mask_BT, targets, with_gradients=True)
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        of_hidden, of_weight = ctx.saved_tensors
        (factor,) = gradients
        return (of_hidden.mul_(factor), of_weight.mul_(factor), *[None] * (len(ctx.needs_input_grad) - 2))


@dataclasses.dataclass(frozen=True)
class Head:
    """What every slice goes through, whoever walks the slices."""

    softcap: float
    temperature: float
    objective: Objective
    chunk_positions: int
    z_loss: float = 0.0

    def losses(
        self, products_PV: Tensor, targets: Sequence[Tensor], out: Tensor | None = None
    ) -> tuple[Tensor, Callable[[], Tensor]]:
        """Losses [P] from hidden states times the table, and a function for T * their gradient by these products.

        float32; more dimensions may stand in front of P. Works in the memory of the products, and in `out`, which is
        of their shape.
        """
        logits_PV = products_PV.div_(self.softcap).tanh_().mul_(self.softcap / self.temperature)
        log_q_PV = torch.log_softmax(logits_PV, dim=-1, out=out)
        log_z_P1 = logits_PV[..., :1] - log_q_PV[..., :1] if self.z_loss else None
        losses_P, gradient = self.objective(log_q_PV, *targets)

        def by_products() -> Tensor:
            # Through the division by T and the cap: d (cap / T) tanh(x / cap) / dx = (1 - tanh^2) / T
            slope = -((self.temperature / self.softcap) ** 2)
            by_logits_PV = gradient()
            if log_z_P1 is not None:  # d z log(Z)^2 / d logits = 2 z log(Z) q
                by_logits_PV = by_logits_PV.addcmul_((logits_PV - log_z_P1).exp_(), log_z_P1, value=2.0 * self.z_loss)
            return by_logits_PV.addcmul_(by_logits_PV, logits_PV.square_(), value=slope)

        return losses_P, by_products


class RunHead(Protocol):
    """Who walks the slices; `loop_head` is the reference, a backend may hand in another.

    Gives the sum of losses under the mask, and its gradients by hidden states (in their type) and weight (float32),
    or () where none are wanted.
    """

    def __call__(
        self,
        head: Head,
        hidden_BTD: Tensor,
        weight_VD: Tensor,
        mask_BT: Tensor,
        targets: Sequence[Tensor],
        *,
        with_gradients: bool,
    ) -> tuple[Tensor, tuple[Tensor, ...]]: ...


def loop_head(
    head: Head,
    hidden_BTD: Tensor,
    weight_VD: Tensor,
    mask_BT: Tensor,
    targets: Sequence[Tensor],
    *,
    with_gradients: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One slice after the other, in the same memory."""
    # bfloat16 factors are multiplied as they are where the hardware then sums in float32; elsewhere as float32.
    factor_type = weight_VD.dtype if weight_VD.is_cuda else torch.float32
    factor_VD = weight_VD.detach().to(factor_type)
    slices = _slices(head.chunk_positions, hidden_BTD.detach().to(factor_type), mask_BT, *targets)
    workspace = _workspace(slices[0][0], factor_VD)
    total = torch.zeros((), device=hidden_BTD.device)
    of_weight = torch.zeros_like(factor_VD, dtype=torch.float32) if with_gradients else None
    of_hidden: list[Tensor] = []
    for hidden_PD, mask_P, *of in slices:
        products, log_qs = (None, None) if workspace is None else (part[: len(hidden_PD)] for part in workspace)
        losses_P, by_products = head.losses(_product(hidden_PD, factor_VD.T, out=products), of, out=log_qs)
        total = total + (losses_P * mask_P).sum()
        if of_weight is not None:
            by_product_PV = by_products().to(factor_type)
            weights_P1 = mask_P[:, None] / head.temperature
            of_hidden.append((_product(by_product_PV, factor_VD) * weights_P1).to(hidden_BTD.dtype))
            of_weight = _add_product(of_weight, by_product_PV.T, (hidden_PD * weights_P1).to(factor_type))
    if of_weight is None:
        return total, ()
    rows = hidden_BTD.shape[0]
    return total, (torch.cat([part.unflatten(0, (rows, -1)) for part in of_hidden], dim=1), of_weight)


def _product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """left @ right in float32."""
    if left.dtype != torch.float32:
        return torch.mm(left, right, out_dtype=torch.float32)
    return torch.mm(left, right, out=out)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """total + left @ right in float32, in total's memory."""
    return total.addmm_(left, right) if left.dtype == torch.float32 else total.add_(_product(left, right))


def _workspace(hidden_PD: Tensor, weight_VD: Tensor) -> tuple[Tensor, Tensor] | None:
    """Memory on the host for two slices of logits: taking it anew from the system for each would cost more than a
    slice's product. Other devices keep memory themselves.
    """
    if hidden_PD.device.type != "cpu":
        return None
    shape = (len(hidden_PD), len(weight_VD))
    return torch.empty(shape), torch.empty(shape)


def _slices(chunk_positions: int, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Cuts [B, T, ...] tensors along time (rows stay on their devices) into slices [P, ...] of about the chunk."""
    width = max(1, chunk_positions // tensors[0].shape[0])
    parts = (tensor.split(width, dim=1) for tensor in tensors)
    return [tuple(part.flatten(0, 1) for part in together) for together in zip(*parts, strict=True)]
