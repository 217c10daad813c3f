"""Run by test_worker.py in a process of its own: fits under Ray Train with one, two and four workers.

On two, the model is whole. On four, it is whole, divided, and divided in each of two groups. On one, it also runs
on XLA.
"""

import dataclasses
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import ray

from tests.programs.ray_runs import job_named
from training.worker.driver import train_under_ray

WORLDS = (("one", 1, ""), ("two", 2, ""), ("four", 4, ""), ("divided", 4, "data=4"), ("groups", 4, "replica=2,data=2"))


def main(directory: Path) -> dict[str, Any]:
    """The workers of each run, and the summary of the run on XLA."""
    temporary = tempfile.mkdtemp(prefix="g2r-", dir="/tmp")  # Unix sockets below it: a short name
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, _temp_dir=temporary)
    outcome: dict[str, Any] = {
        name: train_under_ray(job_named(directory, name, workers=workers, mesh=mesh, steps=20)).workers
        for name, workers, mesh in WORLDS
    }
    outcome["xla"] = dataclasses.asdict(train_under_ray(job_named(directory, "xla", device="xla", steps=20)))
    ray.shutdown()
    shutil.rmtree(temporary, ignore_errors=True)
    return outcome


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
