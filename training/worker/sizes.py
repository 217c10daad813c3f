"""How many workers an elastic run may have, and its job at each number: arithmetic, without Ray."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from training.errors import UserError

if TYPE_CHECKING:
    from training.job import TrainJob


def allowed_workers(job: TrainJob, fewest: int, hosts: int = 1) -> tuple[int, ...]:
    """The numbers of workers from `fewest` to the job's own that can take its steps; whole slices of `hosts` workers.

    Raises UserError, naming those that can, where `fewest` itself cannot.
    """
    can = [workers for workers in range(hosts, job.workers + 1, hosts) if _can(job, workers)]
    if fewest not in can:
        of = f" of {hosts} workers" if hosts > 1 else ""
        wanted, allowed = (f"{fewest // hosts} slices{of}", "slices") if hosts > 1 else (f"{fewest} workers", "workers")
        raise UserError(
            f"a run of {job.workers} workers may not go down to {wanted}: global_batch {job.config.global_batch}"
            f"{f' in microbatches of {job.microbatch_rows}' if job.microbatch_rows else ''}"
            f"{f' on mesh {job.mesh}' if job.mesh else ''} is shared evenly by "
            f"{', '.join(str(workers // hosts) for workers in can)} {allowed}"
        )
    return tuple(workers for workers in can if workers >= fewest)


def job_at(job: TrainJob, workers: int) -> TrainJob:
    """The job on so many workers: its mesh's copies of the parameters follow them, all else stays."""
    if workers == job.workers:
        return job
    return dataclasses.replace(job, workers=workers, mesh=_mesh_at(job, workers) if job.mesh else "")


def _mesh_at(job: TrainJob, workers: int) -> str:
    from model.sharding import MeshShape  # imports torch

    mesh = MeshShape.parse(job.mesh)
    return dataclasses.replace(mesh, replica=mesh.replica * workers // job.workers).text


def _can(job: TrainJob, workers: int) -> bool:
    parts = workers
    if job.mesh:
        from model.sharding import MeshShape, row_groups

        if MeshShape.parse(job.mesh).replica * workers % job.workers:
            return False
        parts = row_groups(workers, MeshShape.parse(_mesh_at(job, workers)))
    rows, over = divmod(job.config.global_batch, parts)
    return not over and rows % (job.microbatch_rows or rows) == 0
