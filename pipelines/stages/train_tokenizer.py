"""Trains a SentencePiece BPE model with Gemma's settings and Gemma's id layout, without the held-out documents.

The stage is one task: SentencePiece's trainer needs the text in the memory of one machine. Cost on the machine of the
tests: seconds for a few MB; half a minute and 2 GB for 256,000 pieces from 150 MB (tests/data/test_tokenizer.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import xxhash

from data import schema, shards
from data.tokenizer import Tokenizer, train_tokenizer
from pipelines.engine.errors import UserError
from pipelines.engine.inputs import Read
from pipelines.engine.shard_map import Part, ShardOutput, dataset_of, map_shards
from pipelines.engine.stage import Context, Outcome

VERSION = 2
READS = {"text": Read(help="documents to learn from", dataset="text")}
WRITES = ("tokenizer",)
MODEL_NAME = "tokenizer.model"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Size of the vocabulary, and size of the sample that it is learned from."""

    vocab_size: int = 8192
    """Number of pieces; the first 473 of them are Gemma's own."""
    max_bytes: int = 1 << 30
    """Size of the text to learn from, in bytes, about; from a larger corpus a sample of documents is drawn."""
    seed: int = 0
    """Seed of the sample."""

    def __post_init__(self) -> None:
        if not 1024 <= self.vocab_size <= 256_000:
            raise UserError(f"vocab_size is {self.vocab_size}; allowed are 1024 to 256000")
        if self.max_bytes < 1:
            raise UserError(f"max_bytes is {self.max_bytes}; it must be at least 1 (default: 2**30)")


@dataclass(frozen=True)
class _Train:
    config: Config
    text_bytes: int
    """Size of all documents, in bytes."""

    def __call__(self, uris: list[str]) -> ShardOutput:
        model = train_tokenizer(self._texts(uris), self.config.vocab_size)
        tokenizer = Tokenizer.from_bytes(model)
        return ShardOutput(
            parts={"tokenizer": Part(data=model, name=MODEL_NAME)},
            facts={"vocab_size": tokenizer.vocab_size, "sha256": tokenizer.sha256},
        )

    def _texts(self, uris: list[str]) -> Iterator[str]:
        share = self.config.max_bytes / max(self.text_bytes, 1)
        for uri in uris:
            for row in shards.read_table(uri, ["id", "text"]).to_pylist():
                place = xxhash.xxh3_64_intdigest(row["id"].encode(), seed=self.config.seed) / 2**64
                if place < share and not schema.is_heldout(row["id"]):
                    yield row["text"]


def run(context: Context, config: Config) -> Outcome:
    text = context.input("text")
    work = _Train(config, int(text.data.facts["text_bytes"]))
    (receipt,) = map_shards(context, "train", [text.uris()], work)
    return Outcome(
        datasets={"tokenizer": dataset_of([receipt], "tokenizer", vocab_size=receipt.facts["vocab_size"])},
        tokenizer_sha256=receipt.facts["sha256"],
    )
