"""Where, and with how much, a stage runs: recorded with the run, never hashed."""

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pipelines.engine.errors import UserError
from training.backends.names import Device

if TYPE_CHECKING:
    from model.sharding import MeshShape


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Where and with how much to run: recorded, never hashed."""

    device: Device = "auto"
    """what computes; auto takes xla on a TPU, cuda on a GPU, and cpu where there is neither: it is faster there than
    xla on a CPU"""
    workers: int = 1
    """Ray Train workers"""
    min_workers: int | None = None
    """fewest workers that a training run goes on with if nodes are missing; it grows again as they come; None: all"""
    topology: str = ""
    """slice that a training run takes, as in v5e:4x4, a worker on each of its hosts; empty: one host"""
    slices: int = 1
    """number of such slices, as data replicas"""
    min_slices: int | None = None
    """fewest slices that a training run goes on with, as with min_workers; None: all"""
    mesh: str = ""
    """how a model is divided over the chips on xla, as in data=2,model=2; empty: one chip, with a topology all of its
    chips along data. For training on cpu and cuda the workers are the chips: data=N divides the model over them, the
    default on cuda, and replica=N repeats it, the default on cpu"""
    microbatch_rows: int | None = None
    """rows of the global batch that one worker computes at a time; None: all of its rows"""
    remat: Literal["none", "projections", "full"] | None = None
    """what the backward pass computes again on xla; None: full on a TPU, none elsewhere"""
    feed: Literal["direct", "ray"] = "direct"
    """who reads the training rows: the worker itself, or a Ray Data pipeline"""
    on_bad_step: Literal["stop", "skip"] = "stop"
    """where a training step's loss or gradient is not finite, or its loss a spike: stop, or go on without its update"""
    max_failures: int = 3
    """how often the training workers are started again after one died"""
    max_preemptions: int = -1
    """the same after a machine was taken away, which is counted apart; -1: always"""
    tensorboard: bool = False
    """whether a training run writes event files for TensorBoard beside its logs (local roots only)"""
    cpus: int | None = None
    """CPUs that the embedded Ray may use; None: all"""

    def __post_init__(self) -> None:
        for name in ("workers", "min_workers", "slices", "min_slices", "microbatch_rows", "cpus"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
        for fewest, all_of in (("min_workers", "workers"), ("min_slices", "slices")):
            if (value := getattr(self, fewest)) is not None and value > getattr(self, all_of):
                raise UserError(
                    f"{fewest} is {value}, more than {all_of}, {getattr(self, all_of)}; give it at most that"
                )
        if self.mesh:
            _ = self.mesh_shape  # refused here, before anything runs
        for name in ("max_failures", "max_preemptions"):
            if getattr(self, name) < -1:
                raise UserError(f"{name} must be 0 or more, or -1 for always, got {getattr(self, name)}")

    @functools.cached_property
    def mesh_shape(self) -> "MeshShape | None":
        """The mesh, parsed; None where none is given."""
        if not self.mesh:
            return None
        from model.sharding import MeshShape  # imports torch

        return MeshShape.parse(self.mesh)
