"""Stages as jobs on a real cluster, by `pipelines submit`: logs, exit codes, tokens, and the bytes of a local run."""

import re
import shutil
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from pipelines import recipes
from tests.chaos_log import chaos_run
from tests.e2e.cluster import RayCluster
from tests.e2e.conftest import SmokeRun, pipelines

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def submit(cluster: RayCluster, *words: str) -> tuple[int, str]:
    """(exit code, what was said) of `pipelines submit`."""
    done = pipelines("submit", *words, "--address", cluster.dashboard, **cluster.environment)
    return done.returncode, done.stdout + done.stderr


def test_a_stage_as_a_job_says_how_it_goes_and_the_second_time_has_nothing_to_do(
    cluster: RayCluster, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("A text.")
    line = ["collect_text", "--input", str(tmp_path / "in"), "--root", str(tmp_path / "runs")]
    code, said = submit(cluster, *line)
    assert code == 0, said
    assert "ray job logs raysubmit_" in said
    assert "ray job stop raysubmit_" in said
    assert re.search(r"^collect_text/[0-9a-f]{16}: running$", said, re.MULTILINE), "the job's own log, as it goes"
    assert re.search(r"^collect_text/[0-9a-f]{16}: done in .*text 1 rows", said, re.MULTILINE)
    assert "SUCCEEDED" in said
    code, said = submit(cluster, *line)
    assert code == 0, said
    assert "done before, nothing to do" in said


def test_a_job_that_fails_fails_here_with_its_own_words(cluster: RayCluster, tmp_path: Path) -> None:
    code, said = submit(cluster, "collect_text", "--input", str(tmp_path / "no"), "--root", str(tmp_path / "runs"))
    assert code == 1
    assert "FAILED" in said
    assert f"{tmp_path}/no" in said


def test_a_wrong_token_is_told_in_a_line(cluster: RayCluster, tmp_path: Path) -> None:
    wrong = {**cluster.environment, "RAY_AUTH_TOKEN": "0" * 64}
    done = pipelines("submit", "smoke", "--root", str(tmp_path), "--address", cluster.dashboard, **wrong)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert "does not let us in; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN" in line
    statuses = [status(cluster, token) for token in (cluster.environment["RAY_AUTH_TOKEN"], None, "0" * 64)]
    assert statuses == [200, 401, 403]


def status(cluster: RayCluster, token: str | None) -> int:
    """Of the dashboard's answer to who brings this token."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    request = urllib.request.Request(f"{cluster.dashboard}/api/jobs/", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


@pytest.mark.chaos
@pytest.mark.parametrize("step", [step.name for step in recipes.load("smoke").steps])
def test_each_stage_alone_as_a_job_makes_the_bytes_of_the_whole_run(
    cluster: RayCluster, smoke: SmokeRun, tmp_path: Path, step: str
) -> None:
    from pipelines.recipe import tasks_of

    with chaos_run("a stage as a job", step) as counts:
        root = tmp_path / "runs"
        shutil.copytree(smoke.root, root)
        task = tasks_of(recipes.load("smoke"), str(root))[step]
        config = tmp_path / "config.json"
        shutil.move(Path(task.directory) / "_CONFIG.json", config)
        reference = (Path(task.directory) / "_MANIFEST.json").read_bytes()
        shutil.rmtree(task.directory)
        code, said = submit(cluster, task.stage.name, "--config", str(config), "--root", str(root))
        assert code == 0, said
        assert (Path(task.directory) / "_MANIFEST.json").read_bytes() == reference
        counts.compared = 1
