"""Run by test_cuda.py in a process of its own: fits under Ray Train on the GPUs here, results as JSON."""

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import ray
import torch

from tests.programs.examples import job_named
from tests.programs.ray_runs import killed, run
from training.backends.torch_backend import TorchBackend
from training.feed import direct_feed
from training.loop import run_training


def main(directory: Path, gpus: int) -> dict[str, Any]:
    temporary = tempfile.mkdtemp(prefix="g2r-", dir="/tmp")  # Unix sockets below it: a short name
    ray.init(address="local", include_dashboard=False, log_to_driver=False, _temp_dir=temporary)
    results = {
        "gpus": ray.cluster_resources().get("GPU", 0),
        "cuda": run(directory, "cuda", device="cuda", workers=gpus, feed="ray"),
        "killed": killed(directory, device="cuda"),
    }
    ray.shutdown()
    shutil.rmtree(temporary, ignore_errors=True)
    on_cpu = job_named(directory, "cpu")
    run_training(on_cpu, TorchBackend("cpu"), direct_feed(on_cpu))
    straight = job_named(directory, "straight", steps=600, checkpoint_every_steps=20, device="cuda")
    run_training(straight, TorchBackend("cuda"), direct_feed(straight))
    return results


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), torch.cuda.device_count())))
