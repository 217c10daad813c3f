"""How well a model predicts held-out rows, as sums: nothing is divided here, so the sums of any parts can be added.

    bits per byte = loss_sum / targets * non_bos_tokens / text_bytes / ln 2

A token that starts a row in the middle of its document is no target; in this formula it counts with the mean over
targets.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from model import TableModel
from training.backends.base import Backend
from training.feed import HostBatch
from training.loss import LossOptions, next_token_loss

BOS = 2
FETCH_BATCHES = 16
COLUMNS = ("tokens", "segment_ids", "positions", "loss_mask")


def evaluate(model: TableModel, backend: Backend, batches: Iterable[HostBatch]) -> dict[str, float]:
    """Sums over all batches: loss_sum (nats), targets, non_bos_tokens (padding not counted), text_bytes.

    Batches need `text_bytes` int64 [B] besides the model's columns; without it the sum text_bytes is 0. All batches of
    one shape run as one compiled program.
    """
    sums = {"loss_sum": 0.0, "targets": 0, "non_bos_tokens": 0, "text_bytes": 0}
    options = LossOptions(run_head=backend.run_head)
    pending: list[Tensor] = []

    def flush() -> None:
        for loss_sum, targets in backend.fetch(pending):
            sums["loss_sum"] += loss_sum
            sums["targets"] += round(targets)
        pending.clear()

    with torch.no_grad():
        for batch in batches:
            on_device = backend.to_device({name: batch[name] for name in COLUMNS})
            pending.append(torch.stack(next_token_loss(model, on_device, options)))
            backend.step_boundary()
            sums["non_bos_tokens"] += int(np.sum((batch["segment_ids"] > 0) & (batch["tokens"] != BOS)))
            sums["text_bytes"] += int(np.sum(batch.get("text_bytes", 0)))
            if len(pending) == FETCH_BATCHES:
                flush()
        flush()
    return sums
