"""The numbers of workers that an elastic run may have, and its job at each number: arithmetic, without Ray."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from training.errors import UserError

if TYPE_CHECKING:
    from training.job import TrainJob
    from training.setup import Setup


def allowed_workers(job: TrainJob, fewest: int, hosts: int = 1) -> tuple[int, ...]:
    """The numbers of workers from `fewest` to the job's own that can take its steps; whole slices of `hosts` workers.

    Raises UserError, naming the possible numbers, if `fewest` is not possible.
    """
    can = [workers for workers in range(hosts, job.setup.workers + 1, hosts) if _can(job, workers)]
    if fewest not in can:
        slice_size = f" of {hosts} workers" if hosts > 1 else ""
        wanted, allowed = (
            (f"{fewest // hosts} slices{slice_size}", "slices") if hosts > 1 else (f"{fewest} workers", "workers")
        )
        raise UserError(
            f"got a run of {job.setup.workers} workers that may go down to {wanted}; global_batch "
            f"{job.config.global_batch}{f' in microbatches of {width}' if (width := job.setup.microbatch_rows) else ''}"
            f"{f' on mesh {mesh.text}' if (mesh := job.setup.mesh) else ''} can be shared evenly by "
            f"{', '.join(str(workers // hosts) for workers in can)} {allowed}: give one of these numbers"
        )
    return tuple(workers for workers in can if workers >= fewest)


def job_at(job: TrainJob, workers: int) -> TrainJob:
    """The job with this number of workers: the replicas of its mesh follow the number, and all else stays."""
    return job if workers == job.setup.workers else dataclasses.replace(job, setup=_setup_at(job.setup, workers))


def _setup_at(setup: Setup, workers: int) -> Setup:
    mesh = setup.mesh
    if mesh is not None:
        mesh = dataclasses.replace(mesh, replica=mesh.replica * workers // setup.workers)
    return dataclasses.replace(setup, workers=workers, mesh=mesh)


def _can(job: TrainJob, workers: int) -> bool:
    setup = job.setup
    if setup.mesh is not None and setup.mesh.replica * workers % setup.workers:
        return False
    rows, over = divmod(job.config.global_batch, _setup_at(setup, workers).row_parts)
    return not over and rows % (setup.microbatch_rows or rows) == 0
