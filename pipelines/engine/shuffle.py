"""A shuffle between two phases: rows of N files go to P parts, in one hop or, if N x P is large, in two hops.

    one hop:   file -> P parts;                                            a part is read from all N files: N x P reads
    two hops:  file -> sqrt(P) bands; block of files, band -> its parts;   a part is read from N / sqrt(P) files

At N = P, two hops take at most (N + P) x N / sqrt(P) reads, and they write all rows once more. If rows are spread
evenly over the parts, a task of the second hop holds about as much as one file. The rows of a part have the same order
with one hop and with two, so the number of hops changes no byte of the result.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from data import exchange
from pipelines.engine.shard_map import Part, Receipt, ShardOutput, map_shards, uris_of
from pipelines.engine.stage import Context

MOST_READS = 1 << 16
"""largest number of reads of one hop; a hop writes as many small Parquet files"""
FEW_PARTS = 16
"""number of parts below which a second hop costs as many reads as it saves"""


@dataclass(frozen=True)
class Split:
    """The part that each row goes to. Picklable, because tasks split their rows by it."""

    part_of: Callable[[pa.Table], np.ndarray]
    """table -> part of each row: int64 [rows], from 0 to `parts` - 1"""
    parts: int
    width: int
    """number of parts in a band; 1 for a shuffle in one hop"""

    def part(self, table: pa.Table) -> Part:
        """The file of one task's rows, for the first hop."""
        bands = -(-self.parts // self.width)
        return Part(data=exchange.exchange_bytes(exchange.split(table, self.part_of(table) // self.width, bands)))


@dataclass(frozen=True)
class Shuffled:
    """The files that hold the rows of each part."""

    files: tuple[tuple[str, ...], ...]
    """URIs of the files of each band"""
    width: int
    """number of parts in each file"""

    def gather(self, part: int, schema: pa.Schema) -> pa.Table:
        """The rows of one part, in the order of the first hop's files. Raises UserError if a file is damaged."""
        band, place = divmod(part, self.width)
        return exchange.gather(self.files[band], place, schema)

    def each(self, part: int, schema: pa.Schema) -> Iterator[pa.Table]:
        """The rows of one part as `gather` has them, one file after the other, so that few are in memory."""
        band, place = divmod(part, self.width)
        return (exchange.gather([file], place, schema) for file in self.files[band])


def plan_split(files: int, parts: int, part_of: Callable[[pa.Table], np.ndarray]) -> Split:
    """The split of the rows of `files` tasks into `parts` parts, in one hop or two."""
    return Split(part_of, parts, 1 if files * parts <= MOST_READS or parts < FEW_PARTS else math.isqrt(parts))


def finish_shuffle(
    context: Context, phase: str, split: Split, first: Sequence[Receipt], dataset: str, schema: pa.Schema
) -> Shuffled:
    """Runs the second hop, if there is one, over the files of `dataset` that the tasks of `phase` wrote."""
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
    """A task of the second hop: one band of a block of files -> the parts of the band."""

    split: Split
    uris: tuple[str, ...]
    block: int
    """number of files in a block"""
    dataset: str
    schema: pa.Schema

    def __call__(self, task: tuple[int, int]) -> ShardOutput:
        band, block = task
        rows = exchange.gather(self.uris[block * self.block : (block + 1) * self.block], band, self.schema)
        parts = exchange.split(rows, self.split.part_of(rows) - band * self.split.width, self.split.width)
        return ShardOutput(parts={self.dataset: Part(data=exchange.exchange_bytes(parts))})
