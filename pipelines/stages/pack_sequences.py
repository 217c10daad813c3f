"""Packs the tokens of one source into rows of fixed length, shuffled once; held-out documents have rows of their own.

Two phases on Ray Data: documents go to buckets by a seeded hash of their id, then each bucket is ordered by that
hash, packed, and its rows are shuffled. Memory: one bucket for each worker.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import xxhash

from data import schema, shards
from data.absent import absent
from data.order import splitmix64
from data.packing import pack_documents, read_documents
from pipelines.account.costs import PackCost, core_speed
from pipelines.engine.declaration import Declaration
from pipelines.engine.errors import UserError
from pipelines.engine.inputs import Read
from pipelines.engine.shard_map import Part, Receipt, ShardOutput, dataset_of, map_shards, total_dropped
from pipelines.engine.shuffle import Shuffled, Split, finish_shuffle, plan_split
from pipelines.engine.stage import Context, Outcome

VERSION = 5
WRITER = shards.WRITER
READS = {"tokens": Read(help="tokens of one source", dataset="tokens")}
WRITES = ("sequences", "heldout")
DECLARES = Declaration(cost=PackCost(speed=core_speed(8.8)))
TRAINING, HELDOUT = "sequences", "heldout"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Length, order and number of the packed rows."""

    sequence_length: int = 1024
    """Tokens in a row."""
    seed: int = 0
    """Seed of the order."""
    packing: Literal["concatenate", "best_fit"] = "concatenate"
    """Method of packing: `concatenate` joins all documents and cuts every sequence_length tokens, `best_fit` keeps
    documents that fit a row whole."""
    shard_tokens: int = 1 << 24
    """Tokens of input for one shard of output, about; a worker holds about 50 bytes for each token."""
    row_group_rows: int = 64
    """Rows that are read at a time, and that stay together in later epochs."""
    max_rows: int | None = absent(None)
    """Largest number of training rows to keep (a sample, since the order is random); None: all rows."""
    max_heldout_rows: int | None = absent(None)
    """Largest number of held-out rows to keep; None: all rows."""
    require_heldout: bool = True
    """Refusal of a corpus without a held-out document: a model trained on such a corpus could not be evaluated."""

    def __post_init__(self) -> None:
        if self.sequence_length < 2:
            raise UserError(
                f"sequence_length is {self.sequence_length}; it must be at least 2, so that a row has a target"
            )
        for name in ("shard_tokens", "row_group_rows", "max_rows", "max_heldout_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1")


@dataclass(frozen=True)
class _ByDocument:
    """Bucket of each document, by the hash of its id: training buckets first, then held-out ones."""

    seed: int
    training_buckets: int
    heldout_buckets: int

    def __call__(self, table: pa.Table) -> np.ndarray:
        return np.array([self.bucket(id) for id in table["id"].to_pylist()], dtype=np.int64)

    def bucket(self, id: str) -> int:
        # another hash than `is_heldout` takes: with the same one held-out documents would share a few buckets
        place = xxhash.xxh3_64_intdigest(f"bucket {id}".encode(), seed=self.seed)
        if schema.is_heldout(id):
            return self.training_buckets + place % self.heldout_buckets
        return int(place % self.training_buckets)


@dataclass(frozen=True)
class _Spread:
    split: Split

    def __call__(self, uri: str) -> ShardOutput:
        return ShardOutput(parts={"_buckets": self.split.part(shards.read_table(uri, schema.TOKENS))})


@dataclass(frozen=True)
class _Bucket:
    part: int
    """Number of the bucket's part in the files of the spread."""
    number: int
    dataset: str
    max_rows: int | None


