"""PyTorch/XLA: the only place that imports torch_xla (and jax), so that everything else runs without it."""

import importlib.util

from training.backends.base import Backend
from training.errors import UserError
from training.setup import Setup


def build(setup: Setup, rank: int) -> Backend:
    """The backend of one process; its mesh is over the chips of all processes.

    Raises UserError if torch_xla is not installed.
    """
    if importlib.util.find_spec("torch_xla") is None:
        raise UserError(
            "got device 'xla', but torch_xla is not installed; install torch_xla==2.9.0, or use device 'cpu'"
        )
    from training.backends.xla.backend import XlaBackend

    return XlaBackend(rank, setup.workers, setup.remat, setup.mesh)
