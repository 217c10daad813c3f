"""Stages as jobs on a real cluster, by `pipelines submit`: logs, exit codes, tokens, and the bytes of a local run."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.engine.registry import stage_names
from pipelines.recipes import registry as recipes
from tests.e2e.conftest import SmokeRun, pipelines
from tests.programs.chaos_log import Counts, chaos_run
from tests.programs.cluster import RAY, RayCluster, ray_cluster
from tests.programs.places import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

STAGES = sorted({step.stage for step in recipes.load("smoke").steps})
OTHER_STAGES = [name for name in stage_names() if name not in STAGES]
"""those that smoke does without"""
PROGRESS = re.compile(
    r"^train_model: [\d,]+ of 100,000,000 steps, [\d.e+]+ a second, [\d,]+ s left, loss \d", re.MULTILINE
)
CHECKPOINT_EVERY_STEPS = 200
FILES = 800
"""of a run that is long enough to be stopped in its middle"""


def submit(cluster: RayCluster, *words: str, timeout: float = 300) -> tuple[int, str]:
    """(exit code, what was said) of `pipelines submit`."""
    done = pipelines("submit", *words, "--address", cluster.dashboard, timeout=timeout, **cluster.environment)
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


def test_a_job_with_a_missing_input_ends_here_as_it_did_there(cluster: RayCluster, tmp_path: Path) -> None:
    code, said = submit(cluster, "collect_text", "--input", str(tmp_path / "no"), "--root", str(tmp_path / "runs"))
    assert code == 2
    assert said.endswith(": FAILED\n"), "Ray's word for any exit code but 0"
    assert f"{tmp_path}/no" in said


def test_a_wrong_token_is_told_in_a_line(cluster: RayCluster, tmp_path: Path) -> None:
    wrong = {**cluster.environment, "RAY_AUTH_TOKEN": "0" * 64}
    done = pipelines("submit", "smoke", "--root", str(tmp_path), "--address", cluster.dashboard, **wrong)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert "which asks for a token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN" in line
    statuses = [status(cluster, token) for token in (cluster.environment["RAY_AUTH_TOKEN"], None, "0" * 64)]
    assert statuses == [200, 401, 403]


@pytest.mark.parametrize("wrong", [{"RAY_AUTH_TOKEN": "0" * 64}, {"RAY_AUTH_MODE": "disabled"}])
def test_a_driver_that_the_cluster_does_not_let_in_is_told_in_a_line(
    cluster: RayCluster, tmp_path: Path, wrong: dict[str, str]
) -> None:
    (tmp_path / "a.txt").write_text("A text.")
    line = ["run", "collect_text", "--input", str(tmp_path / "a.txt"), "--root", str(tmp_path / "runs")]
    done = pipelines(*line, **{**cluster.environment, "RAY_ADDRESS": cluster.address, **wrong})
    assert done.returncode == 2, done.stderr
    running, error = done.stderr.splitlines()
    assert running.endswith(": running")
    assert error.startswith(
        f"error: the cluster at {cluster.address} refuses this process; set RAY_AUTH_MODE=token and "
    )


@pytest.mark.chaos("no code to an open cluster")
def test_a_cluster_that_is_open_to_anyone_gets_no_code(tmp_path: Path) -> None:
    """A real one on loopback, as at the end of a tunnel, with a token of ours that it does not ask for."""
    with (
        tempfile.TemporaryDirectory(prefix="g2r-open-", dir="/tmp", ignore_cleanup_errors=True) as folder,
        ray_cluster(Path(folder), open_to_anyone=True) as cluster,
    ):
        ours = {**cluster.environment, "RAY_AUTH_MODE": "token"}
        done = pipelines("submit", "smoke", "--root", str(tmp_path), "--address", cluster.dashboard, **ours)
        assert done.returncode == 2, done.stderr
        (line,) = done.stderr.splitlines()
        assert f"got an answer at {cluster.dashboard} that asks for no token: anyone who reaches the cluster" in line
        there = {**ours, "RAY_ADDRESS": cluster.address}
        done = pipelines("run", "collect_text", "--input", "README.md", "--root", str(tmp_path), **there)
        assert done.returncode == 2, done.stderr
        assert f"the cluster at {cluster.address} asks for no token: anyone who reaches it" in done.stderr
        with urllib.request.urlopen(f"{cluster.dashboard}/api/jobs/", timeout=30) as answer:
            assert json.load(answer) == []


def status(cluster: RayCluster, token: str | None) -> int:
    """The dashboard's answer to a request with this token."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    request = urllib.request.Request(f"{cluster.dashboard}/api/jobs/", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


