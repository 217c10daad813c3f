"""Where a step runs: a small protocol, and plain PyTorch on a CPU or a GPU. PyTorch/XLA is in `training/backends/xla/`.

The loop speaks only to a backend: place tensors, sum over workers, mark the end of a step, read values back. Another
device is another class with these methods. Values are read back seldom, so that the host never waits for the device
inside a step.
"""

import dataclasses
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from model import Gemma2
from model.sharding import MeshShape
from training.backends.checksum import checksum
from training.backends.gradients import sum_gradients
from training.config import Device, Remat, check_mesh_device
from training.loss import Batch, LossFunction, RunHead, loop_head
from training.optim import global_norm, zeros_like


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowShare:
    """Which rows of a step a worker reads."""

    part: int = 0
    """its place among the parts, in the order of the step's slots"""
    parts: int = 1
    """equal ones; fewer than workers where several hold the chips of one model axis, and read the same rows"""
    first: bool = True
    """whether it is the one that tells which rows its part had"""


def every(name: str) -> bool:
    """Keeps all."""
    return True


class Backend(Protocol):
    """What the loop needs of a device."""

    name: str
    device: torch.device
    rank: int
    world_size: int
    row_share: RowShare
    remat: Remat
    """what the backward pass computes again"""
    run_head: RunHead
    """how the head's slices are walked"""
    snapshot_by_all: bool
    """whether each worker has a part of the tensors: then a snapshot, and a gradient, takes all of them"""
    least_rows: int
    """rows that the worker's devices divide, at least"""

    def place_model(
        self, model: Gemma2, *, training: bool = False, compute_dtype: torch.dtype = torch.float32
    ) -> Gemma2:
        """Moves the parameters to the device, in place.

        For `training` the layers may be put together as the device's steps want them, which gives their parameters
        other names, and parameters may be divided over workers, to be gathered in `compute_dtype`; `restore` and
        `snapshot` translate. Such a model does not decode.
        """

    def parts(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What this process holds of placed tensors, in their own memory: the tensors, unless workers share them."""

    def gradients(
        self,
        model: Gemma2,
        loss_function: LossFunction,
        micro_batches: Sequence[Batch],
        compute_dtype: torch.dtype,
    ) -> tuple[list[Tensor], Tensor]:
        """Float32 gradients of the sum of losses, as `parts` of the parameters in order, and [loss_sum, targets].

        Of this worker's rows, for `all_reduce_` to sum; of all workers' where the parameters are divided over them.
        """

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """The L2 norm over all elements, of the parts of all workers."""

    def restore(self, tensors: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> None:
        """Copies host tensors, by Hugging Face's names, into placed ones, by the names of the placed parameters."""

    def zeros_like(self, tensor: Tensor) -> Tensor:
        """Float32 zeros beside a placed tensor, lying on the chips as it does."""

    def to_device(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """Copies host arrays to the device."""

    def all_reduce_(self, tensors: Sequence[Tensor]) -> None:
        """Sums what `gradients` gave over the workers, in place; nothing to do for one worker."""

    def checksum(self, tensors: Sequence[Tensor]) -> Tensor:
        """`training.backends.checksum.checksum` of the parts of all workers, without leaving the device."""

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Host rows of all workers, in rank order."""

    def step_boundary(self) -> None:
        """Ends a step: what was traced is handed to the device."""

    def fetch(self, values: Sequence[Tensor]) -> list[list[float]]:
        """The elements of vectors on the device as Python floats; waits for them."""

    def snapshot(self, tensors: Mapping[str, Tensor], keeps: Callable[[str], bool] = every) -> dict[str, Tensor]:
        """Copies on the host that later steps do not change, by Hugging Face's names, of those that this worker keeps.

        A prefix of names stays where it is.
        """

    def compiles(self) -> int:
        """Programs compiled so far in this process (0 where nothing is compiled)."""

    def peak_device_bytes(self) -> int | None:
        """Most memory that this process had on its device so far; None where that is the host's, or not known."""


class WholeParameters:
    """What is the same for all backends whose parameters are whole to this process, whoever lays them out."""

    def parts(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(tensors)

    def gradients(
        self,
        model: Gemma2,
        loss_function: LossFunction,
        micro_batches: Sequence[Batch],
        compute_dtype: torch.dtype,
    ) -> tuple[list[Tensor], Tensor]:
        return sum_gradients(model, loss_function, micro_batches, compute_dtype)

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        return global_norm(gradients)


class TorchBackend(WholeParameters):
    """Plain eager PyTorch on one CPU or GPU a worker; several workers sum through torch.distributed (gloo, nccl).

    Each has the whole model and its moments; `training/backends/fsdp.py` divides them.
    """

    def __init__(self, name: Device, rank: int = 0, world_size: int = 1) -> None:
        self.name: str = name
        self.rank = rank
        self.world_size = world_size
        self.row_share = RowShare(part=rank, parts=world_size)
        self.least_rows = 1
        self.remat: Remat = "none"
        self.run_head: RunHead = loop_head
        self.snapshot_by_all = False
        if name == "cuda" and not torch.cuda.is_available():
            raise ValueError("device 'cuda' and PyTorch sees no GPU; use device 'cpu' or 'xla'")
        self.device = torch.device("cuda", torch.cuda.current_device()) if name == "cuda" else torch.device("cpu")
        if world_size > 1 and not torch.distributed.is_initialized():
            raise RuntimeError(
                f"{world_size} workers and no process group: Ray Train's TorchConfig makes it, see training/worker/"
            )

    def place_model(
        self, model: Gemma2, *, training: bool = False, compute_dtype: torch.dtype = torch.float32
    ) -> Gemma2:
        return model.to(self.device)

    def restore(self, tensors: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> None:
        for name, tensor in into.items():
            tensor.copy_(tensors[name])

    def zeros_like(self, tensor: Tensor) -> Tensor:
        return zeros_like(tensor)

    def to_device(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        return {name: torch.from_numpy(array).to(self.device, non_blocking=True) for name, array in arrays.items()}

    def all_reduce_(self, tensors: Sequence[Tensor]) -> None:
        if self.world_size == 1:
            return
        # One flat buffer: one collective instead of one a parameter.
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        torch.distributed.all_reduce(flat)
        for tensor, summed in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(summed.view_as(tensor))

    def checksum(self, tensors: Sequence[Tensor]) -> Tensor:
        return checksum(tensors)

    def gather(self, rows: np.ndarray) -> np.ndarray:
        return gather_rows(rows, self.world_size)

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


def gather_rows(rows: np.ndarray, world_size: int) -> np.ndarray:
    """Host rows of all processes, in rank order, through torch.distributed's default group."""
    if world_size == 1:
        return rows
    gathered: list[np.ndarray | None] = [None] * world_size
    torch.distributed.all_gather_object(gathered, rows)
    return np.concatenate([part for part in gathered if part is not None])


def gather_slots(backend: Backend, rows: np.ndarray) -> np.ndarray:
    """Host rows of a step out of each part of it, in the order of its slots. Every worker has to ask."""
    mine = rows if backend.row_share.first else rows[:0]
    parts = backend.gather(np.full(len(mine), backend.row_share.part))
    return backend.gather(mine)[np.argsort(parts, kind="stable")]


def resolve_device(device: Device) -> Device:
    """What `auto` means on this machine; any other device is itself."""
    if device != "auto":
        return device
    if has_tpu():
        return "xla"
    if torch.cuda.is_available():
        return "cuda"
    return "xla" if importlib.util.find_spec("torch_xla") is not None else "cpu"


def has_tpu() -> bool:
    """Whether this machine has TPU chips, asked of the kernel: importing libtpu would take the chips."""
    if "PJRT_DEVICE" in os.environ:
        return os.environ["PJRT_DEVICE"].upper() == "TPU"
    return any(Path("/dev").glob("accel*")) or ("TPU_WORKER_ID" in os.environ and any(Path("/dev").glob("vfio/*")))


def check_workers(device: Device, workers: int, *, on_slices: bool = False) -> None:
    """Raises ValueError where `device` (resolved) cannot share a step between so many processes.

    `on_slices`: they are to be one on each host of TPU slices, wherever we are.
    """
    if device != "xla" or workers == 1 or on_slices:
        return
    if has_tpu():
        raise ValueError(
            f"{workers} workers on device 'xla' without a topology: say which slice they are the hosts of, as in "
            "--topology v5e:4x4, which gives their number, or use workers=1"
        )
    raise ValueError(
        f"{workers} workers on device 'xla' without a TPU: XLA on a CPU has no collectives between processes, each "
        "worker would silently train on its own rows; use workers=1, or device 'cpu' for several processes"
    )


def make_backend(
    device: Device, rank: int = 0, world_size: int = 1, remat: Remat | None = None, mesh: str = ""
) -> Backend:
    """The backend of a device; `mesh` (as in data=2,model=2): over several chips of this process.

    On cpu and cuda the mesh is the workers: data=N divides the model over them (FSDP2), the default on cuda,
    replica=N keeps it whole in each, the default on cpu, and replica=M,data=N divides it in each of M groups.

    Raises ValueError where the device cannot be had, not for so many workers, or not with that `remat` or `mesh`.
    """
    resolved = resolve_device(device)
    check_workers(resolved, world_size, on_slices=bool(mesh) and has_tpu())
    if resolved != "xla":
        if remat not in (None, "none"):
            raise ValueError(
                f"remat {remat!r} on device {resolved!r}: plain PyTorch keeps everything for the backward pass; "
                "allowed is 'none', or use device 'xla', or fewer microbatch_rows to save memory"
            )
        check_mesh_device(mesh, resolved, world_size)
        shape = MeshShape.parse(mesh) if mesh else MeshShape(data=world_size if resolved == "cuda" else 1)
        if shape.data > 1:
            from training.backends.fsdp import FsdpBackend

            return FsdpBackend(resolved, rank, world_size, shape.replica)
        return TorchBackend(resolved, rank, world_size)
    if importlib.util.find_spec("torch_xla") is None:
        raise ValueError(
            "device 'xla' needs torch_xla, which is not installed; install torch_xla==2.9.0 or use device 'cpu'"
        )
    from training.backends.xla.backend import XlaBackend

    return XlaBackend(rank, world_size, remat, MeshShape.parse(mesh) if mesh else None)
