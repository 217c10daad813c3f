"""Keeps the first of all documents that are equal or nearly so; `clusters` says which document stands for which.

Phases on Ray Data: keys of each shard, links in each bucket of keys, connected components over parts of the links,
names of what is kept, drops in each shard. Only keys and links are shuffled, in parts of bounded size.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from data import components, dedup, exchange, schema, shards
from pipelines.shard_map import Part, Receipt, ShardOutput, dataset_of, map_shards, total_dropped, uris_of
from pipelines.stage import Context, Outcome, Read

VERSION = 4
READS = {"text": Read(help="documents", dataset="text")}
WRITES = ("text", "clusters")
PART_ROWS = 4_000_000
"""keys or links that one task takes, about: some 300 MB"""
SHARD_GROUPS = 256
"""most parts that what is said to single shards is written in"""
MOST_ROUNDS = 64


@dataclass(frozen=True, kw_only=True)
class Config:
    """What counts as a duplicate. The defaults for near ones are FineWeb's (arXiv 2406.17557, section 3.4)."""

    near: bool = True
    """drop near-duplicates too (MinHash-LSH); False: only texts equal up to letter case and white space"""
    shingle_words: int = 5
    """words in a shingle"""
    bands: int = 14
    """bands of the signature: documents that agree in one are taken for duplicates"""
    band_hashes: int = 8
    """MinHashes in a band; half of all pairs are found at a similarity of about (1/bands)^(1/band_hashes)"""
    seed: int = 0
    """of the MinHashes"""
    part_rows: int = PART_ROWS
    """keys or links that one task takes, about; the result does not depend on it"""

    def __post_init__(self) -> None:
        for name, most in (("shingle_words", 64), ("bands", 1024), ("band_hashes", 1024), ("part_rows", 1 << 40)):
            value = getattr(self, name)
            if not 1 <= value <= most:
                raise ValueError(f"{name} is {value}; allowed are 1 to {most}")

    @property
    def keys_a_document(self) -> int:
        return 1 + (self.bands if self.near else 0)


@dataclass(frozen=True)
class _Keys:
    config: Config
    buckets: int

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
        bucket = (keys["high"].to_numpy() % np.uint64(self.buckets)).astype(np.int64)
        return ShardOutput(
            parts={"_keys": Part(data=exchange.exchange_bytes(exchange.split(keys, bucket, self.buckets)))}
        )


@dataclass(frozen=True)
class _Links:
    uris: tuple[str, ...]
    parts: int

    def __call__(self, bucket: int) -> ShardOutput:
        links = dedup.links_in(exchange.gather(self.uris, bucket, dedup.KEYS))
        return _linked("_links", links, self.parts, both=True)


@dataclass(frozen=True)
class _Round:
    """One operation on one part of the links: `stars` of all, `large` or `small`."""

    operation: str
    number: int
    """of the round: each writes files of its own, which a driver in another round neither reads nor replaces"""
    uris: tuple[str, ...]
    parts: int

    def __call__(self, part: int) -> ShardOutput:
        table = exchange.gather(self.uris, part, dedup.LINKS)
        links = np.stack([table["node"].to_numpy(), table["other"].to_numpy()], axis=1)
        if self.operation == "stars":
            return _linked(f"_stars{self.number:02d}", components.stars(links), 1, both=False)
        if self.operation == "small":
            return _linked(f"_small{self.number:02d}", components.small_star(links), self.parts, both=True)
        mine = components.unique_edges(links[links[:, 0] > links[:, 1]])
        output = _linked(f"_large{self.number:02d}", components.large_star(links), self.parts, both=False)
        # what the round began with, for the check whether it changed anything and as the result where it did not
        began = Part(data=exchange.exchange_bytes([_table(mine)]))
        return ShardOutput(
            parts={**output.parts, f"_stars{self.number:02d}": began},
            facts={"checksum": components.checksum(mine), "links": len(mine)},
        )


@dataclass(frozen=True)
class _Regroup:
    """Links to the groups of the shards that hold their kept document."""

    groups: int

    def __call__(self, uri: str) -> ShardOutput:
        links = exchange.gather([uri], 0, dedup.LINKS)
        group = (links["other"].to_numpy() >> 32) % self.groups
        return ShardOutput(
            parts={"_kept": Part(data=exchange.exchange_bytes(exchange.split(links, group, self.groups)))}
        )


