"""Mistakes in a config are refused with a sentence that says what to do."""

import dataclasses
import math
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from data.logits import CodecSpec
from model import Gemma2, gemma2_tiny
from tests.programs.examples import example_job, moved
from training.config import DistillConfig, OptimizerConfig, TrainingConfig
from training.distill.kinds.full import distill_full_loss
from training.distill.kinds.sample import distill_loss
from training.distill.kinds.topk import distill_topk_loss
from training.loss import LossFunction, LossOptions
from training.objective import loss_function


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 65}, "set the model's vocab_size to 65 or more"),
        ({"config": {"objective": "distill"}}, "needs the teacher's cached logits"),
        (
            {
                "config": {"objective": "distill"},
                "logits": (("a",),),
                "codec": CodecSpec(vocab_size=64, estimator="sample", draws=5),
            },
            "one LOGITS dataset for each",
        ),
        (
            {
                "config": {"objective": "distill"},
                "logits": (("a",), ("b",)),
                "codec": CodecSpec(vocab_size=64, estimator="sample", draws=5, temperature=2.0),
            },
            "cached at temperature 2, and the student would learn at temperature 1; set --distill.temperature 2",
        ),
        ({"workers": 3}, "global_batch 4 is not divisible by 3 workers"),
        ({"microbatch_rows": 3}, "give a divisor of 4"),
        ({"microbatch_rows": 0}, "give a divisor of 4"),
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
        ({"steps": 0}, "it must be finite and at least 1"),
        ({"steps": 10**23}, "steps is 1.*; allowed are 1 to 99,999,999"),
        ({"steps": 10**8}, "allowed are 1 to 99,999,999"),
        ({"global_batch": 10**9}, "global_batch is 1.*; allowed are 1 to 1,048,576"),
        ({"optimizer": OptimizerConfig(warmup_steps=11)}, "give fewer of them, or more --steps"),
        ({"distill": DistillConfig(alpha=0.5)}, "set --objective distill, or leave these fields out"),
    ],
)
def test_a_training_config_that_cannot_run_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**({"model": gemma2_tiny(), "steps": 10, "global_batch": 2} | change))


@pytest.mark.parametrize(
    "change",
    [
        {"beta1": 1.0},
        {"eps": 0.0},
        {"decay": "cosin"},
        {"learning_rate": 0.0},
        {"learning_rate": -1.0},
        {"learning_rate": math.inf},
        {"final_learning_rate_fraction": 2.0},
        {"grad_clip": -1.0},
    ],
)
def test_an_optimizer_that_cannot_work_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        OptimizerConfig(**change)


@pytest.mark.parametrize("change", [{"alpha": 1.0}, {"alpha": -0.1}, {"temperature": 0.0}, {"tail": "ghost"}])
def test_distillation_that_cannot_work_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        DistillConfig(**change)


@pytest.mark.parametrize(
    ("codec", "expected"),
    [
        (CodecSpec(vocab_size=64, estimator="sample", draws=5), partial(distill_loss, draws=5)),
        (CodecSpec(vocab_size=64, estimator="topk"), distill_topk_loss),
        (CodecSpec(vocab_size=64, estimator="full"), distill_full_loss),
    ],
)
def test_the_loss_follows_the_cache_and_the_config(codec: CodecSpec, expected: LossFunction) -> None:
    distill = DistillConfig(alpha=0.3, tail="ground_truth")
    config = TrainingConfig(model=gemma2_tiny(), steps=1, global_batch=2, objective="distill", distill=distill)
    batch = columns_of_every_kind(config.model.vocab_size)
    model = Gemma2(config.model)
    loss, _ = loss_function(config, codec)(model, batch)
    wanted, _ = expected(model, batch, options=LossOptions(distill=distill))  # type: ignore[call-arg]
    assert torch.equal(loss, wanted)


def columns_of_every_kind(vocab_size: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    probs = torch.rand(1, 6, vocab_size, generator=generator).softmax(-1)
    top, ids = probs.topk(3, dim=-1)
    tokens = torch.arange(1, 7, dtype=torch.int32)[None]
    return {
        "tokens": tokens,
        "segment_ids": torch.ones_like(tokens),
        "positions": tokens - 1,
        "loss_mask": tokens < 6,
        "target_ids": ids.int(),
        "target_counts": torch.tensor([3, 1, 1], dtype=torch.int32).expand(1, 6, 3),
        "target_log_probs": top.log(),
        "target_tail": 1.0 - top.sum(-1),
        "target_probs": probs,
    }


def test_a_job_can_be_pickled_and_its_identity_is_json(tmp_path: Path) -> None:
    job = example_job(tmp_path)
    assert pickle.loads(pickle.dumps(job)) == job
    elsewhere = dataclasses.replace(job, checkpoints_uri="elsewhere")
    assert moved(elsewhere, device="xla", microbatch_rows=2, remat="full").identity() == job.identity()
    assert dataclasses.replace(job, order_seed=9).identity() != job.identity()
