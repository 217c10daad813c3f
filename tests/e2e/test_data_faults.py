"""kill -9 of Ray's workers and the loss of nodes while data stages run: the bytes of the undisturbed run, each once.

A run is all data stages one after another over a mixed corpus. The driver outlives its workers here; what its own
death leaves is tested in tests/pipelines/stages/test_data_stages.py.
"""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from infra.ray_session import RaySession
from tests.programs.chaos_log import chaos_run
from tests.programs.in_process import CHAIN, run_chain
from tests.programs.mini_cluster import MiniCluster
from tests.programs.places import REPOSITORY
from tests.programs.undisturbed import Reference, compare

WORKER_RUNS, KILLS_IN_RUN = 20, 5
NODE_RUNS = 5
LONGEST_SECONDS = 600.0


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return Reference(tmp_path_factory.mktemp("reference"), documents=240)


@pytest.mark.slow
def test_killed_workers_change_no_byte(reference: Reference, tmp_path: Path, ray_session: RaySession) -> None:
    kills, result = run_with_killed_workers(reference, tmp_path, ray_session, seed=0)
    assert kills == KILLS_IN_RUN
    assert result[1:] == (0, 0)


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(1, WORKER_RUNS + 1))
def test_workers_killed_at_any_time_change_no_byte(
    reference: Reference, tmp_path: Path, ray_session: RaySession, seed: int
) -> None:
    with chaos_run("5 workers killed in a run", seed) as counts:
        counts.kills, (counts.compared, counts.lost, counts.doubled) = run_with_killed_workers(
            reference, tmp_path, ray_session, seed
        )
        assert (counts.kills, counts.lost, counts.doubled) == (KILLS_IN_RUN, 0, 0)


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(NODE_RUNS + 1))
def test_a_node_lost_in_any_stage_changes_no_byte(
    reference: Reference, tmp_path: Path, nodes: MiniCluster, seed: int
) -> None:
    with chaos_run("a node lost in a run", seed) as counts:
        counts.compared, counts.lost, counts.doubled = run_with_a_lost_node(reference, tmp_path, nodes, seed)
        counts.kills = 1
        assert (counts.lost, counts.doubled) == (0, 0)


def run_with_killed_workers(
    reference: Reference, root: Path, session: RaySession, seed: int
) -> tuple[int, tuple[int, int, int]]:
    """(workers killed, what `compare` says); after the kills there is peace until the run ends."""
    session.start()
    draw = random.Random(seed)
    over, killed = threading.Event(), []

    def kill() -> None:
        while len(killed) < KILLS_IN_RUN and not over.wait(draw.uniform(0.0, 2.0)):
            if workers := busy_workers():
                pid = draw.choice(workers)
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        run_chain(str(root), str(reference.corpus), session)
    finally:
        over.set()
        killer.join()
    return len(killed), compare(root, reference.root)


def run_with_a_lost_node(reference: Reference, root: Path, nodes: MiniCluster, seed: int) -> tuple[int, int, int]:
    """What `compare` says; a node goes in the stage that the seed names, and another comes after the run."""
    draw = random.Random(seed)
    stage = CHAIN[seed % len(CHAIN)][0]
    command = [sys.executable, "-m", "tests.programs.on_ray", str(root), str(reference.corpus)]
    log = root.parent / f"{root.name}.log"
    with log.open("w") as output:
        driver = subprocess.Popen(command, cwd=REPOSITORY, env=nodes.environment, stdout=output, stderr=output)
    try:
        until(lambda: list(root.glob(f"{stage}/*/_CONFIG.json")), driver, log)
        time.sleep(draw.uniform(0.0, 1.0))
        assert driver.poll() is None, "the node would be lost too late to test anything"
        nodes.lose()
        assert driver.wait(LONGEST_SECONDS) == 0, log.read_text()[-4000:]
    finally:
        driver.kill()
        driver.wait()
    nodes.grow()
    return compare(root, reference.root)


def until(condition: object, driver: "subprocess.Popen[bytes]", log: Path) -> None:
    """Waits until `condition()` is true and the driver lives. Raises AssertionError otherwise."""
    assert callable(condition)
    deadline = time.monotonic() + LONGEST_SECONDS
    while not condition():
        assert driver.poll() is None, log.read_text()[-4000:]
        assert time.monotonic() < deadline, log.read_text()[-4000:]
        time.sleep(0.01)


def busy_workers() -> list[int]:
    """Worker processes of the Ray that this process has started, by pid; those at work, or all where none is."""
    parents = {}
    titles = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                titles[int(folder.name)] = (folder / "cmdline").read_bytes().partition(b"\0")[0].decode()
            except OSError:  # it has just ended
                continue
    raylets = {pid for pid, parent in parents.items() if parent == os.getpid() and titles[pid].endswith("raylet")}
    # agents are parts of a node: it dies with them
    workers = [
        pid
        for pid, parent in parents.items()
        if parent in raylets and titles[pid].startswith("ray::") and not titles[pid].endswith("Agent")
    ]
    return [pid for pid in workers if titles[pid] != "ray::IDLE"] or workers
