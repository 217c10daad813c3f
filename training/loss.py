"""Losses as (sum over targets, number of targets), float32; whoever has all sums divides once, at the end.

Target t of a row is token t+1, or the teacher's distribution there, wherever `loss_mask[t]` is set. The logits of a
whole batch never exist at once: the head runs on slices of time, and in training each slice's gradient is taken right
away, in closed form and in the slice's own memory, so what is kept for the backward pass is the size of the hidden
states. Products, sums and gradients are float32 whatever the model's type. Cost: the head's three matrix products, two
slices of logits, and one float32 gradient of the embedding table.

Each objective is cross-entropy -sum_i p_i log q_i in nats to some target p; they differ in what is known of p. The
student's q is softmax(logits / T) of the capped logits at `temperature` T, and p has to be the teacher's at the same
temperature. Convention: a loss at T is multiplied by T^2, because gradients shrink by about 1 / T^2 (arXiv 1503.02531,
section 2); so neither the learning rate nor the share of the next token has to follow T. Of every loss to a teacher,
`alpha` is the share of the next token, at temperature 1:

    (1 - alpha) T^2 -sum_i p_i log q_i  +  alpha -log softmax(logits)_next

One product with the table serves both; at T = 1 one softmax does too.

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
from typing import Any, Protocol, get_args

import torch
from torch import Tensor

from model import Gemma2
from training.config import Tail

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
    next_BT1 = _next_ids(batch)
    weights_BT1 = torch.ones_like(next_BT1, dtype=torch.float32)
    head = Head(model.config.final_softcap, 1.0, _to_weighted_ids, chunk_positions, z_loss=z_loss)
    return _masked_sum(model, batch, head, [next_BT1, weights_BT1], run_head)


def distill_loss(
    model: Gemma2,
    batch: Batch,
    draws: int,
    *,
    temperature: float = 1.0,
    alpha: float = 0.0,
    chunk_positions: int = CHUNK_POSITIONS,
    run_head: "RunHead | None" = None,
    z_loss: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats to counts / N of the teacher's N `draws`, summed over targets, and their number.

    Its gradient has full distillation's as its expectation (arXiv 2503.16870).
    """
    head = Head(model.config.final_softcap, temperature, _to_weighted_ids, chunk_positions, alpha, z_loss)
    weights_BTK = batch["target_counts"].float() * (head.target_mass / draws)
    return _masked_sum(model, batch, head, [batch["target_ids"].long(), weights_BTK], run_head)


