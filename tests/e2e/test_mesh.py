"""`--mesh` from the command line: one process divides a model over its devices, four virtual ones here."""

import json
from pathlib import Path

import numpy as np
import pytest

from data.manifest import read_manifest
from pipelines.__main__ import main
from tests.e2e.conftest import SmokeRun, pipelines
from tests.e2e.test_errors import only
from training.checkpoints.records import read_rows

MODEL = ("--model", "gemma2_tiny", "--model.vocab-size", "1024")
QUICK_COMPILES = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
DEVICES = {"PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": "4", "XLA_FLAGS": QUICK_COMPILES}


def run(root: Path, *words: str, device: str = "xla", **environment: str) -> Path:
    """The directory of the run's result; its stage is the first word."""
    before = set(root.glob(f"{words[0]}/*/_MANIFEST.json"))
    done = pipelines("run", *words, "--root", str(root), "--device", device, **environment)
    assert done.returncode == 0, done.stderr
    (made,) = set(root.glob(f"{words[0]}/*/_MANIFEST.json")) - before
    return made.parent


@pytest.mark.slow
def test_a_model_is_trained_cached_and_audited_on_a_mesh(smoke: SmokeRun, tmp_path: Path) -> None:
    sequences = str(smoke.root / "pack_sequences" / only(smoke, "pack_sequences"))
    train = ("train_model", "--sequences", sequences, "--steps", "6", "--global-batch", "8", *MODEL)
    alone = run(tmp_path / "alone", *train, device="cpu")
    meshed = run(tmp_path / "meshed", *train, "--mesh", "data=2,model=2", **DEVICES)
    losses = []
    for directory in (alone, meshed):
        rows = read_rows(str(directory / "checkpoints"), "metrics")
        assert rows is not None
        losses.append(rows["loss_sum"].to_numpy() / rows["targets"].to_numpy())
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    manifest = read_manifest(str(meshed))
    assert manifest is not None
    assert manifest.setup is not None
    assert manifest.setup["mesh"] == "data=2,model=2"

    inputs = ("--sequences", sequences, "--teacher", str(meshed))
    cached = run(tmp_path / "meshed", "cache_logits", *inputs, "--mesh", "data=2,model=2", **DEVICES)
    setup = json.loads((cached / "_MANIFEST.json").read_text())["setup"]
    assert setup == {"device": "xla", "mesh": "data=2,model=2"}
    audit = ("audit_logits", "--logits", str(cached), *inputs)
    audited = run(tmp_path / "meshed", *audit, "--mesh", "data=2,model=2", **DEVICES)
    checks = json.loads((audited / "_MANIFEST.json").read_text())["datasets"]["verdict"]["facts"]["checks"]
    assert {check["check"]: check["passed"] for check in checks}["made again"] is True


@pytest.mark.slow
def test_a_mesh_that_cannot_be_is_told(smoke: SmokeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sequences = str(smoke.root / "pack_sequences" / only(smoke, "pack_sequences"))
    train = ("run", "train_model", "--sequences", sequences, "--steps", "2", "--global-batch", "8", *MODEL)
    for mesh, device, sentence in (
        ("data=2,models=2", "xla", "'models=2' is not one of replica, data, model"),
        ("data=2", "cpu", "a model is divided on device 'xla' only"),
    ):
        assert main([*train, "--root", str(tmp_path), "--mesh", mesh, "--device", device]) == 2
        assert sentence in capsys.readouterr().err
    done = pipelines(*train, "--root", str(tmp_path), "--mesh", "data=3", "--device", "xla")
    assert done.returncode == 2, done.stderr
    assert "has 3 chips and the process has" in done.stderr
    assert "Traceback" not in done.stderr
