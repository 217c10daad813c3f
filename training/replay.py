"""A step computed again, from the checkpoint before it and its rows, and compared with what the run recorded.

The same set-up gives the same bits. So a difference means silent corruption: one of the two computations was wrong, or
memory or storage changed a value in between. The replay writes to a temporary directory only.
"""

import contextlib
import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow.compute as pc

from training.backends.base import Backend
from training.backends.devices import resolve_device
from training.backends.local_workers import run_workers
from training.backends.make import abilities_of, make_backend
from training.checkpoints.records import checkpoint_uri, latest_checkpoint, list_commits, read_commit, read_rows
from training.checkpoints.setups import setups_between
from training.drain import DrainWhen
from training.errors import UserError
from training.faults import Drained
from training.feed import Feed, direct_feed
from training.job import TrainJob
from training.log.summary import StepMetrics
from training.loop import run_training
from training.setup import Setup

COMPARED = ("loss_sum", "targets", "grad_norm", "gradients_checksum", "weights_checksum")


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """What a replay found."""

    first_step: int
    """Steps that are done in the checkpoint that the replay started from."""
    steps: int
    """Number of steps that were computed again and compared."""
    differences: tuple[str, ...]
    """Differences of the first step that differs, one line for each; empty if all steps are the same, bit for bit."""


def replay(job: TrainJob, step: int) -> Replayed:
    """Computes `step` (from 1) of the job's run again, and the steps between it and the checkpoint before it.

    Each step is computed in the set-up in which the run took it, so a run that was resized between two checkpoints is
    followed. Raises UserError if the run has no record of that step, or if this machine cannot provide that set-up.
    """
    recorded = read_rows(job.checkpoints_uri, "metrics")
    until_step = None if recorded is None else recorded.filter(pc.field("step") <= step)
    if until_step is None or not until_step.num_rows or until_step["step"][-1].as_py() != step:
        last = 0 if recorded is None or not recorded.num_rows else recorded["step"][-1].as_py()
        raise UserError(
            f"got step {step}, but {job.checkpoints_uri} records steps 1 to {last}; name one of these steps"
        )
    first, carried = _checkpoint_before(job, step)
    all_metrics: list[StepMetrics] = []
    with tempfile.TemporaryDirectory() as directory:
        again = dataclasses.replace(
            job, checkpoints_uri=directory, carried_uri=carried, changes=None, logs_uri=None, tensorboard=False
        )
        for stop, setup in setups_between(job.checkpoints_uri, first, step):
            all_metrics += _in_setup(again, Setup.from_record(setup), stop)
        saved = _saved_differences(job.checkpoints_uri, directory, step)
    rows = {row["step"]: row for row in until_step.to_pylist()}
    for metrics in all_metrics:
        lines = [
            f"step {metrics.step}: {name} was {rows[metrics.step][name]!r}, and is now {getattr(metrics, name)!r}"
            for name in COMPARED
            if rows[metrics.step][name] != getattr(metrics, name)
        ]
        if lines:
            return Replayed(first_step=first, steps=len(all_metrics), differences=tuple(lines))
    return Replayed(first_step=first, steps=len(all_metrics), differences=tuple(saved))


def _checkpoint_before(job: TrainJob, step: int) -> tuple[int, str | None]:
    """(steps done, directory) of the newest checkpoint before the step."""
    before = [(commit["step"], uri) for uri, commit in list_commits(job.checkpoints_uri) if commit["step"] < step]
    if before:
        return max(before)
    return _steps_of(job.carried_uri), job.carried_uri


def _steps_of(uri: str | None) -> int:
    commit = None if uri is None else read_commit(uri)
    return 0 if commit is None else int(commit["step"])


def _in_setup(again: TrainJob, setup: Setup, stop: int) -> Sequence[StepMetrics]:
    """Computes the steps of `again` up to `stop`, where it commits a checkpoint; the next set-up goes on there."""
    job = dataclasses.replace(again, setup=setup)
    if setup.workers == 1:
        return computed(make_backend(setup), job, stop, direct_feed(job))
    abilities_of(resolve_device(setup.device)).check_workers(setup.workers)
    all_metrics: Sequence[StepMetrics] = run_workers(setup, _in_worker, job, stop)
    return all_metrics


def _saved_differences(root: str, again: str, step: int) -> list[str]:
    """Files of weights and moments whose bytes differ now, if the run saved a checkpoint of that step.

    A changed moment may need several steps to change a weight: here it shows at once.
    """
    commits = [read_commit(checkpoint_uri(uri, step)) for uri in (root, again)]
    if commits[0] is None or commits[1] is None:
        return []
    files = [
        {name: file["sha256"] for name, file in commit["files"].items() if name.endswith(".safetensors")}
        for commit in commits
        if commit is not None
    ]
    return [
        f"step {step}: {name} of its checkpoint differs from the file computed again"
        for name in sorted(files[0].keys() | files[1].keys())
        if files[0].get(name) != files[1].get(name)
    ]


def computed(backend: Backend, job: TrainJob, step: int, feed: Feed) -> Sequence[StepMetrics]:
    """Computes the job's steps from its newest checkpoint up to `step`, and stops there behind a checkpoint."""
    all_metrics: list[StepMetrics] = []
    done = 0

    def asked() -> bool:
        nonlocal done
        done += 1
        return first + done >= step

    first = _steps_of(latest_checkpoint(job.checkpoints_uri) or job.carried_uri)
    with contextlib.suppress(Drained):
        run_training(job, backend, feed, all_metrics.append, drain=DrainWhen(asked))
    return all_metrics


def _in_worker(backend: Backend, job: TrainJob, step: int) -> Sequence[StepMetrics]:
    return computed(backend, job, step, direct_feed(job, backend.row_share.part, backend.row_share.parts))
