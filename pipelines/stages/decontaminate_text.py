"""Drops documents that overlap evaluation sets, or masks the shared spans; `hits` lists each overlap and its size.

Shard k of the output is made of shard k of the input. Each worker holds the n-grams of all evaluation sets in memory,
16 bytes for each n-gram.
"""

import functools
from collections import Counter
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from data import decontaminate, schema, shards
from data.absent import absent
from infra.prices import OURS
from pipelines.account.costs import TextCost, core_speed
from pipelines.engine.declaration import Declaration
from pipelines.engine.errors import UserError
from pipelines.engine.inputs import ExternalFile, Read
from pipelines.engine.shard_map import Part, ShardOutput, dataset_of, map_shards, total_dropped, uris_of
from pipelines.engine.stage import Context, Outcome

VERSION = 4
WRITER = shards.WRITER
READS = {
    "text": Read(help="documents", dataset="text"),
    "evaluation": Read(help="evaluation sets, one JSONL file for each set; a set has the name of its file", many=True),
}
WRITES = ("text", "hits")
DECLARES = Declaration(cost=TextCost(speed=core_speed(16, source=f"{OURS}: taken like deduplication")))


@dataclass(frozen=True, kw_only=True)
class Config:
    """What counts as an overlap, and what happens to a document that has one."""

    ngram_words: int = 13
    """Consecutive words that a document and an item must share."""
    action: Literal["drop", "mask"] = "drop"
    """Treatment of a document that overlaps: `drop` leaves the document out, `mask` keeps it and takes no loss on the
    shared words."""
    fields: tuple[str, ...] = absent(())
    """Fields of an item whose text is searched for; empty: every string of the item."""

    def __post_init__(self) -> None:
        if not 2 <= self.ngram_words <= 64:
            raise UserError(f"ngram_words is {self.ngram_words}; allowed are 2 to 64, usual are 8 to 13")


@dataclass(frozen=True)
class _Index:
    config: Config

    def __call__(self, files: tuple[ExternalFile, ...]) -> ShardOutput:
        items = [list(decontaminate.read_items(file.pinned, file.name, self.config.fields)) for file in files]
        index, short = decontaminate.index_of(items, self.config.ngram_words)
        if not index.num_rows:
            names = ", ".join(file.name for file in files)
            raise UserError(
                f"no item of {names} has {self.config.ngram_words} words, so no overlap can be found; lower "
                "--ngram-words"
            )
        return ShardOutput(
            parts={"_index": Part(table=index)},
            facts={"items": [sum(item is not None for item in of_file) for of_file in items], "too_short": short},
        )


@functools.lru_cache(maxsize=1)
def _index(uri: str) -> pa.Table:
    """The index, which the worker process keeps between shards."""
    return shards.read_table(uri, decontaminate.INDEX).combine_chunks()


@dataclass(frozen=True)
class _Search:
    config: Config
    index_uri: str
    sets: tuple[str, ...]

    def __call__(self, uri: str) -> ShardOutput:
        words = self.config.ngram_words
        index, table = _index(self.index_uri), shards.read_table(uri, schema.TEXT)
        hits = decontaminate.find_hits(table, index, self.sets, words)
        contaminated = pc.is_in(table["id"], hits["id"].combine_chunks())
        if self.config.action == "drop":
            kept = table.filter(pc.invert(contaminated))
        else:
            kept = decontaminate.mask_spans(table, index, words)
        dropped = table.num_rows - kept.num_rows
        return ShardOutput(
            parts={"text": Part(table=kept), "hits": Part(table=hits)},
            dropped={"contaminated": dropped} if dropped else {},
            facts={"text_bytes": schema.text_bytes(kept["text"])},
        )


def run(context: Context, config: Config) -> Outcome:
    """Raises UserError if two sets have the same name, or if no set has an item that is long enough."""
    files = context.input("evaluation").files
    sets = tuple(decontaminate.set_name(file.name) for file in files)
    if twice := [name for name, count in Counter(sets).items() if count > 1]:
        raise UserError(f"got two evaluation sets with the name {', '.join(twice)}; give their files different names")
    (made,) = map_shards(context, "index", [files], _Index(config))
    (index_uri,) = uris_of(context, [made], "_index")
    receipts = map_shards(context, "search", context.input("text").uris(), _Search(config, index_uri, sets))
    report = {
        name: {"items": items, "too_short": short, "items_found": 0, "documents": 0}
        for name, items, short in zip(sets, made.facts["items"], made.facts["too_short"], strict=True)
    }
    items_hit: set[tuple[str, int]] = set()
    for uri in uris_of(context, receipts, "hits"):
        hits = shards.read_table(uri, ["set", "item"])
        items_hit |= set(zip(hits["set"].to_pylist(), hits["item"].to_pylist(), strict=True))
        for name, documents in _documents(shards.read_table(uri, ["id", "set"])).items():
            report[name]["documents"] += documents
    for name, _ in items_hit:
        report[name]["items_found"] += 1
    return Outcome(
        datasets={
            "text": dataset_of(receipts, "text", text_bytes=sum(receipt.facts["text_bytes"] for receipt in receipts)),
            "hits": dataset_of(receipts, "hits", evaluation_sets=report),
        },
        dropped=total_dropped(receipts),
    )


def _documents(hits: pa.Table) -> Counter[str]:
    """The number of documents of one shard that overlap each set."""
    return Counter(name for name, _ in set(zip(hits["set"].to_pylist(), hits["id"].to_pylist(), strict=True)))
