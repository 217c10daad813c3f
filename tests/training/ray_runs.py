"""Run by test_worker.py in a process of its own (Ray's imports warn): fits on one small Ray, results as JSON."""

import dataclasses
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray

from tests.training.examples import example_job, write_sequences
from training.config import TrainJob
from training.loop import StepReport
from training.worker.driver import fit


def main(directory: Path) -> dict[str, Any]:
    temporary = tempfile.mkdtemp(prefix="g2r-", dir="/tmp")  # Unix sockets below it: a short name
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=temporary)
    results = {
        "direct": run(directory, "direct"),
        "ray": run(directory, "ray", feed="ray"),
        "two": run(directory, "two", workers=2),
        "divided": run(directory, "divided", workers=2, mesh="data=2"),
        "xla": run(directory, "xla", device="xla"),
        "killed": killed(directory),
        "refused": refused(directory),
    }
    ray.shutdown()
    shutil.rmtree(temporary, ignore_errors=True)
    return results


def job_named(directory: Path, name: str, **overrides: Any) -> TrainJob:
    config = {name: overrides.pop(name) for name in ("steps", "checkpoint_every_steps") if name in overrides}
    (directory / name).mkdir()
    job = example_job(directory / name / "checkpoints", config=config, **overrides)
    return write_sequences(directory / name, job)


def run(directory: Path, name: str, **overrides: Any) -> dict[str, Any]:
    began = time.monotonic()
    summary = fit(job_named(directory, name, **overrides))
    return {**dataclasses.asdict(summary), "seconds": time.monotonic() - began}


def killed(directory: Path) -> dict[str, Any]:
    """Kills the worker with SIGKILL once; Ray starts it again and it continues from a checkpoint."""
    job = job_named(directory, "killed", steps=600, checkpoint_every_steps=20)
    kills: list[int] = []

    def kill_once(report: StepReport) -> None:
        if report.step >= 50 and not kills:  # behind a checkpoint, which a thread writes
            kills.append(train_worker())
            os.kill(kills[0], signal.SIGKILL)

    summary = fit(job, max_failures=1, on_progress=kill_once)
    return {**dataclasses.asdict(summary), "kills": len(kills)}


def refused(directory: Path) -> str:
    """The message of an error that the worker meets: this run's checkpoints are of another config."""
    job = example_job(directory / "direct" / "checkpoints", order_seed=5)
    try:
        fit(job)
    except ValueError as error:
        return str(error)
    return ""


def train_worker() -> int:
    """The pid of Ray Train's worker among the descendants of this process."""
    parents: dict[int, int] = {}
    workers = []
    for entry in Path("/proc").iterdir():
        try:
            pid = int(entry.name)
            parents[pid] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if (entry / "cmdline").read_bytes().startswith(b"ray::RayTrainWorker"):
                workers.append(pid)
        except (ValueError, OSError):
            continue

    def ours(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and ours(parents[pid]))

    (worker,) = filter(ours, workers)
    return worker


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
