"""The smoke recipe on three nodes, one of which is lost in each stage: the bytes of the run on one machine."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.recipes import registry as recipes
from pipelines.recipes.recipe import tasks_of
from tests.e2e.conftest import SmokeRun
from tests.programs.chaos_log import chaos_run
from tests.programs.mini_cluster import MiniCluster
from tests.programs.places import REPOSITORY
from tests.programs.sockets import listening, open_to_others, with_environment

STEPS = [step.name for step in recipes.load("smoke").steps]
LONGEST_SECONDS = 400.0


@pytest.mark.chaos("loopback only")
def test_three_nodes_listen_on_loopback_only(nodes: MiniCluster) -> None:
    sockets = listening(with_environment("RAY_AUTH_TOKEN", nodes.environment["RAY_AUTH_TOKEN"]))
    assert len(sockets) >= 7, "store of state, and a raylet and its agent on each node"
    assert open_to_others(sockets) == {}


@pytest.mark.chaos
@pytest.mark.timeout(900)
@pytest.mark.parametrize("step", STEPS)
def test_a_node_lost_in_any_step_changes_no_byte(
    request: pytest.FixtureRequest, nodes: MiniCluster, tmp_path: Path, step: str
) -> None:
    with chaos_run("a node lost in a step of smoke", step) as counts:
        lose_a_node(request.getfixturevalue("smoke"), nodes, tmp_path, step)
        counts.kills = 1
        counts.compared = 1  # the manifest, which has the sha256 of all else


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_the_whole_recipe_on_three_nodes_makes_the_same_bytes(
    request: pytest.FixtureRequest, nodes: MiniCluster, tmp_path: Path
) -> None:
    with chaos_run("smoke on three nodes", "smoke") as counts:
        smoke: SmokeRun = request.getfixturevalue("smoke")
        done = start(nodes, tmp_path / "runs", tmp_path / "log").wait(LONGEST_SECONDS * 2)
        assert done == 0, (tmp_path / "log").read_text()[-4000:]
        for path in smoke.root.glob("*/*/_MANIFEST.json"):
            counts.compared += 1
            counts.lost += (tmp_path / "runs" / path.relative_to(smoke.root)).read_bytes() != path.read_bytes()
        assert counts.lost == 0
        spread = {stage: used for stage, used in nodes_used(tmp_path / "runs").items() if sum(used) > 2}
        assert set(spread) >= {"filter_text", "tokenize_text"}, "stages of several shards"
        assert {stage: used for stage, used in spread.items() if len(used) < 2} == {}, "one node did it all"


def nodes_used(root: Path) -> dict[str, list[int]]:
    """Stage -> how many shards each node made that made any, by `_RUN.json`."""
    runs = {path.parent.parent.name: json.loads(path.read_text()) for path in root.glob("*/*/_RUN.json")}
    return {stage: sorted(run["shards_by_node"].values()) for stage, run in runs.items()}


def lose_a_node(smoke: SmokeRun, nodes: MiniCluster, folder: Path, step: str) -> None:
    """Runs one step of a copy of the smoke run on three nodes, loses one that has a task of it, compares the manifest.

    Every step of smoke gives its nodes tasks; one that ended before a node was lost fails the test.
    """
    assert smoke.returncode == 0, smoke.output[-4000:]
    root, log = folder / "runs", folder / "log"
    shutil.copytree(smoke.root, root)
    directory = Path(tasks_of(recipes.load("smoke"), str(root))[step].directory)
    shutil.rmtree(directory)
    driver = start(nodes, root, log)
    try:
        deadline = time.monotonic() + LONGEST_SECONDS
        while not (directory / "_CONFIG.json").exists():
            assert driver.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < deadline, log.read_text()[-4000:]
            time.sleep(0.01)
        time.sleep(random.Random(step).uniform(0.0, 2.0))
        worked: list[str] = []
        while not worked:
            assert driver.poll() is None, f"the step ended before a node was seen at work\n{log.read_text()[-4000:]}"
            assert time.monotonic() < deadline, log.read_text()[-4000:]
            worked += filter(None, [nodes.lose()])
        nodes.grow()
        assert driver.wait(LONGEST_SECONDS) == 0, log.read_text()[-4000:]
    finally:
        driver.kill()
        driver.wait()
    reference = Path(str(directory).replace(str(root), str(smoke.root)))
    assert (directory / "_MANIFEST.json").read_bytes() == (reference / "_MANIFEST.json").read_bytes()


def start(nodes: MiniCluster, root: Path, log: Path) -> "subprocess.Popen[bytes]":
    with log.open("w") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "pipelines", "run", "smoke", "--root", str(root)],
            cwd=REPOSITORY,
            env={**os.environ, **nodes.environment},
            stdout=output,
            stderr=output,
        )
