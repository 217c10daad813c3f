"""From hidden states [B, T, D] and the table [V, D] to a loss and its gradients, a chunk of positions at a time.

    hidden, table -> RunHead (loop over chunks) -> Head.losses: products [P, V] -> losses [P], gradient by the products

The logits of a batch never exist at once: a chunk has P positions, and its gradient is taken in the chunk's own memory.
Shapes and conventions are those of `training/loss.py`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

CHUNK_POSITIONS = 256
"""Positions in a chunk of logits: enough rows for an efficient matrix product. A chunk has 8 MiB at 8192 ids, and
250 MiB at 256,000 ids."""


Objective = Callable[..., tuple[Tensor, Callable[[], Tensor]]]
"""(log_q_PV, *targets) -> losses [P] and a function for their gradient by the logits [P, V].

The function may be called once, and only before `log_q_PV` is used for something else: it works in that memory.
"""


def to_weighted_ids(log_q_PV: Tensor, ids_PK: Tensor, weights_PK: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
    """-sum_K w_i log q_i; gradient q - w.

    Importance weights sum to 1 only on average. Then q - w is not the gradient of this sum, but has the same
    expectation.
    """
    losses_P = -(log_q_PV.gather(-1, ids_PK) * weights_PK).sum(-1)
    return losses_P, lambda: log_q_PV.exp_().scatter_add_(-1, ids_PK, -weights_PK)


class HeadLoss(torch.autograd.Function):
    """The sum of losses from hidden states, with its gradients computed chunk by chunk during the forward pass.

    The backward pass only scales the gradients, since the loss is a scalar. It can be run once: the scaling is done in
    place.
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
    """The computation for each chunk, whichever loop runs it. The next token is the last target if alpha > 0."""

    softcap: float
    temperature: float
    objective: Objective
    chunk_positions: int
    alpha: float = 0.0
    z_loss: float = 0.0

    @property
    def target_mass(self) -> float:
        """The sum of the objective's weights: less than 1 if the next-token loss has the same softmax, so that one
        gradient q - w - alpha * (next token) serves both losses.
        """
        return 1.0 - self.alpha if self.temperature == 1.0 else 1.0

    def losses(
        self, products_PV: Tensor, targets: Sequence[Tensor], out: Tensor | None = None
    ) -> tuple[Tensor, Callable[[], Tensor]]:
        """Losses [P] from hidden states times the table, and a function for T * their gradient by these products.

        Both are float32; more dimensions may stand in front of P. The function works in the memory of the products, and
        in `out`, which has their shape.
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
            log_next_P1 = log_q_PV.gather(-1, next_P1)  # taken first: the objective overwrites this memory
            losses_P, gradient = self.objective(log_q_PV, *targets)
            share_P1 = torch.full_like(log_next_P1, -alpha)
            return (
                losses_P - alpha * log_next_P1[..., 0],
                lambda: gradient().scatter_add_(-1, next_P1, share_P1),
            )
        log_plain_PV = torch.log_softmax(logits_PV * T, dim=-1)
        next_losses_P, next_gradient = to_weighted_ids(log_plain_PV, next_P1, torch.ones_like(next_P1).float())
        losses_P, gradient = self.objective(log_q_PV, *targets)
        share = (1.0 - alpha) * T**2
        return (
            share * losses_P + alpha * next_losses_P,
            lambda: gradient().mul_(share).add_(next_gradient(), alpha=alpha * T),
        )


class RunHead(Protocol):
    """The loop over the chunks; `loop_head` is the reference, and a backend may provide another loop.

    Returns the sum of losses under the mask, and its gradients by hidden states (in their type) and weight (float32),
    or () if no gradients are wanted.
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
    """One chunk after another, in the same memory."""
    # On hardware that sums in float32, bfloat16 factors are multiplied as they are; elsewhere as float32.
    factor_type = weight_VD.dtype if weight_VD.is_cuda else torch.float32
    factor_VD = weight_VD.detach().to(factor_type)
    chunks = _chunks(head.chunk_positions, hidden_BTD.detach().to(factor_type), mask_BT, *targets)
    workspace = _workspace(chunks[0][0], factor_VD)
    total = torch.zeros((), device=hidden_BTD.device)
    of_weight = torch.zeros_like(factor_VD, dtype=torch.float32) if with_gradients else None
    of_hidden: list[Tensor] = []
    for hidden_PD, mask_P, *chunk_targets in chunks:
        products, log_qs = (None, None) if workspace is None else (part[: len(hidden_PD)] for part in workspace)
        losses_P, by_products = head.losses(product(hidden_PD, factor_VD.T, out=products), chunk_targets, out=log_qs)
        total = total + (losses_P * mask_P).sum()
        if of_weight is not None:
            by_product_PV = by_products().to(factor_type)
            weights_P1 = mask_P[:, None] / head.temperature
            of_hidden.append((product(by_product_PV, factor_VD) * weights_P1).to(hidden_BTD.dtype))
            of_weight = _add_product(of_weight, by_product_PV.T, (hidden_PD * weights_P1).to(factor_type))
    if of_weight is None:
        return total, ()
    rows = hidden_BTD.shape[0]
    return total, (torch.cat([part.unflatten(0, (rows, -1)) for part in of_hidden], dim=1), of_weight)


def product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """left @ right in float32."""
    if left.dtype != torch.float32:
        return torch.mm(left, right, out_dtype=torch.float32)
    return torch.mm(left, right, out=out)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """total + left @ right in float32, in total's memory."""
    return total.addmm_(left, right) if left.dtype == torch.float32 else total.add_(product(left, right))


def _workspace(hidden_PD: Tensor, weight_VD: Tensor) -> tuple[Tensor, Tensor] | None:
    """Memory on the host for two chunks of logits: new memory from the system for each chunk would cost more than the
    chunk's product. Other devices keep their memory themselves.
    """
    if hidden_PD.device.type != "cpu":
        return None
    shape = (len(hidden_PD), len(weight_VD))
    return torch.empty(shape), torch.empty(shape)


def _chunks(chunk_positions: int, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Cuts [B, T, ...] tensors along time (rows stay on their devices) into chunks of about that many positions."""
    width = max(1, chunk_positions // tensors[0].shape[0])
    parts = (tensor.split(width, dim=1) for tensor in tensors)
    return [tuple(part.flatten(0, 1) for part in together) for together in zip(*parts, strict=True)]
