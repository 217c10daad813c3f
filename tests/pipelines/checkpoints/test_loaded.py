"""Which device a stage with a model takes, and a step of a recipe."""

from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.checkpoints.loaded import device_of
from pipelines.engine.resources import Resources
from pipelines.recipes import registry as recipes
from training.backends import devices
from training.backends.devices import resolve_device


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
