"""The two backends of plain PyTorch: a worker with the whole model, or with its part of every parameter."""

from model.sharding import MeshShape
from training.backends.base import Backend
from training.backends.torch_backend import ABILITIES, TorchBackend
from training.setup import Setup


def build(setup: Setup, rank: int) -> Backend:
    """The backend of one worker. The places of the mesh are the workers: data=N divides the model over them (FSDP2),
    replica=N keeps the model whole in each, and replica=M,data=N divides the model in each of M groups."""
    by_default = setup.workers if ABILITIES[setup.device].divides_by_default else 1
    mesh = setup.mesh or MeshShape(data=by_default)
    if mesh.data > 1:
        from training.backends.fsdp import FsdpBackend  # imports FSDP2, which takes a second

        return FsdpBackend(setup.device, rank, setup.workers, mesh.replica)
    return TorchBackend(setup.device, rank, setup.workers)
