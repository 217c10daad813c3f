"""The head's loss as a scan over slices of time, for graphs that do not grow with the sequence, and for meshes.

Formula and trick are `training/loss.py`'s: logits of a slice exist for one iteration, and the gradients of the slice
are taken in it. What is different is the gradient of the head's weights on a mesh. A sum over rows that lie on
different chips, taken in each iteration, would be a reduction of [V, D] over the network each time. So the rows are
seen as [R, B / R] for R parts of the batch, the sum has R in front too, each chip adds up its own part, and one
reduction follows the loop. Cost on a chip: the table gathered over `data`, [V / model, D], and the same for its
gradient, in float32, and one slice of logits.

Shapes: R parts of the batch, P = B / R * width positions of a slice in a part; others as in `training/loss.py`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch_xla.experimental.scan import _scan_impl_flat as scan

from model import Gemma2
from model.sharding import ROWS, Spec
from training.loss import CHUNK_POSITIONS, HeadLoss, TokenLosses
from training.xla.layers import STREAM, Constrain

TABLE_SPEC: Spec = ("model", "data")
PARTS_SPEC: Spec = (ROWS, "model", None)


def scan_head_loss(row_shards: int = 1, constrain: Constrain | None = None) -> HeadLoss:
    """The `HeadLoss` for a batch whose rows lie in `row_shards` parts on a mesh."""

    def head_loss(
        model: Gemma2, hidden_BTD: Tensor, losses: TokenLosses, mask_BT: Tensor, targets: list[Tensor]
    ) -> Tensor:
        head = _Head(model.config.final_softcap, losses, row_shards, constrain)
        return _ScanSlices.apply(head, hidden_BTD, model.model.embed_tokens.weight, mask_BT, *targets)

    return head_loss


class _Head:
    """Slices, and the loss and gradients of one slice."""

    def __init__(self, softcap: float, losses: TokenLosses, parts: int, constrain: Constrain | None) -> None:
        self.softcap, self.losses, self.parts, self.constrain = softcap, losses, parts, constrain

    def slices(self, tensor_BT: Tensor) -> Tensor:
        """[B, T, ...] as [slices, R, P, ...]; the last slice is filled up with zeros, which the mask leaves out."""
        B, T, *rest = tensor_BT.shape
        width = self.width(B, T)
        count = -(-T // width)
        if count * width != T:
            tensor_BT = torch.cat([tensor_BT, tensor_BT.new_zeros(B, count * width - T, *rest)], dim=1)
        parts = tensor_BT.view(self.parts, B // self.parts, count, width, *rest)
        parts = parts.permute(2, 0, 1, 3, *range(4, parts.ndim)).reshape(count, self.parts, -1, *rest)
        return self.placed(parts, (None, ROWS, None, *[None] * len(rest)))

    def whole(self, slices: Tensor, shape: Sequence[int]) -> Tensor:
        """The inverse of `slices` for [B, T, D]."""
        B, T, D = shape
        width = self.width(B, T)
        parts = slices.view(slices.shape[0], self.parts, B // self.parts, width, D)
        return self.placed(parts.permute(1, 2, 0, 3, 4).reshape(B, -1, D)[:, :T], STREAM)

    def width(self, B: int, T: int) -> int:
        return min(T, max(1, CHUNK_POSITIONS * self.parts // B))

    def placed(self, tensor: Tensor, spec: Spec) -> Tensor:
        if self.constrain is not None:
            self.constrain(tensor, spec)
        return tensor

    def loss_and_gradients(
        self, weight_RVD: Tensor, hidden_RPD: Tensor, mask_RP: Tensor, targets: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        hidden_RPD = hidden_RPD.detach().requires_grad_()
        weight_RVD = weight_RVD.detach().requires_grad_()
        with torch.enable_grad():
            # As `Gemma2.logits`, with R in front of the weights too.
            logits_RPV = torch.bmm(hidden_RPD.float(), weight_RVD.transpose(1, 2))
            self.placed(logits_RPV, (ROWS, None, "model"))
            logits_RPV = (logits_RPV / self.softcap).tanh() * self.softcap
            loss = (self.losses(logits_RPV, *targets) * mask_RP).sum()
            of_hidden, of_weight = torch.autograd.grad(loss, (hidden_RPD, weight_RVD))
        return loss.detach(), self.placed(of_hidden, STREAM), self.placed(of_weight, PARTS_SPEC)


class _ScanSlices(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, head: _Head, hidden_BTD: Tensor, weight_VD: Tensor, mask_BT: Tensor, *targets: Tensor
    ) -> Tensor:
        gathered_VD = head.placed(weight_VD.detach().float() * 1, ("model", None))

        def body(carry: Sequence[Tensor], slices: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
            total, weight_gradient_RVD, weight_VD = carry
            hidden_RPD, mask_RP, *of = slices
            weight_RVD = head.placed(weight_VD.expand(head.parts, *weight_VD.shape) * 1, PARTS_SPEC)
            loss, of_hidden, of_weight = head.loss_and_gradients(weight_RVD, hidden_RPD, mask_RP, of)
            summed_RVD = head.placed(weight_gradient_RVD + of_weight, PARTS_SPEC)
            return [total + loss, summed_RVD, weight_VD * 1], [of_hidden]

        zeros_RVD = torch.zeros((head.parts, *weight_VD.shape), device=weight_VD.device)
        head.placed(zeros_RVD, PARTS_SPEC)
        carry, (of_hidden,) = scan(
            body,
            [torch.zeros((), device=weight_VD.device), zeros_RVD, gathered_VD],
            [head.slices(tensor) for tensor in (hidden_BTD, mask_BT, *targets)],
        )
        total, summed_RVD, _ = carry
        of_weight = head.placed(summed_RVD.sum(0).to(weight_VD.dtype), TABLE_SPEC)
        ctx.save_for_backward(head.whole(of_hidden, hidden_BTD.shape), of_weight)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        of_hidden, of_weight = ctx.saved_tensors
        scaled = ((of * gradient).to(of.dtype) for of in (of_hidden, of_weight))
        return (None, *scaled, *[None] * (len(ctx.needs_input_grad) - 3))
