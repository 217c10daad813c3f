"""Where and how a model runs: one object, from the command line to the backend, the checkpoint and the manifest.

    Resources -> Setup -> TrainJob -> make_backend -> `record()` in each checkpoint and in the manifest
                                                   <- `from_record` for a replay

The same set-up repeats the same bits. Another set-up takes the same rows in the same steps, and rounds in another
order.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, get_args

from model.sharding import MeshShape, row_groups
from training.backends.names import Device
from training.config import Remat, at_least, one_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """Device, processes, and how a step is divided. `training/backends/make.py` checks that the backend can do it."""

    device: Device = "auto"
    """Device that computes; `auto` takes xla on a TPU, cuda on a GPU, and cpu on a machine with neither."""
    workers: int = 1
    """Processes that share a step's rows."""
    mesh: MeshShape | None = None
    """Mesh that the model is divided over: on xla the chips of all workers, on cpu and cuda the workers themselves;
    None: one chip, or the backend's default."""
    microbatch_rows: int | None = None
    """Rows in one forward pass of one worker; the gradients of several passes are summed (default: all rows of the
    worker)."""
    remat: Remat | None = None
    """Work that the backward pass does again: `none`; `projections` does all again but the products with weights;
    `full` does everything between two pairs of layers again (default: the backend's)."""
    threads: int | None = None
    """Threads of one worker for computing on the CPU (default: what torch and XLA choose)."""

    def __post_init__(self) -> None:
        one_of("device", self.device, get_args(Device))
        at_least("workers", self.workers, 1)
        if self.remat is not None:
            one_of("remat", self.remat, get_args(Remat))

    @property
    def row_parts(self) -> int:
        """The number of parts of a step's rows.

        Each part is read by one worker, or by all workers that share a model axis of the mesh.
        """
        return self.workers if self.mesh is None else row_groups(self.workers, self.mesh)

    @property
    def chips(self) -> int:
        """The number of chips that compute, over all workers."""
        return self.workers if self.mesh is None else self.mesh.chips

    def record(self) -> dict[str, Any]:
        """What decides the bits of a training step, besides config and inputs, as plain JSON values."""
        return {
            "device": self.device,
            "workers": self.workers,
            **({} if self.mesh is None else {"mesh": self.mesh.text}),
            "microbatch_rows": self.microbatch_rows,
            "cpu_threads": self.threads,
            "remat": self.remat,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Setup":
        """The set-up whose `record()` is given."""
        return cls(
            device=record["device"],
            workers=record["workers"],
            mesh=MeshShape.parse(record["mesh"]) if "mesh" in record else None,
            microbatch_rows=record["microbatch_rows"],
            threads=record["cpu_threads"],
            remat=record["remat"],
        )

    def forward_record(self) -> dict[str, str]:
        """What decides the bits of a forward pass without training, besides config and inputs, as plain JSON values."""
        divided = self.mesh is not None and self.mesh.chips > 1
        return {"device": self.device, **({"mesh": self.mesh.text} if self.mesh is not None and divided else {})}
