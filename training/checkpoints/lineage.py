"""The rows that each step took: recorded by the loop, kept with every checkpoint (`data.schema.LINEAGE`).

Every worker records the rows that it received, not the rows that it should have received: the table is evidence.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from data.schema import LINEAGE
from training.backends.base import Backend, SlotColumns, gather_slots, join_slots, slot_columns
from training.job import TrainJob


class LineageRecorder:
    """The rows since the last regular checkpoint."""

    def __init__(self, job: TrainJob, backend: Backend) -> None:
        self._names = [dataset.name for dataset, _ in job.sequences]
        self._backend, self._rows = backend, job.worker_rows
        self._steps: list[tuple[int, np.ndarray, np.ndarray]] = []
        self._before: pa.Table | None = None

    def add(self, step: int, refs: np.ndarray, sequence_hashes: np.ndarray) -> None:
        """This worker's rows of a step (from 1): refs int32 [b, 3] (dataset, shard, row), hashes uint64 [b]."""
        self._steps.append((step, refs, sequence_hashes))

    def restore(self, before: pa.Table | None) -> None:
        """Takes rows of earlier steps from an interim checkpoint; the next regular checkpoint holds them too."""
        self._before = before

    def clear(self) -> None:
        self._steps.clear()
        self._before = None

    def rows_of(self, step: int) -> list[str]:
        """All workers' rows of a recorded step, as "dataset/shard/row" in slot order.

        Every worker must call it: it is an exchange of its own, for bad steps.
        """
        (refs,) = (refs for number, refs, _ in self._steps if number == step)
        return [
            f"{self._names[dataset]}/{shard}/{row}"
            for dataset, shard, row in gather_slots(self._backend, refs)[0].tolist()
        ]

    def columns(self) -> SlotColumns:
        """This worker's rows, which `table` takes from all workers."""
        backend, rows = self._backend, self._rows
        steps = np.repeat(np.array([step for step, _, _ in self._steps], np.int64), rows)
        first = backend.row_share.part * rows
        slots = np.tile(np.arange(first, first + rows, dtype=np.int32), len(self._steps))
        refs = np.concatenate([np.zeros((0, 3), np.int32), *(refs for _, refs, _ in self._steps)])
        hashes = np.concatenate([np.zeros(0, np.uint64), *(hashes for _, _, hashes in self._steps)])
        return slot_columns(backend, steps, slots, refs, hashes)

    def table(self, everyone: Sequence[SlotColumns]) -> pa.Table:
        """The rows of all workers, from their `columns`, in the order of steps and slots."""
        if not self._steps:
            return self._before if self._before is not None else LINEAGE.empty_table()
        steps, slots, refs, hashes = join_slots(everyone)
        order = np.lexsort((slots, steps))
        columns: list[Any] = [
            steps[order],
            slots[order],
            pa.array(self._names).take(pa.array(refs[order, 0])),
            refs[order, 1],
            refs[order, 2],
            hashes[order],
        ]
        table = pa.Table.from_arrays([pa.array(column) for column in columns], schema=LINEAGE)
        return table if self._before is None else pa.concat_tables([self._before, table])
