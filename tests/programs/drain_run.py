"""Run by test_worker.py in a process of its own: the node of one of two workers is drained, then taken away.

The run continues on a third node. `straight` is the same run of two workers without Ray.
"""

import json
import os
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from tests.programs.examples import example_job, write_sequences
from training.backends.base import Backend
from training.backends.local_workers import run_workers
from training.checkpoints.records import list_checkpoints, read_rows
from training.feed import direct_feed
from training.job import TrainJob
from training.log.summary import StepMetrics
from training.loop import run_training
from training.setup import Setup
from training.worker.driver import train_under_ray

STEPS = 600
NOTICE_SECONDS = 20


def main(directory: Path) -> dict[str, Any]:
    temporary = os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="g2r-", dir="/tmp")
    (Path(temporary) / "ray").mkdir()  # where a Cluster notes its address
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = {node.node_id: node for node in (cluster.add_node(num_cpus=1) for _ in range(3))}
    ray.init(address=cluster.address, log_to_driver=False)
    job = make_job(directory / "drained", workers=2)
    seen: list[StepMetrics] = []
    drained: dict[str, Any] = {}

    def take_away() -> None:
        """Drains the node of one worker, and kills the node when the time of the notice is over."""
        actors = ray._private.state.actors().values()
        workers = [
            actor for actor in actors if "RayTrainWorker" in actor["ActorClassName"] and actor["State"] == "ALIVE"
        ]
        node_id, other = (worker["Address"]["NodeID"] for worker in workers)
        assert node_id != other
        deadline = time.time() + NOTICE_SECONDS
        accepted, _ = ray._private.worker.global_worker.gcs_client.drain_node(
            node_id,
            2,
            "taken away",
            int(deadline * 1000),  # 2: DRAIN_NODE_REASON_PREEMPTION
        )
        drained["accepted"] = accepted
        drained["checkpoints_before"] = len(list_checkpoints(job.checkpoints_uri))
        while time.time() < deadline:
            time.sleep(0.5)
            drained["last_step"] = seen[-1].step
            drained["checkpoints"] = [uri[-8:] for uri in list_checkpoints(job.checkpoints_uri)]
            if len(drained["checkpoints"]) > drained["checkpoints_before"]:
                drained.setdefault("saved_before_deadline", deadline - time.time())
        cluster.remove_node(nodes[node_id], allow_graceful=False)

    thread = threading.Thread(target=take_away)

    def on_progress(metrics: StepMetrics) -> None:
        seen.append(metrics)
        if metrics.step >= 20 and not drained:
            drained["began"] = metrics.step
            thread.start()

    summary = train_under_ray(job, max_failures=0, max_preemptions=1, on_progress=on_progress)
    thread.join()
    metrics = read_rows(job.checkpoints_uri, "metrics")
    assert metrics is not None
    facts = {
        **drained,
        "first_step": summary.first_step,
        "workers": summary.workers,
        "each_once": metrics["step"].to_pylist() == list(range(1, STEPS + 1)),
    }
    ray.shutdown()
    cluster.shutdown()
    run_workers(Setup(workers=2, device="cpu"), straight, make_job(directory / "straight", workers=2))
    shutil.rmtree(temporary, ignore_errors=True)
    return facts


def straight(backend: Backend, job: TrainJob) -> None:
    run_training(job, backend, direct_feed(job, backend.rank, backend.world_size))


def make_job(directory: Path, **overrides: Any) -> TrainJob:
    directory.mkdir()
    config = {"steps": STEPS, "checkpoint_every_steps": 300}
    job = example_job(directory / "checkpoints", config=config, threads=1, **overrides)
    return write_sequences(directory, job)


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
