"""The rows of each step on 1, 2, 4 and 4 -> 2 -> 4 workers, from the lineage of the runs. Without Ray, over gloo."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.order import MixturePhase
from tests.programs.examples import example_job, moved, write_sequences
from tests.training.test_feed import DRAWS, SPEC, write_logits
from training.backends.local_workers import run_workers
from training.backends.torch_backend import TorchBackend
from training.checkpoints.records import read_rows
from training.drain import DrainWhen
from training.faults import Drained
from training.feed import direct_feed
from training.job import TrainJob
from training.loop import run_training
from training.setup import Setup

STEPS = 16  # of 4 rows: 64, from 48 that there are
PHASES = (
    MixturePhase(start_step=0, weights=(("prose", 0.7), ("code", 0.3))),
    MixturePhase(start_step=6, weights=(("prose", 0.2), ("code", 0.8))),
)
RUNS: dict[str, tuple[tuple[int, int], ...]] = {
    "one": ((1, STEPS),),
    "two": ((2, STEPS),),
    "four": ((4, STEPS),),
    "resized": ((4, 5), (2, 9), (4, STEPS)),
}
"""name -> (workers, step that they stop after) one after another; 5 and 9 lie between checkpoints, in an epoch"""


def world_job(directory: Path) -> TrainJob:
    """Distillation over two sources in two phases, from files."""
    job = example_job(directory / "checkpoints", config={"steps": STEPS, "checkpoint_every_steps": 8}, phases=PHASES)
    job = write_sequences(directory, job)
    config = dataclasses.replace(job.config, objective="distill")
    return dataclasses.replace(
        job, config=config, logits=write_logits(directory, job, peak=3.0), codec=SPEC, max_unique=DRAWS
    )


def run_all(_: Any, directory: str, job: TrainJob, runs: dict[str, tuple[tuple[int, int], ...]]) -> None:
    """The work of each of the largest number of workers: takes part in every stretch that includes this worker."""
    rank = torch.distributed.get_rank()
    torch.distributed.destroy_process_group()
    torch.set_num_threads(1)
    stretches = [(name, *stretch) for name, all_of in runs.items() for stretch in all_of]
    for number, (name, workers, stop) in enumerate(stretches):
        if rank < workers:
            meet(directory, f"{number}", rank, workers)
            train_until(
                moved(dataclasses.replace(job, checkpoints_uri=f"{directory}/{name}"), workers=workers), rank, stop
            )
            torch.distributed.destroy_process_group()
    meet(directory, "end", rank, max(workers for _, workers, _ in stretches))


def meet(directory: str, name: str, rank: int, workers: int) -> None:
    torch.distributed.init_process_group("gloo", f"file://{directory}/meet-{name}", rank=rank, world_size=workers)
    torch.distributed.barrier()


def train_until(job: TrainJob, rank: int, stop: int) -> None:
    reports: list[int] = []
    backend = TorchBackend("cpu", rank, job.setup.workers)
    first = 0 if (rows := read_rows(job.checkpoints_uri, "metrics")) is None else rows["step"][-1].as_py()
    torch.distributed.barrier()  # all have read it

    def asked() -> bool:
        reports.append(1)
        return first + len(reports) >= stop

    try:
        run_training(job, backend, direct_feed(job, rank, job.setup.workers), drain=DrainWhen(asked))
    except Drained:
        assert stop < STEPS


def rows_by_world(directory: Path, names: tuple[str, ...] = tuple(RUNS)) -> dict[str, Any]:
    """Whether all runs recorded the same rows in the same steps, and the largest difference of their losses."""
    job = world_job(directory)
    runs = {name: RUNS[name] for name in names}
    most = max(workers for stretches in runs.values() for workers, _ in stretches)
    run_workers(Setup(workers=most, device="cpu"), run_all, str(directory), job, runs)
    tables = {name: {kind: read_rows(f"{directory}/{name}", kind) for kind in ("lineage", "metrics")} for name in runs}
    first = tables[names[0]]
    losses = {
        name: of["metrics"]["loss_sum"].to_numpy() / of["metrics"]["targets"].to_numpy() for name, of in tables.items()
    }
    return {
        "runs": ", ".join(names),
        "steps": first["lineage"]["step"][-1].as_py(),
        "rows": first["lineage"].num_rows,
        "same_rows": all(of["lineage"].equals(first["lineage"]) for of in tables.values()),
        "largest_loss_difference": max(float(np.abs(curve / losses[names[0]] - 1).max()) for curve in losses.values()),
    }