@dataclass(frozen=True)
class _Name:
    uris: tuple[str, ...]
    groups: int

    def __call__(self, task: tuple[int, str]) -> ShardOutput:
        shard, uri = task
        links = exchange.gather(self.uris, shard % self.groups, dedup.LINKS)
        drops = dedup.name_kept(shards.read_table(uri, ["id", "text"]), shard, links)
        group = (drops["node"].to_numpy() >> 32) % self.groups
        return ShardOutput(
            parts={"_drops": Part(data=exchange.exchange_bytes(exchange.split(drops, group, self.groups)))}
        )


@dataclass(frozen=True)
class _Drop:
    uris: tuple[str, ...]
    groups: int

    def __call__(self, task: tuple[int, str]) -> ShardOutput:
        shard, uri = task
        drops = exchange.gather(self.uris, shard % self.groups, dedup.DROPS)
        kept, clusters = dedup.drop_rows(shards.read_table(uri, schema.TEXT.names), shard, drops)
        counts = clusters["reason"].value_counts().to_pylist()
        return ShardOutput(
            parts={"text": Part(table=kept), "clusters": Part(table=clusters)},
            dropped={count["values"]: count["counts"] for count in counts},
            facts={"text_bytes": schema.text_bytes(kept["text"])},
        )


def run(context: Context, config: Config) -> Outcome:
    given = context.input("text")
    tasks = list(enumerate(given.uris()))
    buckets = max(1, -(-given.data.rows * config.keys_a_document // config.part_rows))
    keys = map_shards(context, "keys", tasks, _Keys(config, buckets))
    # every bucket gives fewer links than it has keys
    links = map_shards(context, "links", range(buckets), _Links(tuple(uris_of(context, keys, "_keys")), buckets))
    groups = min(max(len(tasks), 1), SHARD_GROUPS)
    kept = map_shards(context, "regroup", _components(context, links, buckets), _Regroup(groups))
    drops = map_shards(context, "name", tasks, _Name(tuple(uris_of(context, kept, "_kept")), groups))
    receipts = map_shards(context, "drop", tasks, _Drop(tuple(uris_of(context, drops, "_drops")), groups))
    text_bytes = sum(receipt.facts["text_bytes"] for receipt in receipts)
    return Outcome(
        datasets={
            "text": dataset_of(receipts, "text", text_bytes=text_bytes),
            "clusters": dataset_of(receipts, "clusters"),
        },
        dropped=total_dropped(receipts),
    )


def _components(context: Context, links: list[Receipt], parts: int) -> list[str]:
    """Files of (node, first of its component): made at once where all links are one part, else in rounds."""
    uris = tuple(uris_of(context, links, "_links"))
    if parts == 1:
        return uris_of(context, map_shards(context, "stars", [0], _Round("stars", 0, uris, 1)), "_stars00")
    before = -1
    for number in range(MOST_ROUNDS):
        large = map_shards(context, f"large{number:02d}", range(parts), _Round("large", number, uris, parts))
        now = sum(receipt.facts["checksum"] for receipt in large) % (1 << 63)
        if now == before:
            return uris_of(context, large, f"_stars{number:02d}")
        before, uris = now, tuple(uris_of(context, large, f"_large{number:02d}"))
        small = map_shards(context, f"small{number:02d}", range(parts), _Round("small", number, uris, parts))
        uris = tuple(uris_of(context, small, f"_small{number:02d}"))
    raise AssertionError(f"components not found in {MOST_ROUNDS} rounds; a round changes nothing only at the end")


def _table(links_E2: np.ndarray) -> pa.Table:
    return pa.table([links_E2[:, 0], links_E2[:, 1]], schema=dedup.LINKS)


def _linked(name: str, links_E2: np.ndarray, parts: int, *, both: bool) -> ShardOutput:
    """Links in the parts of the node they are looked at from: the larger one, or each of the `both`."""
    if both:
        links_E2 = np.concatenate([links_E2, links_E2[:, ::-1]])
    pieces = exchange.split(_table(links_E2), components.part_of(links_E2[:, 0], parts), parts)
    return ShardOutput(parts={name: Part(data=exchange.exchange_bytes(pieces))})
