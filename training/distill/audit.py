"""Whether a cache of logits fits its teacher: statistics of kept targets against the teacher's logits, on any device.

Each kind of distribution has its own statistics and checks (training/distill/kinds/).
"""

import numpy as np
import torch
from torch import Tensor

from data.logits import Targets
from model import TableModel
from training.backends.base import Backend
from training.distill.kind import Kind, Tally
from training.distill.teacher import at_targets, map_logits
from training.feed import HostBatch
from training.logit_slices import Columns


@torch.no_grad()
def tally(
    model: TableModel, backend: Backend, batch: HostBatch, kept: Targets, kind: Kind, coin_seed: int = 0
) -> Tally:
    """The statistics of a batch; `kept` has the kept targets of all its rows together, padded to one K."""
    positions = len(kept["target_ids"])
    vocabulary = model.config.vocab_size
    coins = np.random.default_rng(coin_seed).integers(0, 2, vocabulary).astype(np.float32) * 2 - 1

    def work(logits_PV: Tensor, kept: Columns, constants: Columns) -> tuple[Tensor, ...]:
        return (kind.statistics(logits_PV, kept, constants["coins"]),)

    (figures,) = at_targets(batch, map_logits(model, backend, batch, kept, work, {"coins": coins}))
    columns = dict(zip((*kind.sums, *kind.largest), figures.astype(np.float64).T, strict=True))
    return Tally(
        positions=positions,
        sums={name: float(columns[name].sum()) for name in kind.sums},
        largest={name: float(columns[name].max(initial=0.0)) for name in kind.largest},
    )
