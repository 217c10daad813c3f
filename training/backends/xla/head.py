"""The head's chunks as a scan, for graphs that do not grow with the sequence, and for meshes.

Formulas and their gradients are those of `Head` in `training/loss_head.py`: logits of a chunk exist for one iteration,
which also takes the gradients of the chunk. The gradient of the table is different on a mesh. A sum over rows on
different chips, taken in each iteration, would be a reduction of [V, D] over the network each time. So the rows are
viewed as [R, B / R] for R parts of the batch, the sum has R in front too, each chip adds up its own part, and one
reduction follows the loop. Cost on a chip: the table gathered over `data`, [V / model, D], its gradient of the same
size, both in float32, and two chunks of logits.

Shapes: R parts of the batch, P = B / R * width positions of a chunk in a part; the rest as in `training/loss.py`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch_xla.experimental.scan import _scan_impl_flat as scan

from model.sharding import ROWS, MeshShape, Spec
from training.backends.xla.layers import STREAM, Constrain
from training.logit_slices import SLICE_POSITIONS, Columns, RunSlices, Work, capped
from training.loss_head import Head, RunHead

TABLE_SPEC: Spec = ("model", "data")
PARTS_SPEC: Spec = (ROWS, "model", None)
MOST_LOGITS = 2**26
"""Logits of a slice on one chip: 256 MiB in float32."""
MOST_POSITIONS = 1024
"""Positions of a slice on one chip: reading the table costs little beside their logits."""


def scan_head(row_shards: int = 1, constrain: Constrain | None = None) -> RunHead:
    """The `RunHead` for a batch whose rows are divided into `row_shards` parts on a mesh."""

    def run(
        head: Head,
        hidden_BTD: Tensor,
        weight_VD: Tensor,
        mask_BT: Tensor,
        targets: Sequence[Tensor],
        *,
        with_gradients: bool,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        cut = _Chunks(hidden_BTD, row_shards, head.chunk_positions, constrain)
        # The carry holds the table: a tensor that the body took from outside would be read at trace time.
        gathered_VD = cut.placed(weight_VD.detach().float() * 1, ("model", None))
        sums = [torch.zeros((), device=weight_VD.device)]
        if with_gradients:
            zeros_RVD = torch.zeros((row_shards, *weight_VD.shape), device=weight_VD.device)
            sums.append(cut.placed(zeros_RVD, PARTS_SPEC))

        def body(carry: Sequence[Tensor], chunks: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
            *sums, weight_VD = carry
            hidden_RPD, mask_RP, *chunk_targets = chunks
            hidden_RPD = hidden_RPD.float()
            weight_RVD = cut.placed(weight_VD.expand(row_shards, *weight_VD.shape) * 1, PARTS_SPEC)
            products_RPV = cut.placed(torch.bmm(hidden_RPD, weight_RVD.transpose(1, 2)), (ROWS, None, "model"))
            losses_RP, by_products = head.losses(products_RPV, chunk_targets)
            sums[0] = sums[0] + (losses_RP * mask_RP).sum()
            gradients = []
            if with_gradients:
                by_products_RPV = cut.placed(by_products(), (ROWS, None, "model"))
                weights_RP1 = mask_RP[..., None] / head.temperature
                of_hidden_RPD = (torch.bmm(by_products_RPV, weight_RVD) * weights_RP1).to(hidden_BTD.dtype)
                of_weight_RVD = torch.bmm(by_products_RPV.transpose(1, 2), hidden_RPD * weights_RP1)
                sums[1] = cut.placed(sums[1] + of_weight_RVD, PARTS_SPEC)
                gradients.append(cut.placed(of_hidden_RPD, STREAM))
            return [*sums, weight_VD * 1], gradients

        with torch.no_grad():
            chunks = [cut.chunks(tensor) for tensor in (hidden_BTD.detach(), mask_BT, *targets)]
            (total, *sums, _), gradients = scan(body, [*sums, gathered_VD], chunks)
            if not with_gradients:
                return total, ()
            return total, (cut.whole(gradients[0]), cut.placed(sums[0].sum(0), TABLE_SPEC))

    return run


def scan_slices(mesh: MeshShape, constrain: Constrain | None = None) -> RunSlices:
    """The `RunSlices` for a batch on a mesh: rows and vocabulary are divided, and each chip works on its own rows."""

    def run(
        hidden_BTD: Tensor, weight_VD: Tensor, softcap: float, columns: Columns, constants: Columns, work: Work
    ) -> tuple[Tensor, ...]:
        parts = mesh.row_shards
        of_chip = MOST_LOGITS * mesh.model // len(weight_VD)
        cut = _Chunks(hidden_BTD, parts, min(max(of_chip, SLICE_POSITIONS), MOST_POSITIONS), constrain)
        gathered_VD = cut.placed(weight_VD.detach() * 1, ("model", None))

        def body(carry: Sequence[Tensor], slices: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
            weight_VD, *given = carry
            hidden_RPD, *of_slice = slices
            weight_RVD = cut.placed(weight_VD.float().expand(parts, *weight_VD.shape) * 1, PARTS_SPEC)
            products_RPV = torch.bmm(hidden_RPD.float(), weight_RVD.transpose(1, 2))
            logits_RPV = cut.placed(capped(products_RPV, softcap), (ROWS, None, "model"))
            flat = dict(zip(columns, (part.flatten(0, 1) for part in of_slice), strict=True))
            made = work(logits_RPV.flatten(0, 1), flat, dict(zip(constants, given, strict=True)))
            made = tuple(result.unflatten(0, (parts, -1)) for result in made)
            # The carry holds table and constants: a tensor that the body took from outside would be read at trace time.
            return [tensor * 1 for tensor in carry], list(made)

        with torch.no_grad():
            slices = [cut.chunks(tensor) for tensor in (hidden_BTD.detach(), *columns.values())]
            _, made = scan(body, [gathered_VD, *constants.values()], slices)
            return tuple(cut.whole(result) for result in made)

    return run


class _Chunks:
    """Cuts [B, T, ...] along time into [chunks, R, P, ...], and puts them together again."""

    def __init__(self, hidden_BTD: Tensor, parts: int, chunk_positions: int, constrain: Constrain | None) -> None:
        self.B, self.T, _ = hidden_BTD.shape
        self.parts, self.constrain = parts, constrain
        self.width = min(self.T, max(1, chunk_positions * parts // self.B))

    def chunks(self, tensor_BT: Tensor) -> Tensor:
        """The chunks; the last one is filled up with zeros, which the mask leaves out."""
        _, _, *rest = tensor_BT.shape
        count = -(-self.T // self.width)
        if missing := count * self.width - self.T:
            tensor_BT = torch.cat([tensor_BT, tensor_BT.new_zeros(self.B, missing, *rest)], dim=1)
        parts = tensor_BT.view(self.parts, self.B // self.parts, count, self.width, *rest)
        parts = parts.permute(2, 0, 1, 3, *range(4, parts.ndim)).reshape(count, self.parts, -1, *rest)
        return self.placed(parts, (None, ROWS, None, *[None] * len(rest)))

    def whole(self, chunks: Tensor) -> Tensor:
        """The inverse of `chunks`."""
        count, _, _, *rest = chunks.shape
        parts = chunks.view(count, self.parts, self.B // self.parts, self.width, *rest)
        parts = parts.permute(1, 2, 0, 3, *range(4, parts.ndim)).reshape(self.B, -1, *rest)
        return self.placed(parts[:, : self.T], (ROWS, None, *[None] * len(rest)))

    def placed(self, tensor: Tensor, spec: Spec) -> Tensor:
        if self.constrain is not None:
            self.constrain(tensor, spec)
        return tensor
