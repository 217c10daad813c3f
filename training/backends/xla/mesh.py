"""The mesh of model/sharding.py in the form that torch_xla's compiler takes: which chip has which part of a tensor."""

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
    """Chips in a given order, `model` innermost. `xr.use_spmd()` must be called before the first tensor is made.

    With several processes the order is process by process. Then the rows that a process has read are the rows of its
    own chips, and slices, whose processes follow each other, are the parts of the outermost axis. A model axis may span
    several processes, which then read the same rows.
    """

    def __init__(self, shape: MeshShape, chips: Sequence[int] | None = None) -> None:
        self.shape = shape
        order = np.arange(shape.chips) if chips is None else np.array(chips)
        self.mesh = xs.Mesh(order, tuple(shape.sizes.values()), tuple(shape.sizes))
        self._op_sharding = functools.cache(self.mesh.get_op_sharding)
        self._row_spec = functools.cache(lambda ndim: xs.ShardingSpec(self.mesh, row_axes(ndim)))

    def constrain(self, tensor: Tensor, spec: Spec) -> None:
        """Annotates a tensor that is yet to be computed, or a placeholder, in place, with its division."""
        torch_xla._XLAC._xla_annotate_custom_sharding(tensor, self._op_sharding(spec))

    def place_rows(self, tensors: Sequence[Tensor], device: str, share: RowShare) -> list[Tensor]:
        """Host tensors on the chips.

        Tensors of rows are divided over replica and data, and each process gives its part of a step's rows. Vectors are
        scalars of the step, which every chip needs.

        Each process makes tensors of all the step's rows, from which its chips take theirs; the rows of other processes
        stay zero, in memory that is never touched.
        """
        whole = [_among_all(tensor, share) if tensor.ndim >= 2 else tensor for tensor in tensors]
        specs = [self._row_spec(tensor.ndim).xla_spec(tensor) if tensor.ndim >= 2 else None for tensor in whole]
        return list(torch_xla._XLAC._xla_tensors_from_aten(whole, [device] * len(whole), specs))

    def divide(self, tensor: Tensor, spec: Spec) -> None:
        """Divides an existing tensor, in place."""
        xs.mark_sharding(tensor, self.mesh, spec)

    def divide_like(self, tensor: Tensor, placed: Tensor) -> None:
        """Divides a tensor that is yet to be computed in the same way as a placed tensor.

        Zeros follow from no divided tensor: without this annotation each chip would make all of them.
        """
        torch_xla._XLAC._xla_annotate_custom_sharding(tensor, torch_xla._XLAC._get_xla_op_sharding(placed))


def row_axes(ndim: int) -> Spec:
    """The spec of rows divided over replica and data, with all other dimensions whole."""
    return (ROWS, *[None] * (ndim - 1))


def chips_by_process(of_process: Sequence[Sequence[int]], shape: MeshShape) -> list[int]:
    """The chips of the mesh in the order of their numbers, which follow the topology, from the chips of each process.

    Raises UserError if the mesh and the processes have different numbers of chips.
    """
    total = sum(len(chips) for chips in of_process)
    whose = "the process has" if len(of_process) == 1 else f"the {len(of_process)} processes have"
    if total != shape.chips:
        raise UserError(
            f"the mesh {shape.sizes} has {shape.chips} chips, and {whose} {total}; give --mesh sizes whose product is "
            f"{total}"
        )
    return [chip for chips in sorted(map(sorted, of_process)) for chip in chips]


def share_of(process: int, of_process: Sequence[Sequence[int]], shape: MeshShape) -> RowShare:
    """The rows of a step that a process reads. Raises UserError if it cannot read whole rows."""
    place = sorted(range(len(of_process)), key=lambda number: min(of_process[number])).index(process)
    parts = row_groups(len(of_process), shape)
    together = len(of_process) // parts
    return RowShare(part=place // together, parts=parts, first=place % together == 0)


def _among_all(rows: Tensor, share: RowShare) -> Tensor:
    """A tensor for the rows of all parts, with our rows in their place and zeros elsewhere."""
    if share.parts == 1:
        return rows
    whole = torch.zeros((len(rows) * share.parts, *rows.shape[1:]), dtype=rows.dtype)
    whole[share.part * len(rows) : (share.part + 1) * len(rows)] = rows
    return whole
