"""Leaves out documents that are empty or too long; every one is kept as a reject with its reason.

Shard k of the output is made of shard k of the input.
"""

from dataclasses import dataclass

from data import filters, schema, shards
from pipelines.shard_map import Part, ShardOutput, dataset_of, map_shards, total_dropped
from pipelines.stage import Context, Outcome, Read

VERSION = 1
READS = {"text": Read(help="documents", dataset="text")}
WRITES = ("text", "rejects")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Thresholds."""

    max_characters: int = 1_000_000
    """longest document kept, in characters"""

    def __post_init__(self) -> None:
        if self.max_characters < 1:
            raise ValueError(f"max_characters is {self.max_characters}; at least 1")


@dataclass(frozen=True)
class _Filter:
    config: Config

    def __call__(self, uri: str) -> ShardOutput:
        rules = {"empty": filters.not_empty, "too_long": filters.at_most(self.config.max_characters)}
        kept, rejects = filters.filter_table(shards.read_table(uri, schema.TEXT.names), rules)
        counts = rejects["reason"].value_counts().to_pylist()
        return ShardOutput(
            parts={"text": Part(table=kept), "rejects": Part(table=rejects)},
            dropped={count["values"]: count["counts"] for count in counts},
            facts={"text_bytes": sum(len(text.encode()) for text in kept["text"].to_pylist())},
        )


def run(context: Context, config: Config) -> Outcome:
    """Raises ValueError where nothing is left."""
    receipts = map_shards(context, "filter", context.input("text").uris(), _Filter(config))
    text = dataset_of(receipts, "text", text_bytes=sum(receipt.facts["text_bytes"] for receipt in receipts))
    dropped = total_dropped(receipts)
    if not text.rows:
        raise ValueError(f"no document is left, dropped were {dropped}; raise --max-characters, or collect other text")
    return Outcome(datasets={"text": text, "rejects": dataset_of(receipts, "rejects")}, dropped=dropped)
