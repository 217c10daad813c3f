"""Keeps the first of all equal and nearly equal documents; `clusters` lists each dropped document with the kept one.

Phases on Ray Data: keys of each shard, candidates in each bucket of keys, shingles of the candidates, links of those
that are similar, connected components over parts of the links, ids of the kept documents, drops in each shard. Only
keys, links and shingles of candidates are shuffled, in parts of bounded size.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from data import components, dedup, exchange, schema, shards
from pipelines.account.costs import TextCost, core_speed
from pipelines.engine.declaration import Declaration
from pipelines.engine.errors import UserError
from pipelines.engine.inputs import Read
from pipelines.engine.shard_map import Part, Receipt, ShardOutput, dataset_of, map_shards, total_dropped, uris_of
from pipelines.engine.shuffle import Shuffled, Split, finish_shuffle, plan_split
from pipelines.engine.stage import Context, Outcome

VERSION = 6
WRITER = shards.WRITER
READS = {"text": Read(help="documents", dataset="text")}
WRITES = ("text", "clusters")
DECLARES = Declaration(cost=TextCost(speed=core_speed(16)))
PART_ROWS = 4_000_000
"""Keys or links that one task takes, about; they need about 300 MB."""
PART_TEXT_BYTES = 256_000_000
"""Text of candidates that one task compares, about. A task reads it file by file and keeps only the leaders."""
MOST_ROUNDS = 64
OPERATIONS: tuple[Literal["large", "small"], ...] = ("large", "small")
"""Operations of one round, in order."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """What counts as a duplicate. The defaults for near-duplicates are FineWeb's (arXiv 2406.17557, section 3.4)."""

    near: bool = True
    """Removal of near-duplicates too (MinHash-LSH); False: only texts that are equal up to white space and folding:
    letter case, Unicode form, characters that do not show."""
    shingle_words: int = 5
    """Words in a shingle."""
    bands: int = 14
    """Bands of the signature: documents that agree in at least one band are compared."""
    band_hashes: int = 8
    """MinHashes in a band; half of all pairs are found at a similarity of about (1/bands)^(1/band_hashes)."""
    min_similarity: float = 0.75
    """Least Jaccard similarity of the shingles of near-duplicates, from 0 to 1; 0: all documents that agree in a band
    count as near-duplicates, without a comparison."""
    seed: int = 0
    """Seed of the MinHashes."""
    part_rows: int = PART_ROWS
    """Keys or links that one task takes, about; the result does not depend on this number."""

    def __post_init__(self) -> None:
        for name, most in (("shingle_words", 64), ("bands", 1024), ("band_hashes", 1024), ("part_rows", 1 << 40)):
            value = getattr(self, name)
            if not 1 <= value <= most:
                raise UserError(f"{name} is {value}; allowed are 1 to {most}")
        if not 0 <= self.min_similarity <= 1:
            raise UserError(f"min_similarity is {self.min_similarity}; allowed are 0 to 1 (default: 0.75)")

    @property
    def keys_a_document(self) -> int:
        return 1 + (self.bands if self.near else 0)


@dataclass(frozen=True)
class _ByColumn:
    """The part of a row: by its key or group, the neighbourhood of its node, or the shard of its node or `other`."""

    kind: Literal["key", "group", "neighbourhood", "shard_of_node", "shard_of_other"]
    parts: int

    def __call__(self, table: pa.Table) -> np.ndarray:
        if self.kind == "key":
            return (table["high"].to_numpy() % np.uint64(self.parts)).astype(np.int64)
        if self.kind in ("neighbourhood", "group"):
            return components.part_of(table["group" if self.kind == "group" else "node"].to_numpy(), self.parts)
        return table["node" if self.kind == "shard_of_node" else "other"].to_numpy() >> 32


@dataclass(frozen=True)
class _Keys:
    config: Config
    split: Split

    def __call__(self, task: tuple[int, str]) -> ShardOutput:
        shard, uri = task
        config = self.config
        keys = dedup.keys_of(
            shards.read_table(uri, ["text"]),
            shard,
            bands=config.bands if config.near else 0,
            rows=config.band_hashes,
            shingle_words=config.shingle_words,
            seed=config.seed,
        )
        return ShardOutput(parts={"_keys": self.split.part(keys)})


