"""A run goes from the newest committed checkpoint to its last step, and repeats itself bit for bit after a kill."""

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from data.changes import Changes
from data.order import MixturePhase
from data.schema import LINEAGE, METRICS
from tests.programs.examples import example_job, made_up_feed
from tests.programs.places import REPOSITORY
from tests.programs.xla_flags import QUICK_COMPILES
from training.backends.torch_backend import TorchBackend
from training.checkpoints.records import latest_checkpoint, read_rows
from training.checkpoints.save_load import load_checkpoint
from training.config import OptimizerConfig
from training.job import TrainJob
from training.loop import StepMetrics, TrainSummary, run_training

CPU = TorchBackend("cpu")

KILLED_RUN = """
import os, signal, sys, time
from pathlib import Path
from tests.programs.examples import example_job, made_up_feed
from training import loop
from training.backends.make import make_backend
from training.checkpoints.records import latest_checkpoint

directory, device, kill_at = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
loop.FETCH_STEPS = 1

def on_step(metrics):
    if metrics.step == kill_at:
        while kill_at > 5 and latest_checkpoint(str(directory)) is None:  # a thread writes it
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

job = example_job(directory, device=device)
loop.run_training(job, make_backend(job.setup), made_up_feed(job), on_step)
"""


def train(job: TrainJob, all_metrics: list[StepMetrics] | None = None) -> TrainSummary:
    return run_training(job, CPU, made_up_feed(job), None if all_metrics is None else all_metrics.append)


def run_in_process(directory: Path, device: str, kill_at: int) -> int:
    return subprocess.run(
        [sys.executable, "-c", KILLED_RUN, str(directory), device, str(kill_at)],
        cwd=REPOSITORY,
        env={
            "PATH": "",
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",
            "XLA_FLAGS": QUICK_COMPILES,
            "HOME": str(directory),
        },
        check=False,
        timeout=300,
    ).returncode


def final_hashes(directory: Path) -> dict[str, str]:
    uri = latest_checkpoint(str(directory))
    assert uri is not None
    files = json.loads((Path(uri) / "COMMIT").read_text())["files"]
    return {name: file["sha256"] for name, file in files.items()}


def test_the_loss_falls_and_steps_are_reported_in_order(tmp_path: Path) -> None:
    all_metrics: list[StepMetrics] = []
    summary = train(example_job(tmp_path, config={"steps": 40}), all_metrics)
    assert [metrics.step for metrics in all_metrics] == list(range(1, 41))
    assert all_metrics[0].loss == pytest.approx(np.log(64), rel=0.05)
    assert summary.loss == all_metrics[-1].loss < 0.9 * all_metrics[0].loss
    assert summary.tokens_seen == all_metrics[-1].tokens_seen == sum(metrics.targets for metrics in all_metrics)
    assert (summary.first_step, summary.steps) == (0, 40)


def test_metrics_and_lineage_hold_every_step_once(tmp_path: Path) -> None:
    all_metrics: list[StepMetrics] = []
    job = example_job(tmp_path)
    train(job, all_metrics)
    metrics = read_rows(str(tmp_path), "metrics")
    assert metrics is not None
    assert metrics.schema.equals(METRICS)
    assert metrics.to_pylist() == [dataclasses.asdict(report) for report in all_metrics]
    lineage = read_rows(str(tmp_path), "lineage")
    assert lineage is not None
    assert lineage.schema.equals(LINEAGE)
    expected = [
        {"step": step + 1, "slot": slot, "dataset": ("prose", "code")[ref[0]], "shard": ref[1], "row": ref[2]}
        for step, batch in made_up_feed(job)(0, 12)
        for slot, ref in enumerate(batch["refs"].tolist())
    ]
    assert lineage.drop_columns("sequence_hash").to_pylist() == expected


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    job = example_job(tmp_path)
    first = train(job)
    again = train(job)
    assert (again.first_step, again.steps, again.loss) == (12, 12, None)
    assert (again.checkpoint_uri, again.tokens_seen) == (first.checkpoint_uri, first.tokens_seen)


def test_micro_batches_give_the_same_steps(tmp_path: Path) -> None:
    whole: list[StepMetrics] = []
    parts: list[StepMetrics] = []
    train(example_job(tmp_path / "whole"), whole)
    train(example_job(tmp_path / "parts", microbatch_rows=1), parts)
    assert [metrics.targets for metrics in parts] == [metrics.targets for metrics in whole]
    np.testing.assert_allclose([r.loss for r in parts], [r.loss for r in whole], rtol=1e-5)
    np.testing.assert_allclose([r.grad_norm for r in parts], [r.grad_norm for r in whole], rtol=1e-4)


