"""Devices that cannot do what is asked say so."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from model.sharding import MeshShape
from tests.programs.places import REPOSITORY
from training.backends.devices import has_tpu, resolve_device
from training.backends.make import abilities_of, make_backend
from training.backends.torch_backend import CPU, TorchBackend
from training.setup import Setup


def test_several_workers_on_xla_without_a_tpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PJRT_DEVICE", "CPU")
    with pytest.raises(ValueError, match="no collectives between processes"):
        make_backend(Setup(device="xla", workers=2))
    abilities_of("xla").check_workers(1)
    abilities_of("cpu").check_workers(8)


def test_remat_on_a_device_that_keeps_everything_is_refused_with_what_is_allowed() -> None:
    with pytest.raises(ValueError, match=r"remat 'full' on device 'cpu'.* allowed is 'none'"):
        make_backend(Setup(device="cpu", remat="full"))
    assert make_backend(Setup(device="cpu", remat="none")).remat == "none"


def test_a_mesh_of_workers_is_all_of_them_and_has_no_model_axis() -> None:
    for mesh in ("data=2", "replica=2,data=4", "data=2,model=2", "model=4"):
        with pytest.raises(ValueError, match=r"allowed are data=4, .*, replica=4, .*, and replica=M,data=N with M x"):
            CPU.check_mesh(MeshShape.parse(mesh), 4)
    with pytest.raises(ValueError, match="'xla' only, or over several workers"):
        make_backend(Setup(device="cpu", mesh=MeshShape(data=4)))
    for mesh in ("data=4", "replica=4", "replica=2,data=2"):
        CPU.check_mesh(MeshShape.parse(mesh), 4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_cuda_without_a_gpu_is_refused() -> None:
    with pytest.raises(ValueError, match="finds no GPU"):
        make_backend(Setup(device="cuda"))


def test_auto_resolves_to_a_device_that_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_device("cpu") == "cpu"
    assert resolve_device("auto") in ("xla", "cuda", "cpu")
    monkeypatch.setenv("PJRT_DEVICE", "TPU")
    assert has_tpu()
    assert resolve_device("auto") == "xla"


def test_a_snapshot_does_not_follow_later_changes() -> None:
    backend = TorchBackend("cpu")
    tensor = torch.zeros(3)
    copy = backend.snapshot({"tensor": tensor})["tensor"]
    tensor += 1
    assert copy.tolist() == [0, 0, 0]


def test_values_are_fetched_as_floats_and_rows_of_one_worker_are_all_rows() -> None:
    backend = TorchBackend("cpu")
    assert backend.fetch([torch.tensor([1.5, 2.0]), torch.tensor([3.0])]) == [[1.5, 2.0], [3.0]]
    assert backend.gather(np.arange(3)).tolist() == [0, 1, 2]


def test_training_imports_without_ray_torch_xla_and_jax() -> None:
    script = """
import sys
for name in ("ray", "torch_xla", "jax"):
    sys.modules[name] = None
import training.evaluation, training.feed, training.backends.fsdp, training.loop, training.distill.teacher
"""
    subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, check=True)
