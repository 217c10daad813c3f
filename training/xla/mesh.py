"""The mesh of model/sharding.py as torch_xla's compiler sees it: which chip has which part of a tensor."""

import functools

import numpy as np
import torch_xla
import torch_xla.distributed.spmd as xs
from torch import Tensor

from model.sharding import MeshShape, Spec


class ChipMesh:
    """Chips in the order of their ids, `model` innermost. `xr.use_spmd()` has to come before the first tensor."""

    def __init__(self, shape: MeshShape) -> None:
        self.shape = shape
        self.mesh = xs.Mesh(np.arange(shape.chips), tuple(shape.sizes.values()), tuple(shape.sizes))
        self._op_sharding = functools.cache(self.mesh.get_op_sharding)

    def constrain(self, tensor: Tensor, spec: Spec) -> None:
        """Says, in place, how a tensor that is yet to be computed, or a placeholder, will be divided."""
        torch_xla._XLAC._xla_annotate_custom_sharding(tensor, self._op_sharding(spec))

    def divide(self, tensor: Tensor, spec: Spec) -> None:
        """Divides a tensor that is there, in place."""
        xs.mark_sharding(tensor, self.mesh, spec)