def test_a_killed_run_continues_to_the_same_bytes(tmp_path: Path) -> None:
    train(example_job(tmp_path / "whole"))
    assert run_in_process(tmp_path / "killed", "cpu", kill_at=8) == -signal.SIGKILL
    uri = latest_checkpoint(str(tmp_path / "killed"))
    assert uri is not None
    assert uri.endswith("step-00000005")
    summary = train(example_job(tmp_path / "killed"))
    assert summary.first_step == 5
    assert final_hashes(tmp_path / "killed") == final_hashes(tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_run_on_xla_continues_to_the_same_bytes(tmp_path: Path) -> None:
    assert run_in_process(tmp_path / "whole", "xla", kill_at=0) == 0
    assert run_in_process(tmp_path / "killed", "xla", kill_at=8) == -signal.SIGKILL
    assert run_in_process(tmp_path / "killed", "xla", kill_at=0) == 0
    assert final_hashes(tmp_path / "killed") == final_hashes(tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"config": {"seed": 1}}, r"config\.seed was 0 and is 1"),
        ({"config": {"steps": 13}}, r"config\.steps was 12 and is 13"),
        ({"input_fingerprints": {"sequences": "abd"}}, r"input_fingerprints\.sequences was 'abc' and is 'abd'"),
        ({"order_seed": 7}, "order_seed was 0 and is 7"),
    ],
)
def test_another_config_or_other_data_is_refused(tmp_path: Path, change: dict, named: str) -> None:
    train(example_job(tmp_path))
    with pytest.raises(ValueError, match=named):
        train(example_job(tmp_path, **change))


def test_another_set_up_may_continue(tmp_path: Path) -> None:
    train(example_job(tmp_path))
    assert train(example_job(tmp_path, microbatch_rows=2)).first_step == 12


def test_a_lost_lease_stops_the_run_before_the_commit(tmp_path: Path) -> None:
    lease = tmp_path / "lease"
    job = example_job(
        tmp_path / "checkpoints", changes=Changes(directory=str(tmp_path), lease_uri=str(lease), token="mine")
    )
    lease.write_text('{"token": "mine"}')

    def taken_over(metrics: StepMetrics) -> None:
        if metrics.step == 8:
            while latest_checkpoint(job.checkpoints_uri) is None:  # that of step 5, which a thread writes
                time.sleep(0.01)
            lease.write_text('{"token": "theirs"}')

    with pytest.raises(RuntimeError, match="another driver has taken over"):
        run_training(job, CPU, made_up_feed(job), taken_over)
    uri = latest_checkpoint(job.checkpoints_uri)
    assert uri is not None
    assert uri.endswith("step-00000005")


def test_a_feed_that_ends_early_is_an_error(tmp_path: Path) -> None:
    job = example_job(tmp_path)
    with pytest.raises(RuntimeError, match="ended after step 7 of 12"):
        run_training(job, CPU, lambda start, stop: made_up_feed(job)(start, 7))


def test_the_checkpoint_says_what_it_was_made_from(tmp_path: Path) -> None:
    job = example_job(tmp_path)
    checkpoint = load_checkpoint(train(job).checkpoint_uri)
    assert checkpoint.state["identity"] == job.identity()
    setup = {"device": "cpu", "workers": 1, "microbatch_rows": None, "cpu_threads": None, "remat": "none"}
    assert checkpoint.state["setups"] == [{"after": 10, "setup": setup}]
    assert all(tensor.dtype == torch.float32 for tensor in checkpoint.weights.values())


def test_a_finished_run_is_carried_on_with_its_moments_and_its_place(tmp_path: Path) -> None:
    """As far as both go, a run of 20 steps is one of 12 carried on: constant rate, so that the schedules agree."""
    constant = OptimizerConfig(learning_rate=0.01, decay="constant")
    jobs = [
        example_job(tmp_path / name, config={"steps": steps, "optimizer": constant})
        for name, steps in (("whole", 20), ("first", 12), ("second", 20))
    ]
    train(jobs[0])
    carried = dataclasses.replace(jobs[2], carried_uri=train(jobs[1]).checkpoint_uri)
    summary = train(carried)
    assert (summary.first_step, summary.steps) == (12, 20)
    weights = [load_checkpoint(str(tmp_path / name / "step-00000020")).weights for name in ("whole", "second")]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    rows = [read_rows(str(tmp_path / name), "lineage") for name in ("whole", "second")]
    assert rows[0] is not None
    assert rows[1] is not None
    assert rows[1].equals(rows[0].slice(12 * 4))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"config": {"steps": 12}}, "has done 12 steps, and this run ends after 12"),
        ({"config": {"steps": 20, "global_batch": 8}}, "global_batch was 4 and is 8"),
        ({"config": {"steps": 20}, "order_seed": 1}, "order_seed was 0 and is 1"),
        (
            {"config": {"steps": 20}, "phases": (MixturePhase(start_step=0, weights=(("prose", 1.0),)),)},
            "the mixture before step 12 was",
        ),
    ],
)
def test_what_cannot_be_carried_on_is_refused(tmp_path: Path, change: dict, named: str) -> None:
    uri = train(example_job(tmp_path / "first")).checkpoint_uri
    with pytest.raises(ValueError, match=named):
        train(example_job(tmp_path / "second", **change, carried_uri=uri))