@pytest.mark.chaos("a job that is stopped and goes on")
def test_a_stopped_job_is_continued_by_the_same_line(
    cluster: RayCluster, smoke: SmokeRun, tmp_path: Path, counts: Counts
) -> None:
    """A training without an end, beside an undisturbed one: the first checkpoint after the stop has the same bytes."""
    assert smoke.returncode == 0, smoke.output[-4000:]
    line = endless_training(smoke)
    undisturbed = Job(cluster, [*line, "--root", str(tmp_path / "undisturbed")], tmp_path / "undisturbed.log")
    line += ["--root", str(tmp_path / "stopped")]
    first = Job(cluster, line, tmp_path / "first.log")
    wait_for(lambda: PROGRESS.search(first.said()) and committed(tmp_path / "stopped"), first, undisturbed)
    first.stop()
    *before, last = committed(tmp_path / "stopped")  # a stop saves where it stands, until the next regular one
    assert before
    times = [path.stat().st_mtime_ns for path in before]
    stopped_at = int(last.parent.name.removeprefix("step-"))
    then = f"step-{(stopped_at // CHECKPOINT_EVERY_STEPS + 1) * CHECKPOINT_EVERY_STEPS:08d}"

    again = Job(cluster, line, tmp_path / "again.log")
    wait_for(lambda: committed(tmp_path / "stopped", then), again, undisturbed)
    wait_for(lambda: committed(tmp_path / "undisturbed", then), undisturbed)
    (made,), (reference,) = (committed(tmp_path / name, then) for name in ("stopped", "undisturbed"))
    after = [path.stat().st_mtime_ns for path in before]
    again.stop()
    undisturbed.stop()
    match = re.search(r"^train_model: resumed at ([\d,]+) of 100,000,000 steps$", again.said(), re.MULTILINE)
    assert match, again.said()
    assert int(match[1].replace(",", "")) == stopped_at
    assert after == times, "it began anew"
    assert made.read_bytes() == reference.read_bytes()  # the sha256 of weights, moments, metrics and lineage
    counts.add(runs=2, kills=1, compared=1)


@pytest.mark.chaos("a job that is stopped and goes on")
def test_a_stopped_job_of_a_data_stage_is_finished_by_the_same_line_and_then_has_nothing_to_do(
    cluster: RayCluster, tmp_path: Path, counts: Counts
) -> None:
    """A file makes a shard here. Shards of before the stop stay as they were, and the result is a local run's."""
    (tmp_path / "in").mkdir()
    for number in range(FILES):
        (tmp_path / "in" / f"{number:04}.txt").write_text(f"Text {number}. " * 20)
    line = ["collect_text", "--input", str(tmp_path / "in"), "--shard-bytes", "1"]
    here, there = tmp_path / "here", tmp_path / "there"
    first = Job(cluster, [*line, "--root", str(there)], tmp_path / "first.log")
    wait_for(lambda: len(finished_shards(there)) > 10, first)
    first.stop()
    before = {path: path.stat().st_mtime_ns for path in finished_shards(there)}
    assert 10 < len(before) < FILES, "stopped in the middle"
    assert not list(there.glob("collect_text/*/_MANIFEST.json"))

    code, said = submit(cluster, *line, "--root", str(there))
    assert code == 0, said
    assert {path: path.stat().st_mtime_ns for path in before} == before, "it began anew"
    match = re.search(rf"^collect_text collect: resumed at (\d+) of {FILES} shards$", said, re.MULTILINE)
    assert match, said
    assert len(before) <= int(match[1]) < FILES  # a worker may finish one more while its driver stops
    assert pipelines("run", *line, "--root", str(here)).returncode == 0
    (made,), (reference,) = (list(root.glob("collect_text/*/_MANIFEST.json")) for root in (there, here))
    assert made.read_bytes() == reference.read_bytes()  # the sha256 of every shard
    for path in (made.parent / "text").iterdir():
        assert path.read_bytes() == (reference.parent / "text" / path.name).read_bytes()

    counts.add(runs=2, kills=1, compared=FILES)

    code, said = submit(cluster, *line, "--root", str(there))
    assert code == 0, said
    assert f"collect_text/{made.parent.name}: done before, nothing to do" in said