@dataclass(frozen=True)
class _Links:
    keys: Shuffled
    split: Split
    by_shard: Split
    bands: int
    verified: bool

    def __call__(self, bucket: int) -> ShardOutput:
        links, candidates = dedup.links_in(self.keys.gather(bucket, dedup.KEYS), self.bands)
        if not self.verified:
            links, candidates = np.concatenate([links, candidates]), candidates[:0]
        # the first document of a bucket is a candidate too: the others are compared with it
        firsts = np.repeat(np.unique(candidates[:, 1])[:, None], 2, axis=1)
        requests = _table(np.concatenate([candidates, firsts]))
        return ShardOutput(
            parts={
                "_links": _linked(self.split, links, both=True),
                "_candidates": self.by_shard.part(requests),
            },
            facts={"candidates": requests.num_rows},
        )


@dataclass(frozen=True)
class _Shingles:
    candidates: Shuffled
    split: Split
    shingle_words: int

    def __call__(self, task: tuple[int, str]) -> ShardOutput:
        shard, uri = task
        candidates = self.candidates.gather(shard, dedup.LINKS)
        shingles = dedup.shingles_of(shards.read_table(uri, ["text"]), candidates, self.shingle_words)
        return ShardOutput(parts={"_shingles": self.split.part(shingles)})


@dataclass(frozen=True)
class _Similar:
    shingles: Shuffled
    split: Split
    min_similarity: float

    def __call__(self, part: int) -> ShardOutput:
        links = dedup.similar(self.shingles.each(part, dedup.SHINGLES), self.min_similarity)
        return ShardOutput(parts={"_links": _linked(self.split, links, both=True)})


@dataclass(frozen=True)
class _Round:
    """One operation on one part of the links: `large` or `small`, or `stars` if one part holds all links."""

    operation: Literal["stars", "large", "small"]
    dataset: str
    """Name of the output, which belongs to this round alone: a driver in another round neither reads nor replaces
    it."""
    links: Shuffled
    split: Split

    def __call__(self, part: int) -> ShardOutput:
        table = self.links.gather(part, dedup.LINKS)
        links = np.stack([table["node"].to_numpy(), table["other"].to_numpy()], axis=1)
        if self.operation == "stars":
            return ShardOutput(parts={self.dataset: _whole(components.stars(links))})
        if self.operation == "small":
            return ShardOutput(parts={self.dataset: _linked(self.split, components.small_star(links), both=True)})
        edges = components.unique_edges(links[links[:, 0] > links[:, 1]])
        # `_began` shows whether the round changed anything; if it did not, `_began` is the result.
        return ShardOutput(
            parts={
                self.dataset: _linked(self.split, components.large_star(links), both=False),
                f"{self.dataset}_began": _whole(edges),
            },
            facts={"checksum": components.checksum(edges), "links": len(edges)},
        )


@dataclass(frozen=True)
class _Regroup:
    """Sends each link to the shard that holds its kept document."""

    split: Split

    def __call__(self, uri: str) -> ShardOutput:
        return ShardOutput(parts={"_kept": self.split.part(exchange.gather([uri], 0, dedup.LINKS))})


@dataclass(frozen=True)
class _Name:
    kept: Shuffled
    split: Split

    def __call__(self, task: tuple[int, str]) -> ShardOutput:
        shard, uri = task
        links = self.kept.gather(shard, dedup.LINKS)
        return ShardOutput(
            parts={"_drops": self.split.part(dedup.name_kept(shards.read_table(uri, ["id", "text"]), links))}
        )


@dataclass(frozen=True)
class _Drop:
    drops: Shuffled

    def __call__(self, task: tuple[int, str]) -> ShardOutput:
        shard, uri = task
        drops = self.drops.gather(shard, dedup.DROPS)
        kept, clusters = dedup.drop_rows(shards.read_table(uri, schema.TEXT), drops)
        counts = clusters["reason"].value_counts().to_pylist()
        return ShardOutput(
            parts={"text": Part(table=kept), "clusters": Part(table=clusters)},
            dropped={count["values"]: count["counts"] for count in counts},
            facts={"text_bytes": schema.text_bytes(kept["text"])},
        )


