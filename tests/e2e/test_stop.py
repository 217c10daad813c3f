"""SIGINT and SIGTERM to the driver of a training run: exit code 130, a checkpoint, and the same line goes on there."""

import os
import re
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from data.changes import Changes
from data.tokenizer import Tokenizer, train_tokenizer
from pipelines.engine.runner import save_config
from pipelines.engine.stage import load_stage
from pipelines.engine.task import Task, resolve_inputs
from tests.programs import here
from tests.programs.cached_runs import VOCAB, teacher_config, write_sequences
from tests.programs.places import REPOSITORY

DEADLINE_SECONDS = 500

pytestmark = pytest.mark.slow


def test_sigint_and_sigterm_end_training_behind_a_checkpoint_with_exit_code_130(tmp_path: Path) -> None:
    """One run that would last for hours, stopped in turns; the last time it is told twice.

    While it trains, a second driver of the run is refused.
    """
    words = ["train_model", "--config", saved_config(tmp_path), "--device", "cpu", "--root", str(tmp_path)]
    code, errors, directory = stopped(words, tmp_path, signal.SIGTERM, beside=refused)
    assert code == 130, errors
    (step,) = re.findall(r"^stopped: asked to stop after step (\d+); its checkpoint is committed", errors, re.M)
    assert "Traceback" not in errors
    assert (directory / "checkpoints" / f"step-{int(step):08d}" / "COMMIT").exists()
    assert first_steps(directory) == [0]
    code, errors, directory = stopped(words, tmp_path, signal.SIGINT, twice=True)
    assert code == 130, errors
    assert first_steps(directory) == [0, int(step)]


def saved_config(root: Path) -> str:
    """What `--config` takes, of a run over a few packed rows."""
    texts = [path.read_text() for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-b]*.py"))]
    tokenizer = Tokenizer.from_bytes(train_tokenizer(texts, VOCAB))
    sequences = write_sequences(root, "a", tokenizer, texts, 1)
    stage = load_stage("train_model")
    config = stage.config(model=teacher_config(), steps=1_000_000, global_batch=4, checkpoint_every_steps=500_000)
    inputs = resolve_inputs(stage, config, {"sequences": [sequences]}, str(root))
    task = Task(stage=stage, config=config, inputs=inputs, root=str(root))
    save_config(task, Changes(directory=task.directory))
    return str(Path(task.directory) / "_CONFIG.json")


def refused(words: list[str], first: subprocess.Popen[str]) -> None:
    second = here.done(["run", *words])
    assert second.returncode == 2
    assert f"is being written by process {first.pid}" in second.stderr
    assert first.poll() is None


def stopped(
    words: list[str],
    root: Path,
    number: int,
    twice: bool = False,
    beside: Callable[[list[str], subprocess.Popen[str]], None] | None = None,
) -> tuple[int, str, Path]:
    """The exit code and stderr of a driver that is told to stop when it has trained a while, and its directory."""
    before = set((root / "train_model").glob("*/logs/metrics-*.jsonl"))
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines", "run", *words],
        cwd=REPOSITORY,
        env={**os.environ, "CI": "true"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )

    def trains() -> list[Path]:
        new = set((root / "train_model").glob("*/logs/metrics-*.jsonl")) - before
        return [path for path in new if path.stat().st_size]

    try:
        wait_for(lambda: bool(trains()), process)
        if beside is not None:
            beside(words, process)
        process.send_signal(number)
        if twice:
            time.sleep(0.2)  # the first puts back what was there before
            process.send_signal(number)
        _, errors = process.communicate(timeout=DEADLINE_SECONDS)
    finally:
        process.kill()
        process.wait()
    (log,) = trains()
    return process.returncode, errors, log.parent.parent


def first_steps(directory: Path) -> list[int]:
    """Where each attempt began, by the names of their logs."""
    names = [path.name for path in (directory / "logs").glob("metrics-*.jsonl")]
    return sorted(int(match[1]) for name in names if (match := re.match(r"metrics-(\d+)-", name)))


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, f"it has not trained in {DEADLINE_SECONDS} s"
        time.sleep(0.05)
