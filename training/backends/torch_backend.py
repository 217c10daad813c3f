"""Plain eager PyTorch, with one CPU or one GPU for each worker."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from model import Gemma2, attend_in_parts
from training.backends.abilities import Abilities
from training.backends.base import RowShare, WholeParameters, every, gather_rows, host_group
from training.backends.checksum import checksum
from training.backends.names import Device
from training.config import Remat
from training.errors import UserError
from training.logit_slices import RunSlices, loop_slices
from training.loss_head import RunHead, loop_head
from training.optim import zeros_like

CPU = Abilities(
    device="cpu",
    accelerator=None,
    remats=("none",),
    mesh_axes=("replica", "data"),
    mesh_of_workers=True,
    divides_by_default=False,
    processes="anywhere",
    process_group="gloo",
    joined_by="Ray's TorchConfig",
    compiles=False,
)


def _no_gpu() -> str:
    return "" if torch.cuda.is_available() else "PyTorch finds no GPU here"


CUDA = dataclasses.replace(
    CPU, device="cuda", accelerator="GPU", divides_by_default=True, process_group="nccl", lacking=_no_gpu
)
ABILITIES = {abilities.device: abilities for abilities in (CPU, CUDA)}


class TorchBackend(WholeParameters):
    """Plain eager PyTorch, with one CPU or one GPU for each worker; workers sum through torch.distributed (gloo, nccl).

    Each worker has the whole model and all moments; `training/backends/fsdp.py` divides them.
    """

    def __init__(self, name: Device, rank: int = 0, world_size: int = 1) -> None:
        self.abilities = ABILITIES[name]
        self.rank = rank
        self.world_size = world_size
        self.row_share = RowShare(part=rank, parts=world_size)
        self.least_rows = 1
        self.remat: Remat = "none"
        self.run_head: RunHead = loop_head
        self.run_slices: RunSlices = loop_slices
        self.snapshot_by_all = False
        if name == "cuda" and not torch.cuda.is_available():
            raise UserError("got device 'cuda', but PyTorch finds no GPU; use device 'cpu' or 'xla'")
        self.device = torch.device("cuda", torch.cuda.current_device()) if name == "cuda" else torch.device("cpu")
        if world_size > 1 and not torch.distributed.is_initialized():
            raise RuntimeError(
                f"got {world_size} workers and no process group: Ray Train's TorchConfig makes it, see training/worker/"
            )
        self._host_group = host_group() if world_size > 1 else None

    def place_model(
        self,
        model: Gemma2,
        *,
        training: bool = False,
        decodes: bool = False,
        compute_dtype: torch.dtype = torch.float32,
    ) -> Gemma2:
        if not training and not decodes:
            model.attention = attend_in_parts
        return model.to(self.device)

    def restore(self, tensors: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> None:
        for name, tensor in into.items():
            tensor.copy_(tensors[name])

    def zeros_like(self, tensor: Tensor) -> Tensor:
        return zeros_like(tensor)

    def to_device(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if self.device.type == "cpu":
            return tensors
        # A copy from memory that is not pinned is never asynchronous, whatever `non_blocking` is.
        return {name: tensor.pin_memory().to(self.device, non_blocking=True) for name, tensor in tensors.items()}

    def all_reduce_(self, tensors: Sequence[Tensor]) -> None:
        if self.world_size == 1:
            return
        # One flat buffer: one collective instead of one for each parameter.
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        torch.distributed.all_reduce(flat)
        for tensor, summed in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(summed.view_as(tensor))

    def checksum(self, tensors: Sequence[Tensor]) -> Tensor:
        return checksum(tensors)

    def gather(self, rows: np.ndarray) -> np.ndarray:
        return gather_rows(rows, self.world_size, self._host_group)

    def step_boundary(self) -> None:
        pass

    def fetch(self, values: Sequence[Tensor]) -> list[list[float]]:
        return [[float(element) for element in value.cpu()] for value in values]

    def snapshot(self, tensors: Mapping[str, Tensor], keeps: Callable[[str], bool] = every) -> dict[str, Tensor]:
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items() if keeps(name)}

    def compiles(self) -> int:
        return 0

    def peak_device_bytes(self) -> int | None:
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None
