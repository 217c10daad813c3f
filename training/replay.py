"""A step computed again, from the checkpoint before it and its rows, and compared with what the run recorded.

The same set-up gives the same bits, so a difference means that one of the two was computed wrongly, or that memory or
storage changed something between: silent corruption. The replay writes to a temporary directory only.
"""

import contextlib
import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from training.backend import Backend, make_backend, resolve_device
from training.config import TrainJob
from training.faults import Drained
from training.feed import direct_feed
from training.local_workers import run_workers
from training.loop import Feed, run_training
from training.records import checkpoint_uri, list_checkpoints, read_commit, read_rows
from training.summary import StepReport

COMPARED = ("loss_sum", "targets", "grad_norm", "gradients_checksum", "weights_checksum")


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """What a replay found."""

    first_step: int
    """steps that its checkpoint had done"""
    steps: int
    """steps that were computed again and compared"""
    differences: tuple[str, ...]
    """of the first step that differs, a line each; empty where all are the same, bit for bit"""


def replay(job: TrainJob, step: int) -> Replayed:
    """Computes `step` (from 1) of the job's run again, and the steps between it and the checkpoint before it.

    Raises ValueError where the run has no record of that step.
    """
    recorded = read_rows(job.checkpoints_uri, "metrics")
    mine = None if recorded is None else recorded.filter(pc.field("step") <= step)
    if mine is None or not mine.num_rows or mine["step"][-1].as_py() != step:
        last = 0 if recorded is None or not recorded.num_rows else recorded["step"][-1].as_py()
        raise ValueError(f"{job.checkpoints_uri} records steps 1 to {last} and no step {step}; name one of those")
    before = [(found["step"], uri) for uri in list_checkpoints(job.checkpoints_uri) if (found := read_commit(uri))]
    first, carried = max((one for one in before if one[0] < step), default=(0, job.carried_uri))
    with tempfile.TemporaryDirectory() as directory:
        again = dataclasses.replace(
            job, checkpoints_uri=directory, carried_uri=carried, lease_uri=None, logs_uri=None, tensorboard=False
        )
        if job.workers == 1:
            reports = computed(
                make_backend(job.device, remat=job.remat, mesh=job.mesh), again, step, direct_feed(again)
            )
        else:
            device = resolve_device(job.device)
            how: dict[str, Any] = {} if device == "xla" else {"device": device, "mesh": job.mesh}
            reports = run_workers(job.workers, _in_worker, again, step, **how)
        saved = _saved_differences(job.checkpoints_uri, directory, step)
    rows = {row["step"]: row for row in mine.to_pylist()}
    for report in reports:
        lines = [
            f"step {report.step}: {name} was {rows[report.step][name]!r}, now it is {getattr(report, name)!r}"
            for name in COMPARED
            if rows[report.step][name] != getattr(report, name)
        ]
        if lines:
            return Replayed(first_step=first, steps=len(reports), differences=tuple(lines))
    return Replayed(first_step=first, steps=len(reports), differences=tuple(saved))


def _saved_differences(root: str, again: str, step: int) -> list[str]:
    """Files of weights and moments, where the run saved that step too, that are other bytes now.

    A changed moment may take steps to reach a weight: here it shows at once.
    """
    commits = [read_commit(checkpoint_uri(one, step)) for one in (root, again)]
    if commits[0] is None or commits[1] is None:
        return []
    files = [
        {name: file["sha256"] for name, file in commit["files"].items() if name.endswith(".safetensors")}
        for commit in commits
        if commit is not None
    ]
    return [
        f"step {step}: {name} of its checkpoint is not what is computed again"
        for name in sorted(files[0].keys() | files[1].keys())
        if files[0].get(name) != files[1].get(name)
    ]


def computed(backend: Backend, job: TrainJob, step: int, feed: Feed) -> Sequence[StepReport]:
    """The job's steps from its checkpoint up to `step`, which then stops."""
    reports: list[StepReport] = []
    done = 0

    def asked() -> bool:
        nonlocal done
        done += 1
        return first + done >= step

    first = 0 if job.carried_uri is None else int((read_commit(job.carried_uri) or {"step": 0})["step"])
    with contextlib.suppress(Drained):
        run_training(job, backend, feed, reports.append, drain=asked)
    return reports


def _in_worker(backend: Backend, job: TrainJob, step: int) -> Sequence[StepReport]:
    return computed(backend, job, step, direct_feed(job, backend.row_share.part, backend.row_share.parts))
