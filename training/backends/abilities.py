"""What a backend can do, as data, and the checks that follow from it. A backend's folder holds its own `Abilities`."""

import dataclasses
from typing import Literal

from model.sharding import MeshShape
from training.backends.devices import has_tpu
from training.backends.names import Device
from training.config import Remat
from training.errors import UserError
from training.setup import Setup


@dataclasses.dataclass(frozen=True, kw_only=True)
class Abilities:
    """What the rest of the system has to know of a backend; nobody else compares the names of devices."""

    device: Device
    """name on the command line"""
    accelerator: Literal["TPU", "GPU"] | None
    """kind of chip that it is for; None: it computes on the CPU alone"""
    remats: tuple[Remat, ...]
    """what its backward pass can compute again"""
    mesh_axes: tuple[str, ...]
    """axes of the mesh along which it can have more than one place"""
    mesh_of_workers: bool
    """whether the places of the mesh are the workers; otherwise they are the chips of each process"""
    divides_by_default: bool
    """whether several workers divide the model where no mesh is given; otherwise each has all of it"""
    processes: Literal["anywhere", "TPU hosts"]
    """on which machines several processes can share a step"""
    process_group: Literal["gloo", "nccl"]
    """group of torch.distributed that joins the processes"""
    joined_by: Literal["Ray's TorchConfig", "XlaConfig"]
    """what Ray Train joins the workers with; XlaConfig (training/worker/slices.py) also sets their environment"""
    compiles: bool
    """whether it compiles a program for each shape and runs the program while the host goes on"""

    def check(self, setup: Setup, *, on_slices: bool = False) -> None:
        """Raises UserError if this backend cannot run like that; `on_slices` as for `check_workers`."""
        self.check_workers(setup.workers, on_slices=on_slices)
        if setup.remat is not None:
            self.check_remat(setup.remat)
        if setup.mesh is not None:
            self.check_mesh(setup.mesh, setup.workers)

    def check_workers(self, workers: int, *, on_slices: bool = False) -> None:
        """Raises UserError if so many processes cannot share a step.

        `on_slices`: they are to be one on each host of TPU slices, wherever this process is.
        """
        if self.processes == "anywhere" or workers == 1 or on_slices:
            return
        if has_tpu():
            raise UserError(
                f"{workers} workers on device {self.device!r} without a topology: say which slice they are the hosts "
                "of, as in --topology v5e:4x4, which gives their number, or use workers=1"
            )
        raise UserError(
            f"{workers} workers on device {self.device!r} without a TPU: XLA on a CPU has no collectives between "
            "processes, each worker would silently train on its own rows; use workers=1, or device 'cpu' for several "
            "processes"
        )

    def check_remat(self, remat: Remat) -> None:
        """Raises UserError if the backward pass cannot compute that again."""
        if remat not in self.remats:
            raise UserError(
                f"remat {remat!r} on device {self.device!r}: it keeps all else for the backward pass; allowed is "
                f"{', '.join(map(repr, self.remats))}, or use device 'xla', or fewer microbatch_rows to save memory"
            )

    def check_mesh(self, mesh: MeshShape, workers: int) -> None:
        """Raises UserError if the backend cannot divide a model like that over so many workers."""
        if not self.mesh_of_workers:
            return
        if workers == 1:
            raise UserError(
                f"mesh {mesh.text} on device {self.device!r}: a model is divided on device 'xla' only, or over several "
                "workers that train; leave --mesh out"
            )
        beyond = [axis for axis, size in mesh.sizes.items() if size > 1 and axis not in self.mesh_axes]
        if beyond or mesh.chips != workers:
            raise UserError(
                f"mesh {mesh.text} on device {self.device!r} with {workers} workers: allowed are data={workers}, which "
                f"divides the model over them, replica={workers}, where each has all of it, and replica=M,data=N of "
                f"M x N = {workers}"
            )
