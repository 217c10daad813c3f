"""PyTorch/XLA: the product's path, on a TPU and, compiled by the same compiler, on a CPU.

Operations on the device are recorded; `step_boundary` hands the recorded step to XLA, which compiles a new program once
and runs it in the background. Parameters and moments are updated in place: XLA writes into their own buffers. Nothing
may read a value inside a step, since that would cut the program in two and wait for it.

PJRT_DEVICE decides between TPU and CPU when torch_xla is imported; this module sets the variable if it is not set.
"""

import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from model import Gemma2, attend_in_parts
from model.sharding import MeshShape, check_mesh, check_rows
from training.backends.base import RowShare, WholeParameters, every, gather_rows
from training.backends.devices import has_tpu
from training.config import Remat
from training.optim import zeros_like

os.environ.setdefault("PJRT_DEVICE", "TPU" if has_tpu() else "CPU")

import torch_xla
import torch_xla.runtime as xr
from torch_xla.debug import metrics

from training.backends.xla.abilities import XLA
from training.backends.xla.checksum import checksum
from training.backends.xla.head import scan_head, scan_slices
from training.backends.xla.layers import PairedLayers, scan_layers, stack_tensors, stacked_specs, unstack_tensors
from training.backends.xla.mesh import ChipMesh, chips_by_process, share_of
from training.errors import UserError


class XlaBackend(WholeParameters):
    """One process on an XLA device, or on a mesh of devices: its own, or those of all processes of TPU slices.

    With several processes each reads its own rows, and the compiled step sums over all processes; messages between
    hosts go over gloo. Several processes have not run yet: XLA has no collectives between processes on a CPU.

    Models scan their layers unless they decode; on a TPU they use the splash kernel if it supports their head size. The
    default of `remat` is `full` on a TPU, whose memory is short, and `none` elsewhere.
    """

    def __init__(
        self, rank: int = 0, world_size: int = 1, remat: Remat | None = None, mesh: MeshShape | None = None
    ) -> None:
        self.abilities = XLA
        self.rank = rank
        self.world_size = world_size
        self.snapshot_by_all = world_size > 1
        self.mesh: ChipMesh | None = None
        self.row_share, self.least_rows = RowShare(), 1
        if world_size > 1:
            check_processes(world_size, mesh)
        if mesh is not None and mesh.chips > 1:
            xr.use_spmd()
            devices = [int(name.rpartition(":")[2]) for name in torch_xla._XLAC._xla_get_runtime_devices()]
            devices_by_process = self.gather(np.array([devices])).tolist()
            self.mesh = ChipMesh(mesh, chips_by_process(devices_by_process, mesh))
            self.row_share = share_of(rank, devices_by_process, mesh)
            self.least_rows = mesh.row_shards // self.row_share.parts
        self.device: torch.device = torch_xla.device()
        self.hardware: str = xr.device_type()
        self.remat: Remat = remat or ("full" if self.hardware == "TPU" else "none")
        self.constrain = self.mesh.constrain if self.mesh else None
        self.run_head = scan_head(mesh.row_shards if mesh else 1, self.constrain)
        self.run_slices = scan_slices(mesh or MeshShape(), self.constrain)
        self._compiled_before = _compiles()

    def place_model(
        self,
        model: Gemma2,
        *,
        training: bool = False,
        decodes: bool = False,
        compute_dtype: torch.dtype = torch.float32,
    ) -> Gemma2:
        if self.mesh is not None:
            check_mesh(model.config, self.mesh.shape)
        if not decodes:
            model.model.layers = PairedLayers(list(model.model.layers))  # type: ignore[assignment,arg-type]
            # Nothing is kept for a backward pass that never comes.
            model.run_layers = scan_layers(self.remat if training else "full", self.constrain)
            if not training:
                model.attention = attend_in_parts
            if self.hardware == "TPU":
                from training.backends.xla.attention import fits_splash, splash_attention  # imports jax

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

    def zeros_like(self, tensor: Tensor) -> Tensor:
        zeros = zeros_like(tensor)
        if self.mesh is not None:
            self.mesh.divide_like(zeros, tensor)
        return zeros

    def to_device(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        tensors = [torch.from_numpy(array) for array in arrays.values()]
        if self.mesh is None:
            placed = torch_xla._XLAC._xla_tensors_from_aten(tensors, [str(self.device)] * len(tensors))
        else:
            for rows in {len(tensor) for tensor in tensors if tensor.ndim >= 2}:
                check_rows(rows * self.row_share.parts, self.mesh.shape)
            placed = self.mesh.place_rows(tensors, str(self.device), self.row_share)
        return dict(zip(arrays, placed, strict=True))

    def all_reduce_(self, tensors: Sequence[Tensor]) -> None:
        pass  # the compiled step sums over all chips

    def checksum(self, tensors: Sequence[Tensor]) -> Tensor:
        return checksum(tensors)

    def gather(self, rows: np.ndarray) -> np.ndarray:
        return gather_rows(rows, self.world_size)

    def step_boundary(self) -> None:
        torch_xla.sync()

    def fetch(self, values: Sequence[Tensor]) -> list[list[float]]:
        return [[float(element) for element in value] for value in torch_xla._XLAC._xla_get_cpu_tensors(list(values))]

    def snapshot(self, tensors: Mapping[str, Tensor], keeps: Callable[[str], bool] = every) -> dict[str, Tensor]:
        torch_xla.sync(wait=True)
        if self.world_size == 1:
            copies = torch_xla._XLAC._xla_get_cpu_tensors([tensor.detach() for tensor in tensors.values()])
            return unstack_tensors(dict(zip(tensors, copies, strict=True)))
        kept: dict[str, Tensor] = {}
        for (
            name,
            tensor,
        ) in tensors.items():  # one tensor at a time is whole on the chips and in the memory of every host
            (copy,) = torch_xla._XLAC._xla_get_cpu_tensors([tensor.detach()])
            kept |= {key: part.clone() for key, part in unstack_tensors({name: copy}).items() if keeps(key)}
        return kept

    def compiles(self) -> int:
        return _compiles() - self._compiled_before

    def peak_device_bytes(self) -> int | None:
        # XLA:CPU keeps no such count, and torch_xla refuses the question for the one device that a mesh is under SPMD.
        if self.hardware != "TPU" or self.mesh is not None:
            return None
        return int(torch_xla._XLAC._xla_memory_info(str(self.device))["peak_bytes_used"])


def _compiles() -> int:
    """Programs that this process has compiled, for any backend."""
    data = metrics.metric_data("CompileTime")
    return int(data[0]) if data is not None else 0


def check_processes(world_size: int, mesh: MeshShape | None) -> None:
    """Raises UserError if several processes cannot share a step."""
    if xr.device_type() != "TPU":
        XLA.check_workers(world_size)
    if mesh is None or mesh.chips <= 1:
        raise UserError(
            f"got {world_size} processes on TPU slices and no mesh over their chips; give --mesh, as in data=16"
        )
