"""A run of one worker in the warm process: the steps, bytes and limits of one under Ray Train."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from infra.ray_session import RaySession
from infra.warm_process import WarmProcess
from tests.programs.examples import example_job, job_named
from training.backends.torch_backend import TorchBackend
from training.checkpoints.records import read_rows
from training.errors import UserError
from training.faults import Drained
from training.feed import direct_feed
from training.log.summary import StepMetrics
from training.loop import run_training
from training.worker.budgets import UsedUp

pytestmark = pytest.mark.slow


@pytest.fixture
def process(ray_session: RaySession) -> WarmProcess:
    warm = ray_session.warm_process()
    assert warm is not None
    return warm


def table(directory: Path, name: str, kind: str) -> Any:
    return read_rows(str(directory / name / "checkpoints"), kind)


def test_runs_share_a_process_and_each_counts_its_own_compiles(process: WarmProcess, tmp_path: Path) -> None:
    from training.worker.driver import train_under_ray

    straight = job_named(tmp_path, "straight", threads=1)
    run_training(straight, TorchBackend("cpu"), direct_feed(straight))
    pids = []
    for name in ("first", "second"):
        summary = train_under_ray(job_named(tmp_path, name, device="xla", threads=1), warm=process)
        assert (summary.device, summary.workers, summary.compiles) == ("xla", 1, 2 if name == "first" else 0)
        pids.append(process.run(os.getpid))
    summary = train_under_ray(job_named(tmp_path, "cpu", device="cpu", threads=1), warm=process)
    assert {*pids, process.run(os.getpid)} == {pids[0]}
    assert table(tmp_path, "first", "metrics").equals(table(tmp_path, "second", "metrics"))
    for kind in ("metrics", "lineage"):
        assert table(tmp_path, "cpu", kind).equals(table(tmp_path, "straight", kind))


def test_a_killed_process_is_replaced_and_changes_no_bit(process: WarmProcess, tmp_path: Path) -> None:
    from training.worker.driver import train_under_ray

    sizes = {"steps": 300, "checkpoint_every_steps": 50, "threads": 1, "device": "cpu"}
    straight = job_named(tmp_path, "straight", **sizes)
    run_training(straight, TorchBackend("cpu"), direct_feed(straight))
    pid, kills = process.run(os.getpid), []

    def kill_once(metrics: StepMetrics) -> None:
        if metrics.step >= 60 and not kills:  # behind a checkpoint, which a thread writes
            kills.append(metrics.step)
            os.kill(pid, signal.SIGKILL)

    summary = train_under_ray(
        job_named(tmp_path, "killed", **sizes), max_failures=1, on_progress=kill_once, warm=process
    )
    assert len(kills) == 1
    assert summary.first_step >= 50
    for kind in ("metrics", "lineage"):
        assert table(tmp_path, "killed", kind).equals(table(tmp_path, "straight", kind))


def test_a_process_that_dies_more_often_than_allowed_ends_the_run(process: WarmProcess, tmp_path: Path) -> None:
    from training.worker.driver import train_under_ray

    pid = process.run(os.getpid)
    job = job_named(tmp_path, "killed", steps=100_000, checkpoint_every_steps=50_000, device="cpu")
    with pytest.raises(UsedUp, match="failures of this run, over all of its controllers: 1, and --max-failures is 0"):
        train_under_ray(job, on_progress=lambda report: os.kill(pid, signal.SIGKILL), warm=process)


def test_sigterm_ends_the_run_behind_a_checkpoint(process: WarmProcess, tmp_path: Path) -> None:
    from training.worker.driver import train_under_ray

    asked: list[int] = []

    def ask_once(metrics: StepMetrics) -> None:
        if not asked:
            asked.append(metrics.step)
            os.kill(os.getpid(), signal.SIGTERM)

    handler = signal.getsignal(signal.SIGTERM)
    job = job_named(tmp_path, "stopped", steps=100_000, checkpoint_every_steps=50_000, device="cpu")
    with pytest.raises(Drained, match="its checkpoint is committed"):
        train_under_ray(job, on_progress=ask_once, warm=process)
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_mistake_and_an_error_of_the_worker_come_out_as_they_are(process: WarmProcess, tmp_path: Path) -> None:
    from training.worker.driver import train_under_ray

    job = job_named(tmp_path, "run", device="cpu")
    train_under_ray(job, warm=process)
    with pytest.raises(UserError, match="order_seed"):
        train_under_ray(example_job(tmp_path / "run" / "checkpoints", order_seed=5, device="cpu"), warm=process)
    gone = job_named(tmp_path, "gone", device="cpu")
    for path in (tmp_path / "gone").glob("*.parquet"):
        path.unlink()
    with pytest.raises(FileNotFoundError) as raised:
        train_under_ray(gone, warm=process)
    assert "a training worker failed" in raised.value.__notes__[0]
