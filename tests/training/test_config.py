"""Mistakes in a config are refused with a sentence that says what to do."""

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest

from model import gemma2_tiny
from tests.training.examples import example_job
from training.config import OptimizerConfig, TrainingConfig


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 65}, "set the model's vocab_size to 65 or more"),
        ({"config": {"objective": "distill"}}, "needs the teacher's cached logits"),
        ({"config": {"objective": "distill"}, "logits": (("a",),), "draws": 5}, "one LOGITS dataset for each"),
        ({"workers": 3}, "global_batch 4 is not divisible by 3 workers"),
        ({"microbatch_rows": 3}, "allowed are the divisors of 4"),
        ({"microbatch_rows": 0}, "allowed are the divisors of 4"),
        ({"sequences": ()}, "name at least one SEQUENCES dataset"),
        ({"device": "gpu"}, "allowed are 'xla', 'cuda', 'cpu', 'auto'"),
        ({"remat": "everything"}, "remat is 'everything'; allowed are 'none', 'projections', 'full'"),
        ({"feed": "rays"}, "allowed are 'direct', 'ray'"),
    ],
)
def test_a_job_that_cannot_run_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        example_job(tmp_path, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": "destill"}, "allowed are 'next_token', 'distill'"),
        ({"steps": 0}, "the least allowed is 1"),
        ({"optimizer": OptimizerConfig(warmup_steps=11)}, "warm up and cool down for fewer"),
    ],
)
def test_a_training_config_that_cannot_run_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**({"model": gemma2_tiny(), "steps": 10, "global_batch": 2} | change))


@pytest.mark.parametrize(
    "change",
    [{"beta1": 1.0}, {"eps": 0.0}, {"decay": "cosin"}, {"final_learning_rate_fraction": 2.0}, {"grad_clip": -1.0}],
)
def test_an_optimizer_that_cannot_work_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        OptimizerConfig(**change)


def test_a_job_can_be_pickled_and_its_identity_is_json(tmp_path: Path) -> None:
    job = example_job(tmp_path)
    assert pickle.loads(pickle.dumps(job)) == job
    moved = dataclasses.replace(job, device="xla", microbatch_rows=2, remat="full", checkpoints_uri="elsewhere")
    assert moved.identity() == job.identity()
    assert dataclasses.replace(job, order_seed=9).identity() != job.identity()
