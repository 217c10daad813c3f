"""Splash attention in Pallas' interpret mode equals plain attention; for a TPU it is a call of the kernel."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from model import gemma2_tiny
from tests.programs.places import REPOSITORY
from tests.programs.xla_flags import QUICK_COMPILES

pytest.importorskip("torch_xla")
pytestmark = pytest.mark.slow


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "PJRT_DEVICE": "CPU",
        "CPU_NUM_DEVICES": "4",
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "XLA_FLAGS": QUICK_COMPILES,
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=REPOSITORY,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        timeout=900,
    )
    assert done.returncode == 0
    return done


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    differences: dict[str, Any] = json.loads(run("tests.programs.attention_run").stdout.splitlines()[-1])
    return differences


def test_values_and_gradients_are_plain_attentions(report: dict[str, Any]) -> None:
    assert report["kernel"].keys() == {"None", "100"}
    check_differences(report)


def test_in_scanned_layers_and_on_a_mesh_the_loss_and_gradients_are_plain_pytorchs(
    report: dict[str, Any],
) -> None:
    assert report["model"].keys() == {"none", "full"}
    check_differences(report)


@pytest.mark.chaos("splash attention")
def test_more_windows_and_each_remat() -> None:
    report = json.loads(run("tests.programs.attention_run", "all").stdout.splitlines()[-1])
    assert report["kernel"].keys() == {"None", "1", "100", "128"}
    assert report["model"].keys() == {"none", "projections", "full"}
    check_differences(report)


def check_differences(report: dict[str, Any]) -> None:
    assert max(max(differences) for differences in report["kernel"].values()) <= 1e-4
    assert max(report["model"].values()) <= 1e-4


def test_the_program_for_a_tpu_calls_one_kernel_forward_and_two_backward(report: dict[str, Any]) -> None:
    assert report["tpu"] == [1, 2]


def test_what_the_kernel_cannot_compute_is_refused(report: dict[str, Any]) -> None:
    head_dim, length, cache = report["refused"]
    assert "head_dim 64 and rows of 128 tokens for splash attention; both must be multiples of 128" in head_dim
    assert "head_dim 128 and rows of 100 tokens" in length
    assert "splash attention reads no cache" in cache


def test_a_traced_training_step_has_the_kernels_and_donates_every_parameter_and_moment(tmp_path: Path) -> None:
    config = gemma2_tiny(layers=4, heads=8, kv_heads=4, head_dim=128, window=100)
    request = {
        "model": dataclasses.asdict(config),
        "mesh": {"replica": 2, "data": 16, "model": 4},  # chips that this machine does not have
        "sequence_length": 256,
        "rows": 64,
        "remat": "full",
        "objective": "distill",
    }
    (tmp_path / "request.json").write_text(json.dumps(request))
    run("training.backends.xla.traced_step", str(tmp_path / "request.json"), str(tmp_path / "out"))
    traced = json.loads((tmp_path / "out" / "trace.json").read_text())
    # A local and a global layer: each one kernel forward, the same again for the gradients, and two of them.
    assert (tmp_path / "out" / "hlo.pb").read_bytes().count(b"tpu_custom_call") >= 2 * (1 + 1 + 2)
    assert (traced["num_partitions"], len(traced["donated"])) == (128, 3 * (2 * 11 + 2))
