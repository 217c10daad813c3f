"""Run by test_tpu_slices.py in a process of its own: XlaConfig on a cluster of nodes that say they are TPU hosts.

Three slices v4:2x2x2 of two hosts: `a` lacks host 1, `b` and `c` are whole. The workers record what they receive
and never import torch_xla. Prints JSON. The folder's name chooses: `spare`, a run on one slice that loses a host, or
`elastic`, a run on two slices, one of which is lost and returns.
"""

import json
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray._private.accelerators.tpu import infer_tpu_pod_type_from_topology
from ray.cluster_utils import Cluster

from infra.slices import parse_topology
from training.backends.xla.abilities import XLA
from training.worker import elastic, places, slices
from training.worker.driver import RAY_TRAIN_ENVIRONMENT, WITHOUT_DASHBOARD_ENVIRONMENT, Trainer, backend_config
from training.worker.places import TpuSlices
from training.worker.slices import XlaConfig, hold_broken_slices, scaling_config
from training.worker.stops import Asked

ONE = TpuSlices(topology="2x2x2", accelerator_type="TPU-V4", pod_type="v4-16", hosts=2, chips_per_host=4)
TWO = replace(ONE, slices=2)
HOSTS = (("a", 0), ("b", 0), ("b", 1), ("c", 0), ("c", 1))
SOON_NOTICED = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 3,
}
STALE = {"MEGASCALE_NUM_SLICES": "9", "MEGASCALE_SLICE_ID": "7"}
"""value that an image or an earlier run left on every host"""


def host(cluster: Cluster, name: str, number: int) -> Any:
    """A node with the resources, labels and environment of a TPU host."""
    return cluster.add_node(
        num_cpus=1,
        object_store_memory=100 << 20,
        resources={"TPU": 4, name: 1, "accelerator_type:TPU-V4": 1, **({} if number else {"TPU-v4-16-head": 1})},
        labels={
            places.SLICE_NAME: name,
            places.WORKER_ID: str(number),
            "ray.io/tpu-topology": "2x2x2",
            places.POD_TYPE: "v4-16",
        },
        env_vars={"TPU_NAME": name, "TPU_WORKER_ID": str(number), **STALE},
    )


def remember(config: dict[str, Any]) -> None:
    """The work of each worker: records its place and environment, and waits for its end in all but the last attempt."""
    import torch.distributed

    asked = Asked(config["ask_key"])
    context = ray.train.get_context()
    keys = ("PJRT_DEVICE", "TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES", "TPU_NAME")
    workers: list[Any] = [None] * context.get_world_size()
    mine = {key: os.environ.get(key) for key in keys} | {
        "rank": context.get_world_rank(),
        "megascale": {key: value for key, value in os.environ.items() if key.startswith(slices.MEGASCALE)},
        "torch_xla": "torch_xla" in sys.modules,
    }
    torch.distributed.all_gather_object(workers, mine)  # over gloo
    folder = Path(config["folder"])
    attempt = len(list(folder.glob("attempt-*")))
    torch.distributed.barrier()
    if mine["rank"] == 0:
        (folder / f"attempt-{attempt}").write_text(json.dumps(workers))
    while attempt + 1 < config["attempts"]:
        if mine["rank"] == 0:
            asked.saved()  # as behind a checkpoint, where another size is asked for
        time.sleep(0.1)


def run(tpu: TpuSlices, folder: Path, attempts: int, sizes: tuple[int, ...]) -> list[list[dict[str, Any]]]:
    """The workers of each attempt."""
    folder.mkdir(parents=True)
    trainer = Trainer(
        remember,
        sizes=sizes,
        ask_key=b"ask-test",
        counts_key=b"counts-test",
        train_loop_config={"folder": str(folder), "attempts": attempts, "ask_key": b"ask-test"},
        backend_config=XlaConfig(device="TPU", hosts=tpu.hosts),
        scaling_config=scaling_config(sizes, {"CPU": 1}, tpu),
        run_config=ray.train.RunConfig(
            name="train",
            storage_path=str(folder / "ray"),
            failure_config=ray.train.FailureConfig(max_failures=3, max_preemption_failures=3),
        ),
    )
    with hold_broken_slices(tpu):
        trainer.fit()
    return [json.loads(path.read_text()) for path in sorted(folder.glob("attempt-*"))]


def main(directory: Path) -> dict[str, Any]:
    """The result of the case that the directory is named after."""
    return without_a_cluster() if directory.name == "without_a_cluster" else on_a_cluster(directory)


def on_a_cluster(directory: Path) -> dict[str, Any]:
    temporary = os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="g2r-", dir="/tmp")
    (Path(temporary) / "ray").mkdir()  # where a Cluster notes its address
    os.environ.update(
        RAY_TRAIN_ENVIRONMENT | WITHOUT_DASHBOARD_ENVIRONMENT | {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10"}
    )
    slices.LOOK_SECONDS = 0.5
    elastic.RESIZE_SECONDS = 2.0
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 1, "include_dashboard": False, "_system_config": SOON_NOTICED,
            "object_store_memory": 100 << 20,
        },
    )  # fmt: skip
    ray.init(address=cluster.address, log_to_driver=False)
    nodes = {(name, number): host(cluster, name, number) for name, number in HOSTS}

    def after_attempt(folder: Path, number: int) -> str:
        """The slice of the attempt's first worker, after it has begun."""
        begun = folder / f"attempt-{number}"
        while not begun.exists():
            assert not running.done(), running.result()
            time.sleep(0.1)
        time.sleep(0.5)
        return str(json.loads(begun.read_text())[0]["TPU_NAME"])

    elastic_run = directory.name == "elastic"
    tpu, attempts, sizes = (TWO, 3, (2, 4)) if elastic_run else (ONE, 2, (2,))
    with ThreadPoolExecutor(1) as pool:  # nodes are added in the main thread only: Ray sets signals there
        running = pool.submit(run, tpu, directory / "run", attempts, sizes)
        lost = after_attempt(directory / "run", 0)
        cluster.remove_node(nodes[lost, 1], allow_graceful=False)
        if elastic_run:
            after_attempt(directory / "run", 1)
            host(cluster, lost, 1)  # repaired
        workers_by_attempt = running.result()
    ray.shutdown()
    cluster.shutdown()
    shutil.rmtree(temporary, ignore_errors=True)
    return {"attempts": workers_by_attempt, "lost": lost}


def without_a_cluster() -> dict[str, Any]:
    """Whether Ray's names of slices are ours, its resources for a single host, and devices of jobs on and off TPUs."""
    pod_types = {}
    for name in ("v4:2x2x2", "v5e:4x4", "v5p:2x2x4", "v6e:4x4"):
        place = parse_topology(name)
        ours, shape = place.chip.pod_type(place.chips), name.partition(":")[2]
        pod_types[name] = ours == infer_tpu_pod_type_from_topology(shape, place.chip.ray_name)
    alone = TpuSlices(chips_per_host=4)
    asked = scaling_config([1], {"CPU": 1}, alone)
    configs = [backend_config(XLA, 1, tpu) for tpu in (alone, ONE, None)]
    return {
        "pod_types": pod_types,
        "one_host": [asked.use_tpu, asked.num_workers, asked.resources_per_worker],
        "devices": [config.device for config in configs if isinstance(config, XlaConfig)],
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
