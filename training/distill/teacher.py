"""The teacher's side of distillation: what a kind of distribution keeps of softmax(logits / T) at each target.

All of this runs on the device, in chunks of one shape. Only ids and a few numbers for each target come to the host,
while the device computes the next batch. training/distill/kinds/ has what each kind keeps, with formulas and cost.

Shapes: P positions, R positions of a batch, D model, V vocabulary.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data.logits import Targets
from model import TableModel
from training.backends.base import Backend
from training.distill.kind import Kind, check_finite
from training.feed import HostBatch

Result = TypeVar("Result")

CHUNK_POSITIONS = 128
"""Positions whose logits exist at once: enough rows for an efficient product, 131 MB at 256,000 ids."""


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

    The forward pass takes the whole batch, and the head takes only the targets, in chunks. Raises UserError for logits
    that are not finite.
    """
    before: _Launched | None = None
    for batch in batches:
        launched = _launch(model, backend, batch, kind, seed, teacher_hash)
        if before is not None:
            yield before.collect()
        before = launched
    if before is not None:
        yield before.collect()


def capped_logits(model: TableModel, hidden_PD: Tensor) -> Tensor:
    """The same bits as `Gemma2.logits`, computed in the memory of the product."""
    products_PV = F.linear(hidden_PD.float(), model.table.float())
    return products_PV.div_(model.config.final_softcap).tanh_().mul_(model.config.final_softcap)


def map_logits(
    model: TableModel,
    backend: Backend,
    batch: HostBatch,
    arrays: Mapping[str, np.ndarray],
    work: Callable[[Tensor, dict[str, Tensor]], Result],
) -> list[Result]:
    """`work` of the logits [CHUNK_POSITIONS, V] at the targets of a batch, row by row, chunk by chunk.

    `work` also receives the rows of `arrays`, one for each target, that belong to the logits. Its results for positions
    beyond the last target have no meaning. All chunks have one shape, so XLA compiles one program, and `work` is part
    of this program: logits are never written out.
    """
    length = batch["tokens"].shape[1]
    index = np.concatenate([row * length + np.flatnonzero(mask) for row, mask in enumerate(batch["loss_mask"])])
    chunks = max(1, -(-len(index) // CHUNK_POSITIONS))
    padded = {
        name: np.concatenate([array, np.zeros((chunks * CHUNK_POSITIONS - len(index), *array.shape[1:]), array.dtype)])
        for name, array in {**arrays, "index": index.astype(np.int32)}.items()
    }
    columns = backend.to_device({name: batch[name] for name in ("tokens", "positions", "segment_ids")})
    hidden_RD = model.hidden(columns["tokens"], columns["positions"], columns["segment_ids"]).flatten(0, 1)
    backend.step_boundary()
    results = []
    for start in range(0, chunks * CHUNK_POSITIONS, CHUNK_POSITIONS):
        chunk = backend.to_device({name: array[start : start + CHUNK_POSITIONS] for name, array in padded.items()})
        results.append(work(capped_logits(model, hidden_RD.index_select(0, chunk["index"])), chunk))
        backend.step_boundary()
    return results


@dataclass(frozen=True)
class _Launched:
    """A batch that the device computes."""

    kind: Kind
    chunks: list[tuple[Tensor, ...]]
    row_targets: list[int]

    def collect(self) -> list[Targets]:
        """Waits for the device; returns the targets of each row, cut out of the chunks."""
        total, ends = sum(self.row_targets), np.cumsum(self.row_targets)[:-1]
        on_host = zip(*([part.cpu().numpy() for part in chunk] for chunk in self.chunks), strict=True)
        kept = [np.concatenate(parts)[:total] for parts in on_host]
        check_finite(kept[-1])
        return [self.kind.targets(*row) for row in zip(*(np.split(part, ends) for part in kept), strict=True)]


@torch.no_grad()
def _launch(
    model: TableModel, backend: Backend, batch: HostBatch, kind: Kind, seed: int, teacher_hash: str
) -> _Launched:
    """Hands the forward pass and the chunks to the device."""
    places = [np.flatnonzero(mask) for mask in batch["loss_mask"]]
    noise = kind.noise(batch, places, seed, teacher_hash)
    launched = map_logits(model, backend, batch, noise, kind.keep)
    return _Launched(kind, launched, [len(targets) for targets in places])