@dataclass(frozen=True)
class _Pack:
    """Orders, packs and shuffles one bucket."""

    config: Config
    spread: Shuffled

    def __call__(self, bucket: _Bucket) -> ShardOutput:
        table = self.spread.gather(bucket.part, schema.TOKENS)
        ids = table["id"].to_pylist()
        order = sorted(
            range(len(ids)), key=lambda k: (xxhash.xxh3_64_intdigest(ids[k].encode(), seed=self.config.seed), ids[k])
        )
        documents = read_documents(table.take(np.array(order, dtype=np.int64)))
        packed = pack_documents(documents, self.config.sequence_length, self.config.packing)
        stream = xxhash.xxh3_64_intdigest(f"{self.config.seed} {bucket.dataset} {bucket.number}".encode())
        shuffled = np.argsort(splitmix64(stream, packed.num_rows), kind="stable")
        kept = packed.take(shuffled[: bucket.max_rows])
        over = packed.num_rows - kept.num_rows
        segments = kept["segment_ids"].combine_chunks().flatten().to_numpy()
        tokens = kept["tokens"].combine_chunks().flatten().to_numpy()
        count = int((segments > 0).sum())
        return ShardOutput(
            parts={
                bucket.dataset: Part(
                    table=kept,
                    tokens=count,
                    row_group_rows=self.config.row_group_rows,
                    name=f"{bucket.number:05d}.parquet",
                )
            },
            dropped={f"{bucket.dataset}_rows_over_limit": over} if over else {},
            facts={
                "text_bytes": sum(kept["text_bytes"].to_pylist()),
                "targets": int(kept["loss_mask"].combine_chunks().flatten().to_numpy(zero_copy_only=False).sum()),
                "largest_id": int(tokens.max(initial=0)),
            },
        )


def run(context: Context, config: Config) -> Outcome:
    """Raises UserError if the tokens have several sources, hold no document, or exceed their tokenizer's vocabulary."""
    given = context.input("tokens")
    facts = given.data.facts
    if len(facts["sources"]) > 1:
        raise UserError(
            f"{given.reference} holds {len(facts['sources'])} sources ({', '.join(facts['sources'])}); pack one "
            "source at a time"
        )
    training = max(1, -(-given.data.tokens // config.shard_tokens))
    heldout = -(-training // schema.HELDOUT_ONE_IN)
    by_document = _ByDocument(config.seed, training, heldout)
    split = plan_split(len(given.uris()), training + heldout, by_document)
    files = map_shards(context, "spread", given.uris(), _Spread(split))
    spread = finish_shuffle(context, "spread", split, files, "_buckets", schema.TOKENS)
    limits = {TRAINING: _shares(config.max_rows, training), HELDOUT: _shares(config.max_heldout_rows, heldout)}
    buckets = [
        _Bucket(
            part=number,
            number=number if dataset == TRAINING else number - training,
            dataset=dataset,
            max_rows=limits[dataset][number if dataset == TRAINING else number - training],
        )
        for number in range(training + heldout)
        for dataset in [TRAINING if number < training else HELDOUT]
    ]
    receipts = map_shards(context, "pack", buckets, _Pack(config, spread))
    datasets = {}
    for dataset in WRITES:
        made = [receipt for receipt in receipts if dataset in receipt.shards]
        datasets[dataset] = dataset_of(
            made,
            dataset,
            sequence_length=config.sequence_length,
            row_group_rows=config.row_group_rows,
            vocab_size=facts["vocab_size"],
            source=next(iter(facts["sources"]), ""),
            text_bytes=sum(receipt.facts["text_bytes"] for receipt in made),
            targets=sum(receipt.facts["targets"] for receipt in made),
            fill_rate=_fill_rate(made, dataset, config.sequence_length),
        )
        largest = max((receipt.facts["largest_id"] for receipt in made), default=0)
        if largest >= facts["vocab_size"]:
            raise UserError(
                f"{given.reference} holds id {largest}, beyond its vocabulary of {facts['vocab_size']}; run "
                "tokenize_text again"
            )
    if config.require_heldout and not datasets[HELDOUT].rows:
        raise UserError(
            f"none of the {given.data.rows} documents of {given.reference} is among the 1 in "
            f"{schema.HELDOUT_ONE_IN} that are held out; collect more (or smaller) documents, or set "
            "--require-heldout False and evaluate on other rows"
        )
    if not datasets[TRAINING].rows:
        raise UserError(
            f"{given.reference} has no document to train on ({datasets[HELDOUT].rows} held-out rows); collect more text"
        )
    return Outcome(datasets=datasets, dropped=total_dropped(receipts), tokenizer_sha256=given.manifest.tokenizer_sha256)


def _fill_rate(receipts: Sequence[Receipt], dataset: str, sequence_length: int) -> float:
    """The share of the rows' slots that hold a token, to six digits."""
    made = [shard for receipt in receipts for shard in receipt.shards[dataset]]
    slots = sum(shard.rows for shard in made) * sequence_length
    return round(sum(shard.tokens for shard in made) / slots, 6) if slots else 1.0


def _shares(limit: int | None, buckets: int) -> list[int | None]:
    """A limit on all rows as limits for each bucket: equal shares, and the first buckets take the remainder."""
    if limit is None:
        return [None] * buckets
    return [limit // buckets + (number < limit % buckets) for number in range(buckets)]
