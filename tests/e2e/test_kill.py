"""kill -9 of the driver in the middle of a stage, then the same line again: only unfinished work is redone, same bytes.

The reference is the smoke run of the session. For each step its output is removed from a copy of that run's ROOT, the
recipe is run there and killed inside the step. Two steps in `make test`, all of them in `make chaos`.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines import recipes
from pipelines.recipe import tasks_of
from tests.e2e.cluster import REPOSITORY
from tests.e2e.conftest import SmokeRun, pipelines

STEPS = [step.name for step in recipes.load("smoke").steps]
IN_MAKE_TEST = ("pack", "teacher")
DEADLINE_SECONDS = 120


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("step", IN_MAKE_TEST)
def test_a_killed_driver_is_continued_by_the_same_line(smoke: SmokeRun, tmp_path: Path, step: str) -> None:
    check_kill(smoke, tmp_path, step)


@pytest.mark.chaos
@pytest.mark.timeout(300)
@pytest.mark.parametrize("step", [step for step in STEPS if step not in IN_MAKE_TEST])
def test_a_driver_killed_in_any_other_step_is_continued(smoke: SmokeRun, tmp_path: Path, step: str) -> None:
    check_kill(smoke, tmp_path, step)


def check_kill(smoke: SmokeRun, tmp_path: Path, step: str) -> None:
    assert smoke.returncode == 0, smoke.output[-4000:]
    root = tmp_path / "runs"
    shutil.copytree(smoke.root, root)
    task = tasks_of(recipes.load("smoke"), str(root))[step]
    directory = Path(task.directory)
    shutil.rmtree(directory)

    kill_inside(root, directory)
    assert not (directory / "_MANIFEST.json").exists(), "killed too late to test anything"
    finished = finished_files(directory)

    again = pipelines("run", "smoke", "--root", str(root))
    assert again.returncode == 0, again.stderr
    reference = Path(str(directory).replace(str(root), str(smoke.root)))
    assert (directory / "_MANIFEST.json").read_bytes() == (reference / "_MANIFEST.json").read_bytes()
    for name, modified in finished.items():
        assert (directory / name).stat().st_mtime_ns == modified, f"{name} was finished and was written again"


def kill_inside(root: Path, directory: Path) -> None:
    """Runs the recipe and kills the driver as soon as part of the step is there, or the step has run for a second."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines", "run", "smoke", "--root", str(root)],
        cwd=REPOSITORY,
        env={**os.environ, "CI": "true"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + DEADLINE_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if finished_files(directory) or (directory / "_MANIFEST.json").exists():
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()


def finished_files(directory: Path) -> dict[str, int]:
    """Files of the step's own that a rerun must leave alone (published shards, committed checkpoints) -> time
    written."""
    receipts = list(directory.glob("_receipts/*/*.json"))
    commits = list(directory.glob("checkpoints/*/COMMIT"))
    files = [file for commit in commits for file in commit.parent.iterdir()]
    return {str(file.relative_to(directory)): file.stat().st_mtime_ns for file in [*receipts, *files]}