def distill_topk_loss(
    model: Gemma2,
    batch: Batch,
    *,
    tail: Tail = "bucket",
    temperature: float = 1.0,
    alpha: float = 0.0,
    chunk_positions: int = CHUNK_POSITIONS,
    run_head: "RunHead | None" = None,
    z_loss: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats to what the teacher's K best ids say, summed over targets, and their number.

    `target_tail` is p_tail, the teacher's mass outside of the K ids, which the cache keeps because 1 - sum p_i would
    lose its digits. At least one id of each target is real. What becomes of the tail is `tail`:

    `bucket`        -sum_K p_i log q_i - p_tail log q_tail, where q_tail is the student's mass outside of the K ids: the
                    student is free in how it spreads the tail, and is not pushed to have none
    `renormalize`   the K probabilities divided by their sum: the usual top-k, whose optimum has no tail at all
    `ground_truth`  p_tail goes to the true next token, among the K or not (the "naive fix" of arXiv 2503.16870)
    """
    log_probs_BTK = batch["target_log_probs"].float()
    ids_BTK = batch["target_ids"].long()
    # Padding repeats the first id, so that it takes nothing out of the tail.
    ids_BTK = torch.where(log_probs_BTK == -torch.inf, ids_BTK[..., :1], ids_BTK)
    objective = _to_top_and_tail if tail == "bucket" else _to_weighted_ids
    head = Head(model.config.final_softcap, temperature, objective, chunk_positions, alpha, z_loss)
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
            ids_BTK = torch.cat([ids_BTK, _next_ids(batch)], dim=-1)
            targets = [ids_BTK, torch.cat([probs_BTK * head.target_mass, tail_BT1], dim=-1)]
        case _:
            raise ValueError(f"tail is {tail!r}; allowed are {', '.join(map(repr, get_args(Tail)))}")
    return _masked_sum(model, batch, head, targets, run_head)


def distill_full_loss(
    model: Gemma2,
    batch: Batch,
    *,
    temperature: float = 1.0,
    alpha: float = 0.0,
    chunk_positions: int = CHUNK_POSITIONS,
    run_head: "RunHead | None" = None,
    z_loss: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats to the teacher's whole distribution: what the others estimate, for tests of them."""
    head = Head(model.config.final_softcap, temperature, _to_distribution, chunk_positions, alpha, z_loss)
    probs_BTV = batch["target_probs"].float()
    targets = [probs_BTV if head.target_mass == 1.0 else probs_BTV * head.target_mass]
    return _masked_sum(model, batch, head, targets, run_head)


def _next_ids(batch: Batch) -> Tensor:
    """The next token of each, int64 [B, T, 1]; the last column wraps around, and no mask sets it."""
    return batch["tokens"].roll(-1, dims=1).long()[..., None]


def _to_weighted_ids(log_q_PV: Tensor, ids_PK: Tensor, weights_PK: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
    """-sum_K w_i log q_i; gradient q - w.

    Importance weights sum to 1 only on average; q - w is then not this sum's gradient, but has the same expectation.
    """
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
    """-sum_V p_i log q_i; gradient q - p."""
    losses_P = -(log_q_PV * probs_PV).sum(-1)
    return losses_P, lambda: log_q_PV.exp_().sub_(probs_PV)


def _masked_sum(
    model: Gemma2, batch: Batch, head: "Head", targets: list[Tensor], run_head: "RunHead | None"
) -> tuple[Tensor, Tensor]:
    hidden_BTD = model.hidden(batch["tokens"], batch["positions"], batch["segment_ids"])
    weight_VD = model.model.embed_tokens.weight
    mask_BT = batch["loss_mask"].float()
    if head.alpha:
        targets = [*targets, _next_ids(batch)]
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
    """What every slice goes through, whoever walks the slices. The next token is the last target where alpha > 0."""

    softcap: float
    temperature: float
    objective: Objective
    chunk_positions: int
    alpha: float = 0.0
    z_loss: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 < self.temperature < math.inf:
            raise ValueError(
                f"temperature is {self.temperature}, but must be above 0 and finite; 1 takes the model as it is"
            )
        if not 0.0 <= self.alpha < 1.0:
            raise ValueError(
                f"alpha is {self.alpha}; allowed is 0 <= alpha < 1, and objective 'next_token' needs no teacher"
            )
        if self.chunk_positions < 1:
            raise ValueError(
                f"chunk_positions is {self.chunk_positions}, but must be at least 1; {CHUNK_POSITIONS} does well"
            )

    @property
    def target_mass(self) -> float:
        """What the objective's weights have to sum to: less than 1 where the next token's share has the same softmax,
        so that one gradient q - w - alpha * (next token) is that of both.
        """
        return 1.0 - self.alpha if self.temperature == 1.0 else 1.0

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
        losses_P, gradient = self._of_logits(logits_PV, log_q_PV, targets)

        def by_products() -> Tensor:
            # Through the division by T and the cap: d (cap / T) tanh(x / cap) / dx = (1 - tanh^2) / T
            slope = -((self.temperature / self.softcap) ** 2)
            by_logits_PV = gradient()
            if log_z_P1 is not None:  # d z log(Z)^2 / d logits = 2 z log(Z) q
                by_logits_PV = by_logits_PV.addcmul_((logits_PV - log_z_P1).exp_(), log_z_P1, value=2.0 * self.z_loss)
            return by_logits_PV.addcmul_(by_logits_PV, logits_PV.square_(), value=slope)

        return losses_P, by_products

    def _of_logits(
        self, logits_PV: Tensor, log_q_PV: Tensor, targets: Sequence[Tensor]
    ) -> tuple[Tensor, Callable[[], Tensor]]:
        """Losses and a function for their gradient by logits / T, which is what `logits_PV` holds."""
        T, alpha = self.temperature, self.alpha
        if not alpha:
            losses_P, gradient = self.objective(log_q_PV, *targets)
            return (losses_P, gradient) if T == 1.0 else (T**2 * losses_P, lambda: gradient().mul_(T**2))
        *targets, next_P1 = targets
        if T == 1.0:
            log_next_P1 = log_q_PV.gather(-1, next_P1)  # first: the objective works in this memory
            losses_P, gradient = self.objective(log_q_PV, *targets)
            share_P1 = torch.full_like(log_next_P1, -alpha)
            return (
                losses_P - alpha * log_next_P1[..., 0],
                lambda: gradient().scatter_add_(-1, next_P1, share_P1),
            )
        log_plain_PV = torch.log_softmax(logits_PV * T, dim=-1)
        next_losses_P, next_gradient = _to_weighted_ids(log_plain_PV, next_P1, torch.ones_like(next_P1).float())
        losses_P, gradient = self.objective(log_q_PV, *targets)
        share = (1.0 - alpha) * T**2
        return (
            share * losses_P + alpha * next_losses_P,
            lambda: gradient().mul_(share).add_(next_gradient(), alpha=alpha * T),
        )


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
