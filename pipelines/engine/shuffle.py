"""A shuffle between two phases: rows of N files go to P parts, in one hop or, where those are many, in two.

    one:  file -> P parts;                                         part = the same part of all N files: N x P reads
    two:  file -> sqrt(P) bands; block of files, band -> its parts; part = that of N / sqrt(P) files

Two hops take (N + P) x N / sqrt(P) reads or fewer at N = P, and write all rows once more; a task in between holds about
as much as one file, where rows go to all parts alike. The rows of a part come in the same order either way, so the
bytes that are made of them do not depend on it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from data import exchange
from pipelines.engine.shard_map import Part, Receipt, ShardOutput, map_shards, uris_of
from pipelines.engine.stage import Context

MOST_READS = 1 << 16
"""reads of one hop, at most: as many small Parquet files are written too"""
FEW_PARTS = 16
"""below that a second hop reads as often as it saves"""


@dataclass(frozen=True)
class Split:
    """Which part each row goes to. Picklable: tasks part their rows by it."""

    part_of: Callable[[pa.Table], np.ndarray]
    """int64 [rows], from 0 to `parts` - 1"""
    parts: int
    width: int
    """parts in a band; 1 where there is one hop"""

    def part(self, table: pa.Table) -> Part:
        """The file of one task's rows, for the first hop."""
        bands = -(-self.parts // self.width)
        return Part(data=exchange.exchange_bytes(exchange.split(table, self.part_of(table) // self.width, bands)))


@dataclass(frozen=True)
class Shuffled:
    """Where the rows of each part are."""

    files: tuple[tuple[str, ...], ...]
    """of each band"""
    width: int
    """parts in each file"""

    def gather(self, part: int, schema: pa.Schema) -> pa.Table:
        """The rows of one part, in the order of the first hop's files. Raises UserError where a file is damaged."""
        band, place = divmod(part, self.width)
        return exchange.gather(self.files[band], place, schema)


def plan_split(files: int, parts: int, part_of: Callable[[pa.Table], np.ndarray]) -> Split:
    """How `files` tasks part their rows to `parts`."""
    return Split(part_of, parts, 1 if files * parts <= MOST_READS or parts < FEW_PARTS else math.isqrt(parts))


def finish_shuffle(
    context: Context, phase: str, split: Split, first: Sequence[Receipt], dataset: str, schema: pa.Schema
) -> Shuffled:
    """The second hop, if there is one, over what the tasks of the phase `phase` left in `dataset`."""
    uris = uris_of(context, first, dataset)
    if split.width == 1:
        return Shuffled((tuple(uris),), split.parts)
    bands = -(-split.parts // split.width)
    blocks = -(-len(uris) // bands)
    tasks = [(band, block) for band in range(bands) for block in range(blocks)]
    work = _Second(split, tuple(uris), bands, f"{dataset}2", schema)
    made = uris_of(context, map_shards(context, f"{phase}2", tasks, work), f"{dataset}2")
    return Shuffled(tuple(tuple(made[band * blocks : (band + 1) * blocks]) for band in range(bands)), split.width)


@dataclass(frozen=True)
class _Second:
    """One band of a block of files -> the parts of the band."""

    split: Split
    uris: tuple[str, ...]
    block: int
    """files in a block"""
    dataset: str
    schema: pa.Schema

    def __call__(self, task: tuple[int, int]) -> ShardOutput:
        band, block = task
        rows = exchange.gather(self.uris[block * self.block : (block + 1) * self.block], band, self.schema)
        parts = exchange.split(rows, self.split.part_of(rows) - band * self.split.width, self.split.width)
        return ShardOutput(parts={self.dataset: Part(data=exchange.exchange_bytes(parts))})
