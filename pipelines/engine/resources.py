"""The device, workers and slices that a stage runs on: recorded with the run, never hashed."""

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pipelines.engine.errors import UserError
from training.backends.names import Device

if TYPE_CHECKING:
    from model.sharding import MeshShape


@dataclass(frozen=True, kw_only=True)
class Resources:
    """The device, workers and slices that a stage runs on: recorded, never hashed."""

    device: Device = "auto"
    """device that computes; auto is xla on a TPU, cuda on a GPU, and cpu on other machines, where it is faster than
    xla"""
    workers: int = 1
    """number of Ray Train workers"""
    min_workers: int | None = None
    """smallest number of workers that a training run continues with if nodes are missing; it grows again when they
    return; None: all workers"""
    topology: str = ""
    """TPU slice that a training run takes, such as v5e:4x4, with one worker on each of its hosts; empty: one host"""
    slices: int = 1
    """number of slices of that topology, used as data replicas"""
    min_slices: int | None = None
    """smallest number of slices that a training run continues with if nodes are missing; None: all slices"""
    mesh: str = ""
    """division of the model over the chips on xla, such as data=2,model=2; empty: one chip, with a topology all its
    chips along data. When training on cpu and cuda, the workers are the chips: data=N divides the model over N workers
    (default on cuda), and replica=N keeps a copy on each of N workers (default on cpu)"""
    microbatch_rows: int | None = None
    """number of rows of the global batch that one worker computes at a time; None: all rows of the worker"""
    remat: Literal["none", "projections", "full"] | None = None
    """part of a layer that the backward pass computes again on xla; None: full on a TPU, none on other devices"""
    feed: Literal["direct", "ray"] = "direct"
    """reader of the training rows: the worker itself (direct) or a Ray Data pipeline (ray)"""
    on_bad_step: Literal["stop", "skip"] = "stop"
    """reaction to a training step whose loss or gradient is not finite, or whose loss is a spike: stop the run, or
    skip the step's update"""
    max_failures: int = 3
    """number of times that the training workers are started again after one of them died; -1: no limit"""
    max_preemptions: int = -1
    """number of times that the training workers are started again after a machine was taken away, counted apart from
    max_failures; -1: no limit"""
    tensorboard: bool = False
    """whether a training run writes event files for TensorBoard beside its logs (local roots only)"""
    cpus: int | None = None
    """number of CPUs that the embedded Ray may use; None: all CPUs"""

    def __post_init__(self) -> None:
        for name in ("workers", "min_workers", "slices", "min_slices", "microbatch_rows", "cpus"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"got {name}={value}; it must be at least 1")
        for fewest, all_of in (("min_workers", "workers"), ("min_slices", "slices")):
            if (value := getattr(self, fewest)) is not None and value > (most := getattr(self, all_of)):
                raise UserError(
                    f"got {fewest}={value}, more than {all_of}={most}; give {fewest} from 1 to {most}, or more {all_of}"
                )
        if self.mesh:
            _ = self.mesh_shape  # refused here, before anything runs
        for name in ("max_failures", "max_preemptions"):
            if getattr(self, name) < -1:
                raise UserError(f"got {name}={getattr(self, name)}; it must be 0 or more, or -1 for no limit")

    @functools.cached_property
    def mesh_shape(self) -> "MeshShape | None":
        """The parsed mesh; None if no mesh is given."""
        if not self.mesh:
            return None
        from model.sharding import MeshShape  # imports torch

        return MeshShape.parse(self.mesh)
