"""The backends by device, and the backend of a set-up. A new backend is a folder beside this file, a line
here, and its name in names.py."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from model.sharding import check_mesh, check_rows
from training.backends import plain, xla
from training.backends.abilities import Abilities
from training.backends.base import Backend
from training.backends.devices import has_tpu, resolve_device
from training.backends.torch_backend import CPU, CUDA
from training.backends.xla.abilities import XLA
from training.setup import Setup

if TYPE_CHECKING:
    from model import Gemma2Config

Build = Callable[[Setup, int], Backend]
"""(checked set-up with a resolved device, rank) -> the backend of that worker."""

BACKENDS: Mapping[str, tuple[Abilities, Build]] = {
    abilities.device: (abilities, build)
    for abilities, build in (
        (CPU, plain.build),
        (CUDA, plain.build),
        (XLA, xla.build),
    )
}


def abilities_of(device: str) -> Abilities:
    """The abilities of the backend of a resolved device."""
    return BACKENDS[device][0]


def check_setup(setup: Setup) -> None:
    """Raises UserError if the backend of the set-up's device cannot divide a model over the set-up's mesh.

    Nothing is checked for `auto`, which another machine may resolve. Workers and remat are checked on the machine that
    runs them.
    """
    if setup.device in BACKENDS and setup.mesh is not None:
        abilities_of(setup.device).check_mesh(setup.mesh, setup.workers)


def check_divides(setup: Setup, config: "Gemma2Config", rows: int | None = None) -> None:
    """Raises UserError if a mesh of chips cannot divide a model of these sizes, or the rows of a forward pass, evenly.

    Nothing is checked for `auto`, nor for a mesh of workers, which may hold uneven parts. The backend checks again.
    """
    if setup.device not in BACKENDS or setup.mesh is None or abilities_of(setup.device).mesh_of_workers:
        return
    check_mesh(config, setup.mesh)
    if rows is not None:
        check_rows(rows, setup.mesh)


def make_backend(setup: Setup, rank: int = 0) -> Backend:
    """The backend of one of the set-up's workers.

    Raises UserError if this machine does not have the device, or if the device cannot run the set-up's workers, remat
    or mesh.
    """
    resolved = dataclasses.replace(setup, device=resolve_device(setup.device))
    abilities, build = BACKENDS[resolved.device]
    abilities.check(resolved, on_slices=setup.mesh is not None and has_tpu())
    return build(resolved, rank)
