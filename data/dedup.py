"""Exact duplicates: of all documents with one content_hash the first, in the order of the shards, is kept.

Three passes, bounded by the largest of the buckets: `spread` sends (hash, place, id) of each document to the bucket
of its hash, `duplicates_in` finds the places to drop in one bucket, `drop_rows` leaves them out of each shard. Texts
never move.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data import schema

PLACES = pa.schema(
    [
        pa.field("content_hash", pa.string(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
    ]
)

DROPS = pa.schema([*PLACES, pa.field("kept_id", pa.string(), nullable=False)])


def spread(table: pa.Table, shard: int, buckets: int) -> list[pa.Table]:
    """PLACES of the documents of TEXT shard number `shard`, one table a bucket."""
    places = pa.table(
        [
            table["content_hash"].combine_chunks(),
            table["id"].combine_chunks(),
            pa.array(np.full(table.num_rows, shard), pa.int32()),
            pa.array(np.arange(table.num_rows), pa.int32()),
        ],
        schema=PLACES,
    )
    bucket_of = np.array([int(value[:8], 16) % buckets for value in table["content_hash"].to_pylist()], dtype=np.int64)
    return [places.take(np.flatnonzero(bucket_of == bucket)) for bucket in range(buckets)]


def duplicates_in(places: pa.Table) -> pa.Table:
    """DROPS of one bucket: every document but the first of its content_hash, with the id that was kept."""
    ordered = places.sort_by([("content_hash", "ascending"), ("shard", "ascending"), ("row", "ascending")])
    kept: dict[str, str] = {}
    rows = []
    for row in ordered.to_pylist():
        if row["content_hash"] in kept:
            rows.append({**row, "kept_id": kept[row["content_hash"]]})
        else:
            kept[row["content_hash"]] = row["id"]
    return pa.Table.from_pylist(rows, DROPS)


def drop_rows(table: pa.Table, drops: pa.Table) -> tuple[pa.Table, pa.Table]:
    """(kept TEXT, CLUSTERS of what was dropped) of one shard; `drops` are the DROPS of that shard."""
    keep = np.ones(table.num_rows, dtype=bool)
    keep[drops["row"].to_numpy()] = False
    ordered = drops.sort_by("row")
    clusters = ordered.select(["id", "kept_id", "content_hash"]).cast(schema.CLUSTERS)
    return table.filter(pa.array(keep)), clusters


def of_shard(drops: pa.Table, shard: int) -> pa.Table:
    """DROPS of one shard."""
    return drops.filter(pc.equal(drops["shard"], shard))
