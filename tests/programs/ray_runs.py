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
from ray.train.v2.api.exceptions import PreemptionError, WorkerGroupError
from ray.train.v2.api.preemption import PreemptionInfo

from tests.programs.examples import example_job, job_named
from training.backends.torch_backend import TorchBackend
from training.faults import Drained
from training.feed import direct_feed
from training.loop import StepMetrics, run_training
from training.worker.budgets import CountedFailures, Counts, Limits
from training.worker.driver import train_under_ray


def main(directory: Path) -> dict[str, Any]:
    temporary = tempfile.mkdtemp(prefix="g2r-", dir="/tmp")  # Unix sockets below it: a short name
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=temporary)
    results = {
        "direct": straight(directory, "direct"),
        "ray": run(directory, "ray", feed="ray", threads=1),
        "divided": run(directory, "divided", workers=2, mesh="data=2"),
        "killed": killed(directory),
        "controller": controller_killed(directory),
        "counted": counted(),
        "stopped": stopped(directory),
        "refused": refused(directory),
    }
    ray.shutdown()
    shutil.rmtree(temporary, ignore_errors=True)
    return results


def run(directory: Path, name: str, **overrides: Any) -> dict[str, Any]:
    began = time.monotonic()
    summary = train_under_ray(job_named(directory, name, **overrides))
    return {**dataclasses.asdict(summary), "seconds": time.monotonic() - began}


def straight(directory: Path, name: str, **sizes: Any) -> dict[str, Any]:
    """The same run without Ray."""
    job = job_named(directory, name, threads=1, **sizes)
    return dataclasses.asdict(run_training(job, TorchBackend("cpu"), direct_feed(job)))


def killed(directory: Path, **overrides: Any) -> dict[str, Any]:
    """Kills the worker with SIGKILL once. Ray starts it again, and it continues from a checkpoint."""
    logs = str(directory / "killed" / "logs")
    job = job_named(directory, "killed", steps=600, checkpoint_every_steps=20, logs_uri=logs, **overrides)
    kills: list[int] = []

    def kill_once(metrics: StepMetrics) -> None:
        if metrics.step >= 50 and not kills:  # behind a checkpoint, which a thread writes
            kills.append(only(ray_processes("RayTrainWorker")))
            os.kill(kills[0], signal.SIGKILL)

    summary = train_under_ray(job, max_failures=1, on_progress=kill_once)
    return {**dataclasses.asdict(summary), "kills": len(kills)}


def stopped(directory: Path) -> dict[str, Any]:
    """Sends SIGTERM to the driver, as when a job is stopped."""
    job = job_named(directory, "stopped", steps=100_000, checkpoint_every_steps=50_000)
    handler = signal.getsignal(signal.SIGTERM)
    asked: list[int] = []

    def ask_once(metrics: StepMetrics) -> None:
        if not asked:
            asked.append(metrics.step)
            os.kill(os.getpid(), signal.SIGTERM)

    message = ""
    try:
        train_under_ray(job, on_progress=ask_once)
    except Drained as drained:
        message = str(drained)
    return {"asked": asked, "message": message, "handler_back": signal.getsignal(signal.SIGTERM) is handler}


def refused(directory: Path) -> str:
    """The message of an error in the worker: the checkpoints of the run have another config."""
    job = example_job(directory / "direct" / "checkpoints", order_seed=5)
    try:
        train_under_ray(job)
    except ValueError as error:
        return str(error)
    return ""


def controller_killed(directory: Path) -> dict[str, Any]:
    """Kills Ray Train's controller with SIGKILL once."""
    sizes = {"steps": 600, "checkpoint_every_steps": 100}
    straight(directory, "straight", **sizes)
    killed_at: list[int] = []
    workers: list[int] = []
    most = 0

    def kill_once(metrics: StepMetrics) -> None:
        nonlocal most
        running = ray_processes("RayTrainWorker")
        workers.extend(set(running) - set(workers))
        most = max(most, len(running))
        if metrics.step >= 110 and not killed_at:  # behind a checkpoint, which a thread writes
            killed_at.append(metrics.step)
            os.kill(only(ray_processes("TrainController")), signal.SIGKILL)

    summary = train_under_ray(
        job_named(directory, "controller", threads=1, **sizes), max_failures=1, on_progress=kill_once
    )
    groups = [group["state"] for group in ray.util.placement_group_table().values()]
    return {
        "first_step": summary.first_step,
        "killed_at": killed_at,
        "workers": len(workers),
        "most_at_once": most,
        "groups_left": [state for state in groups if state != "REMOVED"],
    }


def counted() -> list[str]:
    """The decisions of the policies of three controllers in turn, on one failure and one preemption each."""
    failure = WorkerGroupError("a worker died", {0: RuntimeError("killed")})
    preemption = PreemptionError(PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={"node": [0]}))
    limits, key = Limits(failures=2, preemptions=1), b"training-counts/a-test"
    config = ray.train.FailureConfig(max_failures=2, max_preemption_failures=1)
    decisions = []
    for _ in range(3):
        policy = CountedFailures(config, key)
        decisions += [policy.make_decision(error).value for error in (failure, preemption)]
        decisions.append(Counts.read(key).used_up(limits))
    return decisions


def ray_processes(title: str) -> list[int]:
    """The pids of Ray's processes with a title, among the descendants of this process."""
    parents: dict[int, int] = {}
    pids = []
    for entry in Path("/proc").iterdir():
        try:
            pid = int(entry.name)
            parents[pid] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if (entry / "cmdline").read_bytes().startswith(f"ray::{title}".encode()):
                pids.append(pid)
        except (ValueError, OSError):
            continue

    def ours(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and ours(parents[pid]))

    return list(filter(ours, pids))


def only(pids: list[int]) -> int:
    (pid,) = pids
    return pid


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