def run(context: Context, config: Config) -> Outcome:
    given = context.input("text")
    tasks = list(enumerate(given.uris()))
    count = len(tasks)
    buckets = max(1, -(-given.data.rows * config.keys_a_document // config.part_rows))
    by_key = plan_split(count, buckets, _ByColumn("key", buckets))
    made = map_shards(context, "keys", tasks, _Keys(config, by_key))
    keys = finish_shuffle(context, "keys", by_key, made, "_keys", dedup.KEYS)
    stars = _components(context, config, tasks, keys, buckets)
    by_kept = plan_split(len(stars), max(count, 1), _ByColumn("shard_of_other", count))
    made = map_shards(context, "regroup", stars, _Regroup(by_kept))
    kept = finish_shuffle(context, "regroup", by_kept, made, "_kept", dedup.LINKS)
    by_dropped = plan_split(count, max(count, 1), _ByColumn("shard_of_node", count))
    made = map_shards(context, "name", tasks, _Name(kept, by_dropped))
    drops = finish_shuffle(context, "name", by_dropped, made, "_drops", dedup.DROPS)
    receipts = map_shards(context, "drop", tasks, _Drop(drops))
    text_bytes = sum(receipt.facts["text_bytes"] for receipt in receipts)
    return Outcome(
        datasets={
            "text": dataset_of(receipts, "text", text_bytes=text_bytes),
            "clusters": dataset_of(receipts, "clusters"),
        },
        dropped=total_dropped(receipts),
    )


def _links(
    context: Context, config: Config, tasks: list[tuple[int, str]], keys: Shuffled, split: Split
) -> list[Receipt]:
    """Receipts of `_links`: of equal texts, and of candidates that are similar."""
    parts, count = split.parts, len(tasks)
    verified = config.near and config.min_similarity > 0
    by_shard = plan_split(parts, max(count, 1), _ByColumn("shard_of_node", count))
    work = _Links(keys, split, by_shard, config.bands if config.near else 0, verified)
    made = map_shards(context, "links", range(parts), work)
    candidates = sum(receipt.facts["candidates"] for receipt in made)
    if not candidates:
        return made
    requests = finish_shuffle(context, "candidates", by_shard, made, "_candidates", dedup.LINKS)
    text = context.input("text").data
    document_bytes = text.facts.get("text_bytes", text.bytes) / max(text.rows, 1)
    groups = max(1, math.ceil(candidates * document_bytes / PART_TEXT_BYTES))
    by_group = plan_split(count, groups, _ByColumn("group", groups))
    sent = map_shards(context, "shingles", tasks, _Shingles(requests, by_group, config.shingle_words))
    shingles = finish_shuffle(context, "shingles", by_group, sent, "_shingles", dedup.SHINGLES)
    return [*made, *map_shards(context, "similar", range(groups), _Similar(shingles, split, config.min_similarity))]


def _components(
    context: Context, config: Config, tasks: list[tuple[int, str]], keys: Shuffled, parts: int
) -> list[str]:
    """Files of (node, first of its component): computed at once if all links are in one part, otherwise in rounds."""
    # every bucket gives fewer links than it has keys
    split = plan_split(parts, parts, _ByColumn("neighbourhood", parts))
    made = _links(context, config, tasks, keys, split)
    links = finish_shuffle(context, "links", split, made, "_links", dedup.LINKS)
    if parts == 1:
        return uris_of(context, map_shards(context, "stars", [0], _Round("stars", "_stars", links, split)), "_stars")
    before = -1
    for number in range(MOST_ROUNDS):
        for operation in OPERATIONS:
            phase = f"{operation}{number:02d}"
            made = map_shards(context, phase, range(parts), _Round(operation, f"_{phase}", links, split))
            if operation == "large":
                now = sum(receipt.facts["checksum"] for receipt in made) % (1 << 63)
                if now == before:
                    return uris_of(context, made, f"_{phase}_began")
                before = now
            links = finish_shuffle(context, phase, split, made, f"_{phase}", dedup.LINKS)
    raise AssertionError(f"components not found in {MOST_ROUNDS} rounds; every round but the last changes something")


def _whole(links_E2: np.ndarray) -> Part:
    return Part(data=exchange.exchange_bytes([_table(links_E2)]))


def _table(links_E2: np.ndarray) -> pa.Table:
    return pa.table([links_E2[:, 0], links_E2[:, 1]], schema=dedup.LINKS)


def _linked(split: Split, links_E2: np.ndarray, *, both: bool) -> Part:
    """Links in the part of their larger node, or, with `both`, each link in the parts of both of its nodes."""
    return split.part(_table(np.concatenate([links_E2, links_E2[:, ::-1]]) if both else links_E2))
