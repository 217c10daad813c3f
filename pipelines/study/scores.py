"""Scores of a student on held-out rows: loss, calibration, and agreement with its teacher.

Losses are summed for each row, so that differences between arms can be taken row by row and summed over documents.

Calibration error: targets are in 15 bins of the probability of the likeliest id. The error is the mean over targets of
|share of correct ids - mean probability| of their bin (Guo et al. 2017, arXiv 1706.04599, equation 3).
"""

from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model import Gemma2
from pipelines.study.sizes import Sizes
from pipelines.study.text import COLUMNS, Rows
from training.loss import next_token_loss

BINS = 15


@torch.no_grad()
def curve_point(model: Gemma2, heldout: Rows, sizes: Sizes) -> tuple[float, int]:
    """(loss in nats, number of targets), summed over the first `eval_rows` rows."""
    loss_sum, targets = 0.0, 0
    for start in range(0, sizes.eval_rows, sizes.batch_rows):
        batch = heldout.batch(slice(start, min(start + sizes.batch_rows, sizes.eval_rows)))
        loss, count = next_token_loss(model, _tensors(batch))
        loss_sum, targets = loss_sum + loss.item(), targets + int(count.item())
    return loss_sum, targets


def final_scores(
    models: Sequence[Gemma2], teacher: Gemma2, heldout: Rows, sizes: Sizes, pool: Executor
) -> list[dict[str, Any]]:
    """The `Scores.summary` of each model; the teacher computes its log-probabilities once for all models."""
    scores = [Scores() for _ in models]
    for start in range(0, len(heldout), sizes.batch_rows):
        batch = _tensors(heldout.batch(slice(start, start + sizes.batch_rows)))
        taught = _log_probs(teacher, batch)
        list(pool.map(lambda pair: pair[0].add(_log_probs(pair[1], batch), taught, batch), zip(scores, models)))  # noqa: B023, B905
    return [score.summary(heldout) for score in scores]


class Scores:
    """Sums over the rows so far."""

    def __init__(self) -> None:
        self.loss_of_rows: list[float] = []
        self.targets_of_rows: list[int] = []
        self.bins = np.zeros((3, BINS))
        """for each bin: targets, sum of the probabilities of the likeliest id, number of correct ids"""
        self.agreed = 0
        self.kl_sum = 0.0

    def add(self, log_q_BTV: Tensor, log_p_BTV: Tensor, batch: dict[str, Tensor]) -> None:
        """Adds rows. log_q: log-probabilities of the student, log_p: log-probabilities of the teacher."""
        mask_BT = batch["loss_mask"]
        next_BT = batch["tokens"].roll(-1, 1).long()
        losses_BT = -log_q_BTV.gather(-1, next_BT[..., None])[..., 0] * mask_BT
        self.loss_of_rows += losses_BT.double().sum(1).tolist()
        self.targets_of_rows += mask_BT.sum(1).tolist()
        greatest_BT, likeliest_BT = log_q_BTV.max(-1)
        sure = greatest_BT[mask_BT].exp().double().numpy()
        right = (likeliest_BT == next_BT)[mask_BT].numpy()
        which = np.minimum((sure * BINS).astype(int), BINS - 1)
        for line, weights in enumerate((None, sure, right)):
            self.bins[line] += np.bincount(which, weights, BINS)
        self.agreed += int((likeliest_BT == log_p_BTV.argmax(-1))[mask_BT].sum())
        self.kl_sum += float(((log_p_BTV.exp() * (log_p_BTV - log_q_BTV)).sum(-1) * mask_BT).double().sum())

    def summary(self, heldout: Rows) -> dict[str, Any]:
        targets = sum(self.targets_of_rows)
        count, sure, right = self.bins
        return {
            "loss": sum(self.loss_of_rows) / targets,
            "targets": targets,
            "calibration_error": float(np.abs(right - sure).sum() / targets),
            "accuracy": float(right.sum() / targets),
            "agreement": self.agreed / targets,
            "kl_to_teacher": self.kl_sum / targets,
            "bins": [count.tolist(), sure.tolist(), right.tolist()],
            "loss_of_rows": self.loss_of_rows,
            "targets_of_rows": self.targets_of_rows,
            "document_of_rows": heldout.documents.tolist(),
        }


@torch.no_grad()
def _log_probs(model: Gemma2, batch: dict[str, Tensor]) -> Tensor:
    return model(batch["tokens"], batch["positions"], batch["segment_ids"]).log_softmax(-1)


def _tensors(batch: Any) -> dict[str, Tensor]:
    return {name: torch.from_numpy(batch[name]) for name in COLUMNS}
