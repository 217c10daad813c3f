"""One run of the `smoke` recipe for all end-to-end tests: as a job submitted to a real cluster."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.programs.cluster import RayCluster, ray_cluster
from tests.programs.mini_cluster import MiniCluster, mini_cluster
from tests.programs.places import REPOSITORY


@dataclass(frozen=True)
class SmokeRun:
    """What the job left, and what it said."""

    root: Path
    output: str
    returncode: int


@pytest.fixture(scope="session")
def cluster() -> Iterator[RayCluster]:
    with (
        tempfile.TemporaryDirectory(prefix="g2r-e2e-", dir="/tmp", ignore_cleanup_errors=True) as folder,
        ray_cluster(Path(folder)) as started,
    ):
        yield started


@pytest.fixture(scope="session")
def nodes() -> Iterator[MiniCluster]:
    """Three nodes of one CPU each, for the whole session; who loses one adds another."""
    with (
        tempfile.TemporaryDirectory(prefix="g2r-mini-", dir="/tmp", ignore_cleanup_errors=True) as folder,
        mini_cluster(Path(folder)) as started,
    ):
        yield started


@pytest.fixture(scope="session")
def smoke(cluster: RayCluster, tmp_path_factory: pytest.TempPathFactory) -> SmokeRun:
    """`run smoke` as a submitted job; the second use of its ROOT is the tests'."""
    root = tmp_path_factory.mktemp("smoke") / "runs"
    # Ray Data feeds this one; the demo uses the direct feed
    words = ["python", "-m", "pipelines", "run", "smoke", "--root", str(root), "--feed", "ray"]
    done = cluster.submit(*words, timeout=1100)
    return SmokeRun(root, done.stdout + done.stderr, done.returncode)


def pipelines(*words: str, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
    """python -m pipelines WORDS, from the repository, as a user would."""
    return subprocess.run(
        [sys.executable, "-m", "pipelines", *words],
        cwd=REPOSITORY,
        env={**os.environ, "CI": "true", **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
