"""Run by test_worker.py in a process of its own: one worker and four under Ray Train, with whole and divided models."""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import ray

from tests.programs.ray_runs import job_named
from training.worker.driver import train_under_ray

WORLDS = (("one", 1, ""), ("four", 4, ""), ("divided", 4, "data=4"), ("groups", 4, "replica=2,data=2"))


def main(directory: Path) -> dict[str, int]:
    """The workers that each run had."""
    temporary = tempfile.mkdtemp(prefix="g2r-", dir="/tmp")  # Unix sockets below it: a short name
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, _temp_dir=temporary)
    workers_by_run = {
        name: train_under_ray(job_named(directory, name, workers=workers, mesh=mesh, steps=20)).workers
        for name, workers, mesh in WORLDS
    }
    ray.shutdown()
    shutil.rmtree(temporary, ignore_errors=True)
    return workers_by_run


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
