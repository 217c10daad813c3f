"""kill -9 of the driver in the middle of a stage, then the same line again: only unfinished work is redone, same bytes.

The reference is the smoke run of the session. For each step its output is removed from a copy of that run's ROOT, the
recipe is run there and killed inside the step. Two steps in `make test`, all of them in `make chaos`.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from pipelines.recipes import registry as recipes
from pipelines.recipes.recipe import tasks_of
from tests.e2e.conftest import SmokeRun, pipelines
from tests.programs.chaos_log import chaos_run
from tests.programs.cluster import RayCluster
from tests.programs.places import REPOSITORY

STEPS = [step.name for step in recipes.load("smoke").steps]
IN_MAKE_TEST = ("scratch",)
ONE_PART = ("train_tokenizer", "evaluate_model", "generate_text")
ONE_PART_SECONDS = 3.0
"""after a one-part step began: Ray is still starting or the part is being made"""
DEADLINE_SECONDS = 500


@pytest.mark.slow
def test_a_killed_driver_of_a_training_is_continued_by_the_same_line(smoke: SmokeRun, tmp_path: Path) -> None:
    """Its Ray ends with it."""
    check_kill(smoke, tmp_path, "scratch")


@pytest.mark.slow
def test_a_driver_killed_on_a_cluster_is_continued_by_the_same_line(
    smoke: SmokeRun, cluster: RayCluster, tmp_path: Path
) -> None:
    """The cluster goes on without it."""
    check_kill(smoke, tmp_path, "pack", {**cluster.environment, "RAY_ADDRESS": cluster.address})


@pytest.mark.chaos
@pytest.mark.parametrize("step", [step for step in STEPS if step not in IN_MAKE_TEST])
def test_a_driver_killed_in_any_other_step_is_continued(
    request: pytest.FixtureRequest, tmp_path: Path, step: str
) -> None:
    with chaos_run("driver killed in a step", step) as counts:
        check_kill(request.getfixturevalue("smoke"), tmp_path, step)
        counts.kills = counts.compared = 1  # the manifest, which has the sha256 of all else


def check_kill(smoke: SmokeRun, tmp_path: Path, step: str, environment: Mapping[str, str] = os.environ) -> None:
    assert smoke.returncode == 0, smoke.output[-4000:]
    root = tmp_path / "runs"
    shutil.copytree(smoke.root, root)
    task = tasks_of(recipes.load("smoke"), str(root))[step]
    directory = Path(task.directory)
    shutil.rmtree(directory)

    kill_inside(root, directory, environment)
    assert not (directory / "_MANIFEST.json").exists(), "killed too late to test anything"
    finished = finished_files(directory)

    again = pipelines("run", "smoke", "--root", str(root), **environment)
    assert again.returncode == 0, again.stderr
    reference = Path(str(directory).replace(str(root), str(smoke.root)))
    assert (directory / "_MANIFEST.json").read_bytes() == (reference / "_MANIFEST.json").read_bytes()
    for name, modified in finished.items():
        assert (directory / name).stat().st_mtime_ns == modified, f"{name} was finished and was written again"


def kill_inside(root: Path, directory: Path, environment: Mapping[str, str]) -> None:
    """Runs the recipe and kills the driver as soon as part of the step is there (of one-part steps: before it is)."""
    process = start_driver(root, environment)
    if directory.parent.name in ONE_PART:
        wait_for(lambda: (directory / "_CONFIG.json").exists(), process)
        time.sleep(ONE_PART_SECONDS)
    else:
        wait_for(lambda: bool(finished_files(directory)), process)
    process.send_signal(signal.SIGKILL)
    process.wait()


def start_driver(root: Path, environment: Mapping[str, str] = os.environ) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines", "run", "smoke", "--root", str(root)],
        cwd=REPOSITORY,
        env={**environment, "CI": "true"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert process.poll() is None, "the driver ended before it could be killed"
        assert time.monotonic() < deadline, f"nothing to kill in {DEADLINE_SECONDS} s"
        time.sleep(0.002)


def finished_files(directory: Path) -> dict[str, int]:
    """Files that a rerun must leave alone (shards with a receipt, committed checkpoints) -> time written."""
    receipts = [json.loads(file.read_text()) for file in directory.glob("_receipts/*/*.json")]
    names = [shard["name"] for receipt in receipts for many in receipt["shards"].values() for shard in many]
    files = [directory / name for name in names if not name.startswith("_")]  # "_": gone when the stage is done
    files += [file for commit in directory.glob("checkpoints/*/COMMIT") for file in commit.parent.iterdir()]
    return {str(file.relative_to(directory)): file.stat().st_mtime_ns for file in files}
