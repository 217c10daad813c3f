"""The backend of a device."""

import importlib.util

from model.sharding import MeshShape
from training.backends.base import Backend
from training.backends.devices import check_workers, has_tpu, resolve_device
from training.backends.torch_backend import TorchBackend
from training.config import Device, Remat, check_mesh_device
from training.errors import UserError


def make_backend(
    device: Device, rank: int = 0, world_size: int = 1, remat: Remat | None = None, mesh: str = ""
) -> Backend:
    """The backend of a device; `mesh` (as in data=2,model=2): over several chips of this process.

    On cpu and cuda the mesh is the workers: data=N divides the model over them (FSDP2), the default on cuda,
    replica=N keeps it whole in each, the default on cpu, and replica=M,data=N divides it in each of M groups.

    Raises UserError where the device cannot be had, not for so many workers, or not with that `remat` or `mesh`.
    """
    resolved = resolve_device(device)
    check_workers(resolved, world_size, on_slices=bool(mesh) and has_tpu())
    if resolved != "xla":
        if remat not in (None, "none"):
            raise UserError(
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
        raise UserError(
            "device 'xla' needs torch_xla, which is not installed; install torch_xla==2.9.0 or use device 'cpu'"
        )
    from training.backends.xla.backend import XlaBackend

    return XlaBackend(rank, world_size, remat, MeshShape.parse(mesh) if mesh else None)
