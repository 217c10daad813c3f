"""PyTorch/XLA on one process: the product's path, on a TPU and, compiled by the same compiler, on a CPU.

Operations on the device are recorded; `step_boundary` hands the recorded step to XLA, which compiles it when it sees
it for the first time and runs it in the background. Parameters and moments are updated in place: XLA writes into
their own buffers. Nothing may read a value inside a step, since that would cut the program in two and wait for it.

PJRT_DEVICE decides between TPU and CPU when torch_xla is imported; it is set here where nobody has set it.
"""

import os
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from model import Gemma2
from model.sharding import ROWS, MeshShape, check_mesh, check_rows
from training.backend import check_workers, has_tpu
from training.config import Remat

os.environ.setdefault("PJRT_DEVICE", "TPU" if has_tpu() else "CPU")

import torch_xla
import torch_xla.runtime as xr
from torch_xla.debug import metrics

from training.xla.checksum import checksum
from training.xla.head import scan_head
from training.xla.layers import PairedLayers, scan_layers, stack_tensors, stacked_specs, unstack_tensors
from training.xla.mesh import ChipMesh


class XlaBackend:
    """One process on an XLA device, or on a mesh of the process' devices.

    Models for training scan their layers; on a TPU they attend by the splash kernel where it has their head size.
    `remat` is `full` on a TPU and `none` elsewhere where it is not given: memory is what a TPU runs out of.
    """

    def __init__(
        self, rank: int = 0, world_size: int = 1, remat: Remat | None = None, mesh: MeshShape | None = None
    ) -> None:
        check_workers("xla", world_size)
        self.name = "xla"
        self.rank = rank
        self.world_size = world_size
        self.mesh: ChipMesh | None = None
        if mesh is not None and mesh.chips > 1:
            xr.use_spmd()
            if mesh.chips != xr.global_runtime_device_count():
                raise ValueError(
                    f"the mesh {mesh.sizes} has {mesh.chips} chips and the process has "
                    f"{xr.global_runtime_device_count()}; their product has to be that"
                )
            self.mesh = ChipMesh(mesh)
        self.device: torch.device = torch_xla.device()
        self.hardware: str = xr.device_type()
        self.remat: Remat = remat or ("full" if self.hardware == "TPU" else "none")
        self.constrain = self.mesh.constrain if self.mesh else None
        self.run_head = scan_head(mesh.row_shards if mesh else 1, self.constrain)

    def place_model(self, model: Gemma2, *, training: bool = False) -> Gemma2:
        if self.mesh is not None:
            check_mesh(model.config, self.mesh.shape)
        if training:
            model.model.layers = PairedLayers(list(model.model.layers))  # type: ignore[assignment,arg-type]
            model.run_layers = scan_layers(self.remat, self.constrain)
            if self.hardware == "TPU":
                from training.xla.attention import fits_splash, splash_attention  # imports jax

                if fits_splash(model.config):
                    model.attention = splash_attention(self.mesh.shape if self.mesh else None)
        model.to(self.device)
        if self.mesh is not None:
            parameters = dict(model.named_parameters())
            for name, spec in stacked_specs(parameters).items():
                self.mesh.divide(parameters[name], spec)
        return model

    def restore(self, tensors: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> None:
        for name, tensor in stack_tensors(tensors, into).items():
            into[name].copy_(tensor)

    def to_device(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        tensors = torch_xla._XLAC._xla_tensors_from_aten(
            [torch.from_numpy(array) for array in arrays.values()], [str(self.device)] * len(arrays)
        )
        if self.mesh is not None:
            for tensor in tensors:
                if tensor.ndim >= 2:  # of rows; vectors are scalars of the step, which every chip needs
                    check_rows(len(tensor), self.mesh.shape)
                    self.mesh.divide(tensor, (ROWS, *[None] * (tensor.ndim - 1)))
        return dict(zip(arrays, tensors, strict=True))

    def all_reduce_(self, tensors: Sequence[Tensor]) -> None:
        pass  # one process: there is nobody to sum with

    def checksum(self, tensors: Sequence[Tensor]) -> Tensor:
        return checksum(tensors)

    def gather(self, rows: np.ndarray) -> np.ndarray:
        return rows

    def step_boundary(self) -> None:
        torch_xla.sync()

    def fetch(self, values: Sequence[Tensor]) -> list[list[float]]:
        return [[float(element) for element in value] for value in torch_xla._XLAC._xla_get_cpu_tensors(list(values))]

    def snapshot(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        torch_xla.sync(wait=True)
        copies = torch_xla._XLAC._xla_get_cpu_tensors([tensor.detach() for tensor in tensors.values()])
        return unstack_tensors(dict(zip(tensors, copies, strict=True)))

    def compiles(self) -> int:
        data = metrics.metric_data("CompileTime")
        return int(data[0]) if data is not None else 0
