"""Where and how a model runs: one object from the command line to the backend, the checkpoint and the manifest.

    Resources -> Setup -> TrainJob -> make_backend -> `record()` in each checkpoint and in the manifest
                                                   <- `from_record` for a replay

The same set-up repeats the same bits. Another one takes the same rows in the same steps, and rounds in another order.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, get_args

from model.sharding import MeshShape, row_groups
from training.backends.names import Device
from training.config import Remat, at_least, one_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """Device, processes and how a step is cut. `training/backends/make.py` checks what the backend can do."""

    device: Device = "auto"
    """device that computes; `auto` takes xla on a TPU, cuda on a GPU, cpu where there is neither"""
    workers: int = 1
    """processes that share a step's rows"""
    mesh: MeshShape | None = None
    """how the model is divided: on xla over the chips of all workers, on cpu and cuda over the workers themselves;
    None: one chip, or what the backend does by default"""
    microbatch_rows: int | None = None
    """rows in one forward of one worker; gradients of several are summed (default: all rows of the worker at once)"""
    remat: Remat | None = None
    """what the backward pass computes again: `none`, all but the `projections` with weights, or in `full` all between
    two pairs of layers (default: the backend's)"""
    threads: int | None = None
    """threads of one worker for computing on the CPU (default: what torch and XLA choose)"""

    def __post_init__(self) -> None:
        one_of("device", self.device, get_args(Device))
        at_least("workers", self.workers, 1)
        if self.remat is not None:
            one_of("remat", self.remat, get_args(Remat))

    @property
    def row_parts(self) -> int:
        """Parts of a step's rows, each read by one worker, or by the workers that share a model axis of the mesh."""
        return self.workers if self.mesh is None else row_groups(self.workers, self.mesh)

    @property
    def chips(self) -> int:
        """Chips of all workers together that compute."""
        return self.workers if self.mesh is None else self.mesh.chips

    def record(self) -> dict[str, Any]:
        """What decides the bits of a training step beside config and inputs, as plain JSON values."""
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
        """The set-up that `record` is of."""
        return cls(
            device=record["device"],
            workers=record["workers"],
            mesh=MeshShape.parse(record["mesh"]) if "mesh" in record else None,
            microbatch_rows=record["microbatch_rows"],
            threads=record["cpu_threads"],
            remat=record["remat"],
        )

    def forward_record(self) -> dict[str, str]:
        """What decides the bits of a forward pass without training beside config and inputs, as plain JSON values."""
        divided = self.mesh is not None and self.mesh.chips > 1
        return {"device": self.device, **({"mesh": self.mesh.text} if self.mesh is not None and divided else {})}
