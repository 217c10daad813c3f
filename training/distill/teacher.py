"""The teacher's side of distillation: what a kind of distribution keeps of softmax(logits / T) at each target.

All of this runs on the device, in slices of one shape (training/logit_slices.py). Only ids and a few numbers for each
position come to the host, while the device computes the next batch. training/distill/kinds/ has what each kind keeps,
with formulas and cost.

Shapes: B batch, T time, P positions of a slice, D model, V vocabulary.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.logits import Targets
from model import TableModel
from training.backends.base import Backend
from training.distill.kind import Kind, check_finite
from training.feed import HostBatch
from training.logit_slices import Columns, Work


def capture(
    model: TableModel,
    backend: Backend,
    batches: Iterable[HostBatch],
    kind: Kind,
    *,
    seed: int,
    teacher_hash: str,
) -> Iterator[list[Targets]]:
    """The values that the kind keeps at the targets, for each batch and for each row of the batch, in order.

    Raises UserError for logits that are not finite.
    """
    before: _Launched | None = None
    for batch in batches:
        launched = _launch(model, backend, batch, kind, seed, teacher_hash)
        if before is not None:
            yield before.collect()
        before = launched
    if before is not None:
        yield before.collect()


def map_logits(
    model: TableModel,
    backend: Backend,
    batch: HostBatch,
    arrays: Mapping[str, np.ndarray],
    work: Work,
    constants: Mapping[str, np.ndarray] | None = None,
) -> tuple[Tensor, ...]:
    """The results of `work` on the capped logits of a batch, [B, T, ...] each, a slice of rows x positions at a time.

    `work` also receives the rows of `arrays`, one for each target, and the `constants`. Its results at positions
    without a target have no meaning; `at_targets` leaves them out. The whole batch is one program for XLA, `work`
    included.
    """
    mask_BT = batch["loss_mask"]
    spread = {}
    for name, array in arrays.items():
        spread[name] = np.zeros((*mask_BT.shape, *array.shape[1:]), array.dtype)
        spread[name][mask_BT] = array
    columns = backend.to_device({name: batch[name] for name in ("tokens", "positions", "segment_ids")} | spread)
    tokens, positions, segment_ids = (columns.pop(name) for name in ("tokens", "positions", "segment_ids"))
    hidden_BTD = model.hidden(tokens, positions, segment_ids)
    results = backend.run_slices(
        hidden_BTD,
        model.table,
        model.config.final_softcap,
        columns,
        backend.to_device(constants) if constants else {},
        work,
    )
    backend.step_boundary()
    return results


def at_targets(batch: HostBatch, results: Iterable[Tensor]) -> list[np.ndarray]:
    """The results of `map_logits` at the targets of the batch, row by row, on the host; waits for the device."""
    return [result.cpu().numpy()[batch["loss_mask"]] for result in results]


@dataclass(frozen=True)
class _Launched:
    """A batch that the device computes."""

    kind: Kind
    batch: HostBatch
    results: tuple[Tensor, ...]

    def collect(self) -> list[Targets]:
        """Waits for the device; returns the targets of each row."""
        kept = at_targets(self.batch, self.results)
        check_finite(kept[-1])
        ends = np.cumsum(self.batch["loss_mask"].sum(axis=1))[:-1]
        return [self.kind.targets(*row) for row in zip(*(np.split(part, ends) for part in kept), strict=True)]


@torch.no_grad()
def _launch(
    model: TableModel, backend: Backend, batch: HostBatch, kind: Kind, seed: int, teacher_hash: str
) -> _Launched:
    """Hands the batch to the device."""
    places = [np.flatnonzero(mask) for mask in batch["loss_mask"]]
    noise = kind.noise(batch, places, seed, teacher_hash)

    def keep(logits_PV: Tensor, noise: Columns, _: Columns) -> tuple[Tensor, ...]:
        return kind.keep(logits_PV, noise)

    return _Launched(kind, batch, map_logits(model, backend, batch, noise, keep))
