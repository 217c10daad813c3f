"""From documents to packed rows and back: which rows hold a document, and which documents a row holds.

    document id -> find_document -> (shard, row, span)          (shard, row) -> documents_of_rows -> documents

Both read only the `documents` column of SEQUENCES. Cost: a search of 1e6 rows takes about a second on one core.
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
"""shards that are read at the same time: decoding releases the interpreter's lock"""


class Place(NamedTuple):
    """The place of a part of a document in packed rows."""

    shard: int
    """number of the shard"""
    row: int
    """number of the row in the shard"""
    start: int
    """number of the part's first token in the document"""
    end: int
    """number of the token after the part's last one"""


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
    """The documents of each (shard, row) as {"id", "start", "end"}, in order. Reads at most one row group a row.

    Raises UserError if a shard has no such row.
    """
    documents: dict[tuple[int, int], list[dict]] = {}
    by_shard: dict[int, list[int]] = {}
    for shard, row in rows:
        by_shard.setdefault(shard, []).append(row)
    for shard, wanted in sorted(by_shard.items()):
        if not 0 <= shard < len(shard_uris):
            raise UserError(
                f"got shard {shard}; the dataset has {len(shard_uris)} shards, counted from 0: choose one of them"
            )
        file = open_parquet(shard_uris[shard])
        ends = np.cumsum([file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)])
        if wanted and not 0 <= max(wanted) < (ends[-1] if len(ends) else 0):
            rows_of_shard = ends[-1] if len(ends) else 0
            raise UserError(
                f"got row {max(wanted)} of {shard_uris[shard]}; it has {rows_of_shard} rows, counted from 0: choose "
                "one of them"
            )
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