def finished_shards(root: Path) -> list[Path]:
    """Of the one run below `root`, while it is not finished itself: then its receipts go."""
    receipts = root.glob("collect_text/*/_receipts/collect-*/*.json")
    names = [(path, json.loads(path.read_bytes())["shards"]["text"][0]["name"]) for path in receipts]
    return [path.parents[2] / name for path, name in names]


class Job:
    """A `pipelines submit` that goes on, and its log."""

    def __init__(self, cluster: RayCluster, words: list[str], log: Path) -> None:
        self.cluster, self.log = cluster, log
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipelines", "submit", *words, "--address", cluster.dashboard],
                cwd=REPOSITORY,
                env=cluster.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def said(self) -> str:
        return self.log.read_text()

    def stop(self) -> None:
        """By the line that it says for it."""
        words = re.search(r"ray (job stop raysubmit_.*)$", self.said(), re.MULTILINE)
        assert words, self.said()
        subprocess.run([str(RAY), *words[1].split()], env=self.cluster.environment, capture_output=True, check=True)
        assert self.process.wait(60) == 1
        assert self.said().endswith(": STOPPED\n"), self.said()


def endless_training(smoke: SmokeRun) -> list[str]:
    """The words of smoke's student on its rows, over and over."""
    (packed,) = (smoke.root / "pack_sequences").iterdir()
    (config,) = [step.config for step in recipes.load("smoke").steps if step.name == "scratch"]
    model = [
        word
        for name, value in dataclasses.asdict(config.model).items()
        if isinstance(value, int)
        for word in (f"--model.{name.replace('_', '-')}", str(value))
    ]
    lengths = ["--steps", "100000000", "--checkpoint-every-steps", str(CHECKPOINT_EVERY_STEPS), "--global-batch", "8"]
    return ["train_model", "--sequences", str(packed), *model, *lengths, "--device", "cpu"]


def committed(root: Path, step: str = "*") -> list[Path]:
    """The COMMITs of the one training below `root`, oldest first."""
    return sorted(root.glob(f"train_model/*/checkpoints/{step}/COMMIT"))


def wait_for(condition: Callable[[], object], *jobs: Job) -> None:
    deadline = time.monotonic() + 180
    while not condition():
        for job in jobs:
            assert job.process.poll() is None, job.said()
        assert time.monotonic() < deadline, [job.said() for job in jobs]
        time.sleep(0.1)


@pytest.mark.chaos
@pytest.mark.parametrize("step", [step.name for step in recipes.load("smoke").steps])
def test_each_stage_alone_as_a_job_makes_the_bytes_of_the_whole_run(
    cluster: RayCluster, smoke: SmokeRun, tmp_path: Path, step: str
) -> None:
    from pipelines.recipes.recipe import tasks_of

    with chaos_run("a stage as a job", step) as counts:
        root = tmp_path / "runs"
        shutil.copytree(smoke.root, root)
        task = tasks_of(recipes.load("smoke"), str(root))[step]
        config = tmp_path / "config.json"
        shutil.move(Path(task.directory) / "_CONFIG.json", config)
        reference = (Path(task.directory) / "_MANIFEST.json").read_bytes()
        shutil.rmtree(task.directory)
        (device,) = [of.without_accelerator or "auto" for of in recipes.load("smoke").steps if of.name == step]
        line = [task.stage.name, "--config", str(config), "--root", str(root)]
        code, said = submit(cluster, *line, "--device", device)
        assert code == 0, said
        assert (Path(task.directory) / "_MANIFEST.json").read_bytes() == reference
        counts.compared = 1


