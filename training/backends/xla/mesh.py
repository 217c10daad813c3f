"""The mesh of model/sharding.py as torch_xla's compiler sees it: which chip has which part of a tensor."""

import functools
from collections.abc import Sequence

import numpy as np
import torch
import torch_xla
import torch_xla.distributed.spmd as xs
from torch import Tensor

from model.sharding import ROWS, MeshShape, Spec, row_groups
from training.backends.base import RowShare
from training.errors import UserError


class ChipMesh:
    """Chips in a given order, `model` innermost. `xr.use_spmd()` has to come before the first tensor.

    With several processes the order is process by process: then the rows that a process has read are those of its own
    chips, and slices, whose processes follow each other, are the parts of the outermost axis. A model axis may span
    some processes, which then read the same rows.
    """

    def __init__(self, shape: MeshShape, chips: Sequence[int] | None = None) -> None:
        self.shape = shape
        order = np.arange(shape.chips) if chips is None else np.array(chips)
        self.mesh = xs.Mesh(order, tuple(shape.sizes.values()), tuple(shape.sizes))
        self._op_sharding = functools.cache(self.mesh.get_op_sharding)
        self._row_spec = functools.cache(lambda ndim: xs.ShardingSpec(self.mesh, row_axes(ndim)))

    def constrain(self, tensor: Tensor, spec: Spec) -> None:
        """Says, in place, how a tensor that is yet to be computed, or a placeholder, will be divided."""
        torch_xla._XLAC._xla_annotate_custom_sharding(tensor, self._op_sharding(spec))

    def place_rows(self, tensors: Sequence[Tensor], device: str, share: RowShare) -> list[Tensor]:
        """Host tensors on the chips: those of rows divided over replica and data, each process giving its part of a
        step's rows; vectors are scalars of the step, which every chip needs.

        Each process takes what its chips need out of the step's rows, whole; the rows of others are left zero, in
        memory that is never touched.
        """
        whole = [_among_all(tensor, share) if tensor.ndim >= 2 else tensor for tensor in tensors]
        specs = [self._row_spec(tensor.ndim).xla_spec(tensor) if tensor.ndim >= 2 else None for tensor in whole]
        return list(torch_xla._XLAC._xla_tensors_from_aten(whole, [device] * len(whole), specs))

    def divide(self, tensor: Tensor, spec: Spec) -> None:
        """Divides a tensor that is there, in place."""
        xs.mark_sharding(tensor, self.mesh, spec)

    def divide_like(self, tensor: Tensor, placed: Tensor) -> None:
        """Divides a tensor that is yet to be computed as a placed one is.

        Zeros come from no tensor that is divided: unless they are told, each chip makes all of them.
        """
        torch_xla._XLAC._xla_annotate_custom_sharding(tensor, torch_xla._XLAC._get_xla_op_sharding(placed))


def row_axes(ndim: int) -> Spec:
    """Rows over replica and data, everything else whole."""
    return (ROWS, *[None] * (ndim - 1))


def chips_by_process(of_process: Sequence[Sequence[int]], shape: MeshShape) -> list[int]:
    """The chips of the mesh in order, from the chips of each process: by their numbers, which follow the topology.

    Raises UserError if the mesh has other chips than the processes.
    """
    total = sum(len(chips) for chips in of_process)
    whose = "the process has" if len(of_process) == 1 else f"the {len(of_process)} processes have"
    if total != shape.chips:
        raise UserError(
            f"the mesh {shape.sizes} has {shape.chips} chips and {whose} {total}; their product has to be that"
        )
    return [chip for chips in sorted(map(sorted, of_process)) for chip in chips]


def share_of(process: int, of_process: Sequence[Sequence[int]], shape: MeshShape) -> RowShare:
    """The rows of a step that a process reads. Raises UserError if it cannot read whole rows."""
    place = sorted(range(len(of_process)), key=lambda number: min(of_process[number])).index(process)
    parts = row_groups(len(of_process), shape)
    together = len(of_process) // parts
    return RowShare(part=place // together, parts=parts, first=place % together == 0)


def _among_all(rows: Tensor, share: RowShare) -> Tensor:
    """The rows of all parts with ours in their place."""
    if share.parts == 1:
        return rows
    whole = torch.zeros((len(rows) * share.parts, *rows.shape[1:]), dtype=rows.dtype)
    whole[share.part * len(rows) : (share.part + 1) * len(rows)] = rows
    return whole
