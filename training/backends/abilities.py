"""What a backend can do, as data, and the checks that follow. A backend's folder holds its own `Abilities`."""

import dataclasses
from collections.abc import Callable
from typing import Literal

from model.sharding import MeshShape
from training.backends.devices import has_tpu
from training.backends.names import Device
from training.config import Remat
from training.errors import UserError
from training.setup import Setup


def nothing() -> str:
    """No words: the machine has all that the backend needs."""
    return ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Abilities:
    """What the rest of the system must know about a backend; no other module compares the names of devices."""

    device: Device
    """Name on the command line."""
    accelerator: Literal["TPU", "GPU"] | None
    """Kind of chip that the backend is for; None: it computes on the CPU alone."""
    remats: tuple[Remat, ...]
    """Policies of recomputation in the backward pass that the backend offers."""
    mesh_axes: tuple[str, ...]
    """Axes of the mesh along which the backend can have more than one place."""
    mesh_of_workers: bool
    """Whether the places of the mesh are the workers; False: they are the chips of each process."""
    divides_by_default: bool
    """Whether several workers divide the model if no mesh is given; False: each worker has the whole model."""
    processes: Literal["anywhere", "TPU hosts"]
    """Machines on which several processes can share a step."""
    process_group: Literal["gloo", "nccl"]
    """Group of torch.distributed that joins the processes."""
    joined_by: Literal["Ray's TorchConfig", "XlaConfig"]
    """Config by which Ray Train joins the workers; XlaConfig (training/worker/slices.py) also sets their
    environment."""
    compiles: bool
    """Whether the backend compiles a program for each shape and runs the program while the host goes on."""
    lacking: Callable[[], str] = nothing
    """What this machine lacks to compute on the device, in words; empty: nothing."""
    stands_in: Callable[[], str] = nothing
    """What computes on this machine in place of the backend's accelerator, in words; empty: nothing does."""

    def check(self, setup: Setup, *, on_slices: bool = False) -> None:
        """Raises UserError if this backend cannot run the set-up; `on_slices` as for `check_workers`."""
        self.check_workers(setup.workers, on_slices=on_slices)
        if setup.remat is not None:
            self.check_remat(setup.remat)
        if setup.mesh is not None:
            self.check_mesh(setup.mesh, setup.workers)

    def check_workers(self, workers: int, *, on_slices: bool = False) -> None:
        """Raises UserError if this number of processes cannot share a step.

        `on_slices`: the processes will run on TPU slices, one on each host, wherever this process runs.
        """
        if self.processes == "anywhere" or workers == 1 or on_slices:
            return
        if has_tpu():
            raise UserError(
                f"got {workers} workers on device {self.device!r} without a topology; name the slice whose hosts they "
                "are, as in --topology v5e:4x4, which decides their number, or use workers=1"
            )
        raise UserError(
            f"got {workers} workers on device {self.device!r} without a TPU: XLA on a CPU has no collectives between "
            "processes, so each worker would silently train on its own rows; use workers=1, or device 'cpu' for "
            "several processes"
        )

    def check_remat(self, remat: Remat) -> None:
        """Raises UserError if the backend does not offer this policy of recomputation."""
        if remat not in self.remats:
            raise UserError(
                f"got remat {remat!r} on device {self.device!r}, which keeps everything for the backward pass; "
                "allowed is "
                f"{', '.join(map(repr, self.remats))}: use device 'xla', or fewer microbatch_rows to save memory"
            )

    def check_mesh(self, mesh: MeshShape, workers: int) -> None:
        """Raises UserError if the backend cannot divide a model over this mesh with this number of workers."""
        if not self.mesh_of_workers:
            return
        if workers == 1:
            raise UserError(
                f"got mesh {mesh.text} on device {self.device!r}: a model is divided on device 'xla' only, or over "
                "several workers that train; leave --mesh out"
            )
        beyond = [axis for axis, size in mesh.sizes.items() if size > 1 and axis not in self.mesh_axes]
        if beyond or mesh.chips != workers:
            raise UserError(
                f"got mesh {mesh.text} on device {self.device!r} with {workers} workers; allowed are data={workers}, "
                "which "
                f"divides the model over them, replica={workers}, with the whole model in each, and replica=M,data=N "
                f"with M x N = {workers}"
            )
