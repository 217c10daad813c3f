"""Which device a stage with a model takes, and a step of a recipe."""

from types import SimpleNamespace
from typing import Any

import pytest

from model.sharding import MeshShape
from pipelines.checkpoints import loaded
from pipelines.checkpoints.loaded import device_of, open_model
from pipelines.engine.resources import Resources
from pipelines.recipes import registry as recipes
from training.backends import devices
from training.backends.devices import resolve_device
from training.setup import Setup


def context(device: Any, *, tpus_in_cluster: bool) -> Any:
    session = SimpleNamespace(has_tpu=lambda: tpus_in_cluster)
    return SimpleNamespace(resources=Resources(device=device), session=session)


def test_auto_is_the_clusters_tpus_before_this_machines_device() -> None:
    assert device_of(context("auto", tpus_in_cluster=True)) == "xla"
    assert device_of(context("auto", tpus_in_cluster=False)) == resolve_device("auto")
    assert device_of(context("cpu", tpus_in_cluster=True)) == "cpu"


def test_a_step_takes_xla_only_where_there_is_no_accelerator_and_torch_xla_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = {step.name: step for step in recipes.load("smoke").steps}
    monkeypatch.setattr(devices.torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("PJRT_DEVICE", "CPU")
    assert steps["teacher"].resources(Resources()).device == "xla"
    assert steps["scratch"].resources(Resources()).device == "auto"
    assert steps["teacher"].resources(Resources(device="cpu")).device == "cpu"
    monkeypatch.setattr(devices, "compiles_here", lambda: False)
    assert steps["teacher"].resources(Resources()).device == "auto"
    monkeypatch.setattr(devices, "compiles_here", lambda: True)
    monkeypatch.setattr(devices.torch.cuda, "is_available", lambda: True)
    assert steps["teacher"].resources(Resources()).device == "auto"


def test_a_mesh_that_the_machine_does_not_have_is_refused_before_a_tensor_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loaded, "read_commit", lambda uri: {})
    monkeypatch.setattr(loaded, "load_checkpoint", lambda *_, **__: pytest.fail("it read the checkpoint"))
    with pytest.raises(ValueError, match="leave --mesh out"):
        open_model("somewhere", Setup(device="cpu", mesh=MeshShape(model=2)))
