"""Between documents and packed rows: which rows hold a document, which documents a row holds.

    document id -> find_document -> (shard, row, span) ... and back: rows -> documents_of_rows

Both read the `documents` column of SEQUENCES alone. Cost: 1e6 rows take about a second a core, whatever the document.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.errors import UserError
from data.shards import open_parquet, read_table

READERS = 4
"""shards read at once: decoding releases the interpreter's lock"""


class Place(NamedTuple):
    """Where a part of a document lies in packed rows."""

    shard: int
    """number of the shard"""
    row: int
    """number of the row in the shard"""
    start: int
    """its first token's number in the document"""
    end: int
    """the number after its last token's"""


def find_document(shard_uris: Sequence[str], document: str) -> list[Place]:
    """Every place of a document in a SEQUENCES dataset, in the order of shards and rows."""

    def search(shard: int) -> list[Place]:
        lists = read_table(shard_uris[shard], ["documents"])["documents"]
        places, first = [], 0
        for chunk in lists.chunks:
            spans = chunk.flatten()
            hits = np.flatnonzero(pc.equal(spans.field("id"), document).to_numpy(zero_copy_only=False))
            offsets = chunk.offsets.to_numpy() - chunk.offsets[0].as_py()
            rows = np.searchsorted(offsets, hits, side="right") - 1
            for row, hit in zip(rows.tolist(), hits.tolist(), strict=True):
                span = spans[hit].as_py()
                places.append(Place(shard, first + row, span["start"], span["end"]))
            first += len(chunk)
        return places

    with ThreadPoolExecutor(READERS) as pool:
        return [place for places in pool.map(search, range(len(shard_uris))) for place in places]


def documents_of_rows(shard_uris: Sequence[str], rows: Iterable[tuple[int, int]]) -> dict[tuple[int, int], list[dict]]:
    """For each (shard, row): its documents as {"id", "start", "end"}, in order. Reads one row group a row at most.

    Raises UserError where a shard has no such row.
    """
    documents: dict[tuple[int, int], list[dict]] = {}
    by_shard: dict[int, list[int]] = {}
    for shard, row in rows:
        by_shard.setdefault(shard, []).append(row)
    for shard, wanted in sorted(by_shard.items()):
        if not 0 <= shard < len(shard_uris):
            raise UserError(f"there is no shard {shard}; there are {len(shard_uris)}")
        file = open_parquet(shard_uris[shard])
        ends = np.cumsum([file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)])
        if wanted and not 0 <= max(wanted) < (ends[-1] if len(ends) else 0):
            raise UserError(f"{shard_uris[shard]} has {ends[-1] if len(ends) else 0} rows and no row {max(wanted)}")
        groups: dict[int, pa.ChunkedArray] = {}
        for row in wanted:
            group = int(np.searchsorted(ends, row, side="right"))
            if group not in groups:
                try:
                    groups[group] = file.read_row_group(group, columns=["documents"])["documents"]
                except (OSError, pa.ArrowException) as error:
                    raise UserError(
                        f"{shard_uris[shard]} is damaged ({error}); remove the run that wrote it and run that again"
                    ) from error
            documents[shard, row] = groups[group][row - (int(ends[group - 1]) if group else 0)].as_py()
    return documents
