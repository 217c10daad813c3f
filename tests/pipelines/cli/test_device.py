"""A device that this machine does not have: `plan` prints it, and `run` refuses before its first step."""

from pathlib import Path

import pytest
import torch

from tests.programs import here
from training.backends.xla import abilities as xla

NO_GPU = "--device cuda: PyTorch finds no GPU here, so `run` refuses this line here; on a machine that has the device, "


@pytest.fixture
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Words after `plan` or `run`: the smallest recipe over a note, on a machine without an accelerator."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(xla, "has_tpu", lambda: False)
    (tmp_path / "note.txt").write_text("A note.")
    return ["smoke", "--input", str(tmp_path / "note.txt"), "--root", str(tmp_path / "runs")]


def last_line(words: list[str]) -> str:
    done = here.done(words)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_a_plan_prints_what_its_device_would_do_here(line: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert last_line(["plan", *line, "--device", "cuda"]).startswith(f"note: {NO_GPU}")
    assert last_line(["plan", *line, "--device", "xla"]) == (
        "note: --device xla: no TPU is here, so XLA computes on the CPU"
    )
    for device in ("cpu", "auto"):
        assert not last_line(["plan", *line, "--device", device]).startswith("note")
    monkeypatch.setattr(xla, "compiles_here", lambda: False)
    assert "torch_xla is not installed here" in last_line(["plan", *line, "--device", "xla"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not last_line(["plan", *line, "--device", "cuda"]).startswith("note")


def test_a_plan_for_a_cluster_is_silent_about_this_machine(line: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert not last_line(["plan", *line, "--device", "cuda"]).startswith("note")


def test_a_stage_without_a_model_has_no_use_for_a_device(line: list[str], tmp_path: Path) -> None:
    assert last_line(["plan", "collect_text", *line[1:], "--device", "cuda"]) == (
        "note: --device cuda changes nothing: no step that would run computes with a model"
    )


def test_a_run_on_a_missing_device_is_refused_before_its_first_step(line: list[str], tmp_path: Path) -> None:
    done = here.done(["run", *line, "--device", "cuda"])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: got --device cuda, but PyTorch finds no GPU here; leave --device out, which takes the fastest device "
        "of this machine\n"
    )
    assert not (tmp_path / "runs" / "collect_text").exists()
