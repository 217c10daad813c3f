"""Run by test_elastic.py in its own process: a run on one node grows when a second joins, and shrinks when it leaves.

Prints JSON: the first step and number of workers of each attempt, and the steps at which a checkpoint was requested.
"""

import json
import os
import re
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from tests.programs.examples import example_job, write_sequences
from tests.programs.tpu_slices import SOON_NOTICED
from training.backends.torch_backend import TorchBackend
from training.checkpoints.records import list_checkpoints
from training.feed import direct_feed
from training.job import TrainJob
from training.log.run_log import read_lines
from training.log.summary import StepMetrics
from training.loop import run_training
from training.worker import elastic
from training.worker.driver import train_under_ray

STEPS, EVERY = 1800, 200


def make_job(directory: Path, **overrides: Any) -> TrainJob:
    directory.mkdir()
    config = {"steps": STEPS, "checkpoint_every_steps": EVERY}
    job = example_job(
        directory / "checkpoints", config=config, logs_uri=str(directory / "logs"), threads=1, **overrides
    )
    return write_sequences(directory, job)


def main(directory: Path) -> dict[str, Any]:
    temporary = os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="g2r-", dir="/tmp")
    (Path(temporary) / "ray").mkdir()  # where a Cluster notes its address
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "5"
    elastic.RESIZE_SECONDS = 2.0
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": SOON_NOTICED}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    first = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    job = make_job(directory / "elastic", workers=2)
    began = time.monotonic()
    progress: list[tuple[float, int]] = []

    def drains() -> list[int]:
        return [line["step"] for line in read_lines(str(job.logs_uri)) if line["kind"] == "drained"]

    def on_progress(metrics: StepMetrics) -> None:
        progress.append((round(time.monotonic() - began, 1), metrics.step))

    def wait_for(step: int) -> None:
        while not progress or progress[-1][1] < step:
            assert not running.done(), running.result()
            time.sleep(0.1)

    with ThreadPoolExecutor(1) as pool:  # nodes are added in the main thread only: Ray sets signals there
        running = pool.submit(train_under_ray, job, fewest_workers=1, max_failures=2, on_progress=on_progress)
        wait_for(50)
        cluster.add_node(num_cpus=1)
        while not drains():
            wait_for(0)
        wait_for(drains()[0] + EVERY // 4)
        cluster.remove_node(first, allow_graceful=False)
        summary = running.result()
    ray.shutdown()
    cluster.shutdown()
    shutil.rmtree(temporary, ignore_errors=True)
    straight = make_job(directory / "straight")
    run_training(straight, TorchBackend("cpu"), direct_feed(straight))
    names = sorted(path.name for path in Path(str(job.logs_uri)).iterdir())
    setups = [json.loads((Path(uri) / "state.json").read_text()) for uri in list_checkpoints(job.checkpoints_uri)]
    return {
        "first_steps": [int(match[1]) for name in names if (match := re.match(r"metrics-(\d+)-", name))],
        "drains": drains(),
        "workers": {state["step"]: state["setups"][-1]["setup"]["workers"] for state in setups},
        "last": summary.workers,
        "progress": progress,
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
