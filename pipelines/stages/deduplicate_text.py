"""Keeps the first of all documents with one content hash; `clusters` says which document stands for which.

Three phases on Ray Data: hashes to buckets, duplicates in each bucket, drops in each shard. Only hashes and ids are
shuffled.
"""

from dataclasses import dataclass

import pyarrow as pa

from data import dedup, schema, shards
from pipelines.shard_map import Part, ShardOutput, dataset_of, map_shards, total_dropped
from pipelines.stage import Context, Outcome, Read

VERSION = 1
READS = {"text": Read(help="documents", dataset="text")}
WRITES = ("text", "clusters")


@dataclass(frozen=True, kw_only=True)
class Config:
    """How it is spread; the result does not depend on it."""

    buckets: int = 8
    """parts that the hashes are spread over: more need less memory each"""

    def __post_init__(self) -> None:
        if not 1 <= self.buckets <= 65536:
            raise ValueError(f"buckets is {self.buckets}; allowed are 1 to 65536")


@dataclass(frozen=True)
class _Spread:
    buckets: int

    def __call__(self, task: tuple[int, str]) -> ShardOutput:
        shard, uri = task
        parts = dedup.spread(shards.read_table(uri, ["id", "content_hash"]), shard, self.buckets)
        return ShardOutput(parts={f"_hashes-{bucket:05d}": Part(table=part) for bucket, part in enumerate(parts)})


def _find(uris: list[str]) -> ShardOutput:
    places = pa.concat_tables([shards.read_table(uri) for uri in uris])
    return ShardOutput(parts={"_drops": Part(table=dedup.duplicates_in(places))})


@dataclass(frozen=True)
class _Drop:
    drops: tuple[str, ...]

    def __call__(self, task: tuple[int, str]) -> ShardOutput:
        shard, uri = task
        drops = pa.concat_tables([dedup.of_shard(shards.read_table(one), shard) for one in self.drops])
        kept, clusters = dedup.drop_rows(shards.read_table(uri, schema.TEXT.names), drops)
        return ShardOutput(
            parts={"text": Part(table=kept), "clusters": Part(table=clusters)},
            dropped={"exact_duplicate": clusters.num_rows} if clusters.num_rows else {},
            facts={"text_bytes": sum(len(text.encode()) for text in kept["text"].to_pylist())},
        )


def run(context: Context, config: Config) -> Outcome:
    tasks = list(enumerate(context.input("text").uris()))
    hashes = map_shards(context, "spread", tasks, _Spread(config.buckets))
    by_bucket = [
        [f"{context.directory}/{receipt.shards[f'_hashes-{bucket:05d}'].name}" for receipt in hashes]
        for bucket in range(config.buckets)
    ]
    found = map_shards(context, "find", by_bucket, _find)
    drops = tuple(f"{context.directory}/{receipt.shards['_drops'].name}" for receipt in found)
    receipts = map_shards(context, "drop", tasks, _Drop(drops))
    text_bytes = sum(receipt.facts["text_bytes"] for receipt in receipts)
    return Outcome(
        datasets={
            "text": dataset_of(receipts, "text", text_bytes=text_bytes),
            "clusters": dataset_of(receipts, "clusters"),
        },
        dropped=total_dropped(receipts),
    )
