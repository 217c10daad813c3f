"""`--mesh` from the command line: one process divides a model over its devices, four virtual ones here."""

import json
from pathlib import Path

import numpy as np
import pytest

from data.manifest import read_manifest
from pipelines.__main__ import main
from tests.e2e.conftest import SmokeRun
from tests.e2e.test_errors import only
from tests.programs.here import Done, RunHere, in_own_process
from tests.programs.xla_flags import QUICK_COMPILES
from training.checkpoints.records import read_rows

MODEL = ("--model", "gemma2_tiny", "--model.vocab-size", "1024")
DEVICES = {"PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": "4", "XLA_FLAGS": QUICK_COMPILES}


def made_by(done: Done) -> Path:
    """The directory of the run's result, which a line prints last."""
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_model_is_trained_cached_and_audited_on_a_mesh(smoke: SmokeRun, run_here: RunHere, tmp_path: Path) -> None:
    sequences = str(smoke.root / "pack_sequences" / only(smoke, "pack_sequences"))
    train = ("run", "train_model", "--sequences", sequences, "--steps", "6", "--global-batch", "8", *MODEL)
    alone = made_by(run_here(*train, "--root", str(tmp_path / "alone"), "--device", "cpu"))
    on_mesh = ("--root", str(tmp_path / "meshed"), "--device", "xla", "--mesh", "data=2,model=2")
    inputs = ("--sequences", sequences, "--teacher", "$0")
    trained, captured, audited = in_own_process(
        (*train, *on_mesh),
        ("run", "cache_logits", *inputs, *on_mesh),
        ("run", "audit_logits", "--logits", "$1", *inputs, *on_mesh),
        **DEVICES,
    )
    meshed, cached, checked = made_by(trained), made_by(captured), made_by(audited)
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

    setup = json.loads((cached / "_MANIFEST.json").read_text())["setup"]
    assert setup == {"device": "xla", "mesh": "data=2,model=2"}
    checks = json.loads((checked / "_MANIFEST.json").read_text())["datasets"]["verdict"]["facts"]["checks"]
    assert {check["check"]: check["passed"] for check in checks}["made again"] is True


@pytest.mark.slow
def test_a_mesh_that_cannot_be_is_told(
    smoke: SmokeRun, run_here: RunHere, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sequences = str(smoke.root / "pack_sequences" / only(smoke, "pack_sequences"))
    train = ("run", "train_model", "--sequences", sequences, "--steps", "2", "--global-batch", "8", *MODEL)
    for mesh, device, sentence in (
        ("data=2,models=2", "xla", "got mesh 'data=2,models=2' with 'models=2'; allowed are replica, data, model"),
        ("data=2", "cpu", "a model is divided on device 'xla' only"),
    ):
        assert main([*train, "--root", str(tmp_path), "--mesh", mesh, "--device", device]) == 2
        assert sentence in capsys.readouterr().err
    done = run_here(*train, "--root", str(tmp_path), "--mesh", "data=2", "--device", "xla")
    assert done.returncode == 2, done.stderr
    assert "has 2 chips, and the process has" in done.stderr
    assert "Traceback" not in done.stderr