@pytest.mark.chaos
@pytest.mark.parametrize("stage", OTHER_STAGES)
def test_each_stage_that_smoke_does_without_makes_the_same_bytes_as_a_job(
    cluster: RayCluster, smoke: SmokeRun, tmp_path: Path, stage: str
) -> None:
    with chaos_run("a stage as a job", stage) as counts:
        assert smoke.returncode == 0, smoke.output[-4000:]
        here, there = tmp_path / "here", tmp_path / "there"
        for root in (here, there):
            shutil.copytree(smoke.root, root)
        words = [stage, *inputs_of(stage, here, tmp_path)]
        local = pipelines("run", *words, "--root", str(here))
        assert local.returncode == 0, local.stderr
        (directory,) = [path for path in (here / stage).iterdir() if path.is_dir()]
        code, said = submit(cluster, *words, "--root", str(there))
        assert code == 0, said
        assert re.search(rf"^{stage}/{directory.name}: running$", said, re.MULTILINE)
        assert re.search(rf"^{stage}/{directory.name}: done in ", said, re.MULTILINE)
        assert "SUCCEEDED" in said
        made = there / stage / directory.name / "_MANIFEST.json"
        assert made.read_bytes() == (directory / "_MANIFEST.json").read_bytes()
        counts.compared = 1


def inputs_of(stage: str, root: Path, folder: Path) -> list[str]:
    """The inputs of a stage, of smoke's outputs or made in `folder`; they are named without their root."""
    from pipelines.recipes.recipe import tasks_of

    runs = {
        name: f"{task.stage.name}/{task.fingerprint}"
        for name, task in tasks_of(recipes.load("smoke"), str(root)).items()
    }
    model = ["--checkpoint", runs["teacher"], "--tokenizer", runs["tokenizer"]]
    if stage == "import_model":
        exported = pipelines("run", "export_model", *model, "--root", str(root))
        assert exported.returncode == 0, exported.stderr
        return ["--weights", f"{exported.stdout.strip()}/model"]
    items = [{"text": f"{word} {number}", "label": number % 2} for word in ("def", "class") for number in range(50)]
    labelled = str(folder / "items.jsonl")
    Path(labelled).write_text("".join(json.dumps(item) + "\n" for item in items))
    return {
        "audit_logits": ["--logits", runs["cache"], "--sequences", runs["pack"], "--teacher", runs["teacher"]],
        "decontaminate_text": ["--text", runs["deduplicate"], "--evaluation", labelled, "--ngram-words", "2"],
        "export_model": model,
        "train_classifier": ["--labelled", labelled],
    }[stage]


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_the_demo_as_a_job(cluster: RayCluster, tmp_path: Path) -> None:
    with chaos_run("a recipe as a job", "demo") as counts:
        line = ["demo", "--root", str(tmp_path / "runs")]
        code, said = submit(cluster, *line, timeout=1700)
        assert code == 0, said
        assert re.search(r"^train_model: [\d,]+ of 220 steps, [\d.]+ a second, [\d,]+ s left, loss", said, re.MULTILINE)
        steps = recipes.load("demo").steps
        assert len(re.findall(r"^\[\d+/\d+\] \w+: .*: done in ", said, re.MULTILINE)) == len(steps)
        assert (tmp_path / "runs" / "demo" / "report.html").exists()
        code, said = submit(cluster, *line)
        assert code == 0, said
        assert f"all {len(steps)} steps were done before, nothing to do" in said
        counts.compared = len(steps)
