"""On a machine with a GPU: the job under Ray Train takes a CPU's steps, and a kill leaves no trace in its bytes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infra.chips import gpu_peaks
from tests.programs.examples import example_job, made_up_feed
from tests.training.worker.test_worker import in_process, losses, table
from training.backends.torch_backend import CUDA, TorchBackend
from training.checkpoints.records import latest_checkpoint
from training.log.run_log import peak_flops_per_second
from training.loop import run_training

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: runs jobs on device 'cuda'"),
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cuda")


@pytest.fixture(scope="module")
def runs(directory: Path) -> dict[str, Any]:
    return in_process("cuda_runs", directory)


def test_losses_are_those_of_a_cpu(runs: dict[str, Any], directory: Path) -> None:
    assert runs["gpus"] == torch.cuda.device_count()
    np.testing.assert_allclose(losses(directory, "cuda"), losses(directory, "cpu"), rtol=1e-5)
    assert table(directory, "cuda", "lineage").equals(table(directory, "cpu", "lineage"))


def test_a_killed_worker_leaves_no_trace(runs: dict[str, Any], directory: Path) -> None:
    assert runs["killed"]["kills"] == 1
    assert table(directory, "killed", "metrics")["step"].to_pylist() == list(range(1, 601))
    assert np.array_equal(losses(directory, "killed"), losses(directory, "straight"))
    newest = [latest_checkpoint(str(directory / name / "checkpoints")) for name in ("killed", "straight")]
    files = [json.loads((Path(uri or "") / "COMMIT").read_text())["files"] for uri in newest]
    tensors = [name for name in files[0] if name.endswith(".safetensors")]
    assert len(tensors) == 2
    assert all(files[0][name] == files[1][name] for name in tensors)


def test_mfu_is_against_the_peak_of_the_gpu_and_its_memory_is_told(tmp_path: Path) -> None:
    job = example_job(tmp_path / "checkpoints", device="cuda", logs_uri=str(tmp_path / "logs"), gpu_flops=gpu_peaks())
    metrics: dict[str, float] = {}
    run_training(job, TorchBackend("cuda"), made_up_feed(job), tell=metrics.update)
    assert metrics["peak_device_bytes"] > 0
    peak = peak_flops_per_second(job, CUDA)
    if peak is None:
        assert "mfu" not in metrics, "a GPU that is not in our table"
    else:
        assert metrics["mfu"] == pytest.approx(metrics["model_flops_per_second"] / peak)
