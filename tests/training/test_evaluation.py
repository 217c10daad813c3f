"""Evaluation gives sums that do not depend on how rows were batched."""

from pathlib import Path

import numpy as np
import pytest
import torch

from model import Gemma2
from tests.programs.examples import example_job, made_up_feed
from training.backends.torch_backend import TorchBackend
from training.evaluation import evaluate


def test_sums_over_batches_are_those_of_the_rows(tmp_path: Path) -> None:
    job = example_job(tmp_path)
    model = Gemma2(job.config.model)
    batches = [dict(batch) for _, batch in made_up_feed(job)(0, 20)]
    for batch in batches:
        batch["tokens"][:, 0] = 2  # <bos>
        batch["segment_ids"][0, 20:] = 0  # padding
        batch["loss_mask"][0, 19:] = False
        batch["text_bytes"] = np.array([5, 6, 7, 8])
    sums = evaluate(model, TorchBackend("cpu"), batches)
    assert sums["targets"] == sum(batch["loss_mask"].sum() for batch in batches)
    assert sums["text_bytes"] == 20 * 26
    assert sums["non_bos_tokens"] == 20 * (4 * 23 - 4)
    rows = [{name: column[i : i + 1] for name, column in batch.items()} for batch in batches for i in range(4)]
    alone = evaluate(model, TorchBackend("cpu"), rows)
    assert alone["loss_sum"] == pytest.approx(sums["loss_sum"], rel=1e-6)
    assert alone | {"loss_sum": 0} == sums | {"loss_sum": 0}
    assert sums["loss_sum"] / sums["targets"] == pytest.approx(np.log(64), rel=0.05)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()
