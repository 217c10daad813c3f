"""The mesh of model/sharding.py as torch_xla's compiler sees it: which chip has which part of a tensor."""

import functools
from collections.abc import Sequence

import numpy as np
import torch_xla
import torch_xla.distributed.spmd as xs
from torch import Tensor

from model.sharding import ROWS, MeshShape, Spec


class ChipMesh:
    """Chips in a given order, `model` innermost. `xr.use_spmd()` has to come before the first tensor.

    With several processes the order is process by process: then the rows that a process has read are those of its own
    chips, and slices, whose processes follow each other, are the parts of the outermost axis.
    """

    def __init__(self, shape: MeshShape, chips: Sequence[int] | None = None) -> None:
        self.shape = shape
        order = np.arange(shape.chips) if chips is None else np.array(chips)
        self.mesh = xs.Mesh(order, tuple(shape.sizes.values()), tuple(shape.sizes))
        self._op_sharding = functools.cache(self.mesh.get_op_sharding)
        self._row_spec = functools.cache(lambda ndim: xs.ShardingSpec(self.mesh, row_axes(ndim), minibatch=True))

    def constrain(self, tensor: Tensor, spec: Spec) -> None:
        """Says, in place, how a tensor that is yet to be computed, or a placeholder, will be divided."""
        torch_xla._XLAC._xla_annotate_custom_sharding(tensor, self._op_sharding(spec))

    def place_rows(self, tensors: Sequence[Tensor], device: str, processes: int) -> list[Tensor]:
        """Host tensors on the chips: those of rows divided over replica and data, each process giving its part of a
        step's rows; vectors are scalars of the step, which every chip needs."""
        place = torch_xla._XLAC._xla_tensors_from_aten
        rows = [tensor.ndim >= 2 for tensor in tensors]
        if processes > 1:
            specs = [
                self._row_spec(tensor.ndim).xla_spec(tensor) if one else None
                for tensor, one in zip(tensors, rows, strict=True)
            ]
            return list(place(list(tensors), [device] * len(tensors), specs))
        placed: list[Tensor] = place(list(tensors), [device] * len(tensors))
        for tensor, one in zip(placed, rows, strict=True):
            if one:
                self.divide(tensor, row_axes(tensor.ndim))
        return placed

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
    """The chips of the mesh in order, from the chips of each process.

    Raises ValueError where the mesh has other chips than the processes, or several processes and a model axis.
    """
    total = sum(len(chips) for chips in of_process)
    whose = "the process has" if len(of_process) == 1 else f"the {len(of_process)} processes have"
    if total != shape.chips:
        raise ValueError(
            f"the mesh {shape.sizes} has {shape.chips} chips and {whose} {total}; their product has to be that"
        )
    if len(of_process) > 1 and shape.model > 1:
        raise ValueError(
            f"model={shape.model} on {len(of_process)} hosts: chips along the model axis share their rows, which is "
            f"built for one host alone; several take a mesh of replica and data, as data={total}"
        )
    return [chip for chips in of_process for chip in sorted(chips)]
