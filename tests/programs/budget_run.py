"""Run by test_worker.py in a process of its own: with one failure allowed, a worker is killed, then the controller.

A count in the controller would be lost with it, and the driver alone would count one failure. In a second run, no
failure is allowed and one of two workers is killed. Prints JSON.
"""

import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import ray

from tests.programs.examples import job_named
from tests.programs.ray_runs import only, ray_processes
from training.log.summary import StepMetrics
from training.worker.budgets import UsedUp
from training.worker.driver import train_under_ray


def main(directory: Path) -> dict[str, Any]:
    temporary = tempfile.mkdtemp(prefix="g2r-", dir="/tmp")  # Unix sockets below it: a short name
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=temporary)
    outcomes = {"controller": used_up(directory, "controller", 1, 1), "worker": used_up(directory, "worker", 2, 0)}
    ray.shutdown()
    shutil.rmtree(temporary, ignore_errors=True)
    return outcomes


def used_up(directory: Path, name: str, number: int, max_failures: int) -> dict[str, Any]:
    """The last message of a run of `number` workers. First a worker is killed, then the next controller."""
    job = job_named(directory, name, steps=100_000, checkpoint_every_steps=50, threads=1, workers=number)
    kills: list[int] = []

    def kill(metrics: StepMetrics) -> None:
        workers = ray_processes("RayTrainWorker")
        if not kills and metrics.step >= 60:
            kills.append(max(workers))
        elif len(kills) == 1 and workers and kills[0] not in workers and max_failures:
            kills.append(only(ray_processes("TrainController")))
        else:
            return
        os.kill(kills[-1], signal.SIGKILL)

    message = ""
    try:
        train_under_ray(job, max_failures=max_failures, on_progress=kill)
    except UsedUp as error:
        message = str(error)
    return {"kills": len(kills), "message": message}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
