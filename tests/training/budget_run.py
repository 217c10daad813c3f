"""Run by test_worker.py in a process of its own: with one failure allowed, a worker is killed, then the controller.

The controller's own count would be gone with it; the driver's alone would be one. Prints JSON.
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

from tests.training.ray_runs import job_named, only, ray_processes
from training.summary import StepReport
from training.worker.budgets import UsedUp
from training.worker.driver import fit


def main(directory: Path) -> dict[str, Any]:
    temporary = tempfile.mkdtemp(prefix="g2r-", dir="/tmp")  # Unix sockets below it: a short name
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=temporary)
    job = job_named(directory, "used_up", steps=100_000, checkpoint_every_steps=50, cpu_threads=1)
    kills: list[int] = []
    at: list[int] = []

    def kill(report: StepReport) -> None:
        workers = ray_processes("RayTrainWorker")
        if not kills and report.step >= 60:
            kills.append(only(workers))
        elif len(kills) == 1 and workers and kills[0] not in workers:  # Ray has started another one
            kills.append(only(ray_processes("TrainController")))
        else:
            return
        at.append(report.step)
        os.kill(kills[-1], signal.SIGKILL)

    message = ""
    try:
        fit(job, max_failures=1, on_progress=kill)
    except UsedUp as error:
        message = str(error)
    ray.shutdown()
    shutil.rmtree(temporary, ignore_errors=True)
    return {"kills": len(kills), "at": at, "message": message}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
