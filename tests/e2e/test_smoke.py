"""The whole path, end to end, on a real cluster; then what a user does next."""

import json
import subprocess
import urllib.error
import urllib.request

import pytest

from infra.kubernetes import AGENT_PORT, HEALTH_PAGES, PORTS
from pipelines.__main__ import main
from pipelines.recipes import registry as recipes
from tests.e2e.conftest import SmokeRun, pipelines
from tests.programs import here
from tests.programs.cluster import RAY, RayCluster
from tests.programs.sockets import listening, open_to_others, with_environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_a_submitted_job_runs_the_whole_path(smoke: SmokeRun) -> None:
    assert smoke.returncode == 0, smoke.output[-4000:]
    for step in recipes.load("smoke").steps:
        folders = list((smoke.root / step.stage).iterdir())
        assert any((folder / "_MANIFEST.json").exists() for folder in folders), step.name


def test_the_same_line_run_directly_has_nothing_to_do_and_starts_no_ray(smoke: SmokeRun) -> None:
    done = pipelines("run", "smoke", "--root", str(smoke.root), RAY_ADDRESS="127.0.0.1:1")  # a Ray would not come up
    assert done.returncode == 0, done.stderr
    assert "nothing to do" in done.stdout


def test_a_changed_field_reruns_only_what_follows_and_plan_says_why(smoke: SmokeRun) -> None:
    done = here.done(["plan", "smoke", "--root", str(smoke.root), "--distilled.optimizer.learning-rate", "0.001"])
    assert done.returncode == 0, done.stderr
    to_run = [line.split()[1] for line in done.stdout.splitlines() if " to run  " in line]
    assert to_run == ["distilled", "evaluate_distilled", "generate"]
    assert "learning_rate 0.003 -> 0.001" in done.stdout
    assert "it reads distilled, which changes" in done.stdout


def test_a_saved_config_replays_to_the_same_run(smoke: SmokeRun) -> None:
    (run,) = (smoke.root / "pack_sequences").iterdir()
    done = here.done(["run", "pack_sequences", "--config", str(run / "_CONFIG.json"), "--root", str(smoke.root)])
    assert done.returncode == 0, done.stderr
    assert f"{run.name}: done before" in done.stderr
    saved = str(smoke.root / "smoke" / "recipe.json")
    replay = here.done(["plan", "smoke", "--config", saved, "--root", str(smoke.root)])
    assert "0 to run" in replay.stdout


def test_distilled_and_scratch_saw_the_same_rows_in_the_same_order(smoke: SmokeRun) -> None:
    from data.shards import read_table

    lineages = {}
    for path in (smoke.root / "train_model").glob("*/_MANIFEST.json"):
        run, manifest = path.parent, json.loads(path.read_text())
        if manifest["config"]["model"]["d_model"] == 32:
            shards = manifest["datasets"]["lineage"]["shards"]
            lineages[manifest["config"]["objective"]] = [read_table(str(run / shard["name"])) for shard in shards]
    assert lineages["distill"] == lineages["next_token"]
    assert sum(table.num_rows for table in lineages["distill"]) == 20 * 8


def test_its_status_and_its_account_follow_from_its_files(smoke: SmokeRun, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--root", str(smoke.root)]) == 0
    assert capsys.readouterr().out.startswith("smoke: 14 of 14 steps done\n")
    assert main(["account", "smoke", "--root", str(smoke.root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "(14 of 14 steps finished)" in lines[0]
    (teacher,) = [line.split() for line in lines if line.startswith("teacher ")]
    assert teacher[1] == "10,240", "20 steps of 8 rows of 64 tokens"
    runs = [json.loads(path.read_text()) for path in smoke.root.glob("*/*/_RUN.json")]
    assert all("chip_seconds" in run for run in runs)
    assert any("no chip was used" in line for line in lines) is not any(run["chip_seconds"] for run in runs)


def test_a_relative_root_inside_a_job_is_refused(cluster: RayCluster) -> None:
    done = cluster.submit("python", "-m", "pipelines", "run", "smoke", "--root", "runs", timeout=120)
    assert done.returncode == 1  # ray's own: the job failed
    assert "got the relative --root 'runs' in a submitted job" in done.stdout
    assert "exit code 2" in done.stdout


def test_what_kubernetes_asks_of_a_pod_is_answered_without_a_token(cluster: RayCluster) -> None:
    where = {PORTS["dashboard"]: cluster.dashboard, AGENT_PORT: cluster.agent}
    for path, port in HEALTH_PAGES.items():
        with urllib.request.urlopen(f"{where[port]}{path}", timeout=10) as answer:
            assert (answer.status, answer.read()) == (200, b"success"), path
    done = subprocess.run([str(RAY), "stop", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, "a pod's last command; to run it would stop every Ray of this machine"


def test_the_cluster_listens_on_loopback_only(cluster: RayCluster) -> None:
    """It is started as docs/laptop-to-pod.md says, which tests/e2e/test_laptop_to_pod.py holds to."""
    sockets = listening(with_environment("RAY_AUTH_TOKEN", cluster.environment["RAY_AUTH_TOKEN"]))
    assert len(sockets) >= 5, "store of state, raylet, agents, dashboard"
    assert open_to_others(sockets) == {}


def test_the_cluster_refuses_whoever_has_no_token(cluster: RayCluster) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{cluster.dashboard}/api/jobs/", timeout=10)
