"""Turns documents into token ids: <bos>, the text, <eos>; shard k of the output is made of shard k of the input.

Named symbols (turn markers and the like) in the text are spelled out, so that text cannot forge a dialogue. The ids
are SentencePiece's: the stage encodes a seeded sample of every shard with SentencePiece too, and compares.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from data import schema, shards
from data.fast_encoder import SPACE, cut_after
from data.masking import masked_tokens
from data.tokenizer import BOS, EOS, PART_BYTES, Tokenizer
from pipelines.account.costs import TokenizeCost, core_speed
from pipelines.engine.declaration import Declaration
from pipelines.engine.errors import UserError
from pipelines.engine.inputs import Read
from pipelines.engine.shard_map import Part, ShardOutput, dataset_of, map_shards
from pipelines.engine.stage import Context, Outcome

VERSION = 6
WRITER = shards.WRITER
READS = {
    "text": Read(help="documents", dataset="text"),
    "tokenizer": Read(help="trained tokenizer, or a SentencePiece .model file", dataset="tokenizer", file_allowed=True),
}
WRITES = ("tokens",)
DECLARES = Declaration(cost=TokenizeCost(speed=core_speed(19)))
COLUMNS = ("id", "text", "source", "masked_spans")
BATCH_BYTES = 8 << 20
"""Bytes of text that are encoded at a time."""
SAMPLE_BYTES = 1 << 16
"""Bytes of a window. A longer sampled document is compared in windows of about this size: its beginning, its end, and
the place of its first cut into parts."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """How the ids are checked; text and tokenizer alone decide them."""

    check_one_in: int = 200
    """Number of documents of which one, on average, is encoded by SentencePiece too; at least one of each batch of
    8 MiB."""
    seed: int = 0
    """Seed of the sample."""

    def __post_init__(self) -> None:
        if self.check_one_in < 1:
            raise UserError(f"check_one_in is {self.check_one_in}; it must be at least 1 (1: every document)")


@functools.lru_cache(maxsize=2)
def _tokenizer(uri: str, sha256: str) -> Tokenizer:
    """The tokenizer, which the worker process keeps between shards. Raises UserError if the file has another sha256."""
    tokenizer = Tokenizer.load(uri)
    if tokenizer.sha256 != sha256:
        raise UserError(
            f"{uri} has sha256 {tokenizer.sha256}, but had {sha256} when the stage began; put the file back, or run "
            "train_tokenizer again"
        )
    return tokenizer


@dataclass(frozen=True)
class _Tokenize:
    config: Config
    tokenizer_uri: str
    tokenizer_sha256: str

    def __call__(self, uri: str) -> ShardOutput:
        tokenizer = _tokenizer(self.tokenizer_uri, self.tokenizer_sha256)
        table = shards.read_table(uri, schema.columns_of(schema.TEXT, COLUMNS))
        batches = [self._batch(tokenizer, batch, uri) for batch in _batches(table)]
        tokens = pa.Table.from_batches([batch for batch, _ in batches], schema.TOKENS)
        return ShardOutput(
            parts={"tokens": Part(table=tokens, tokens=_length(tokens["tokens"]))},
            facts={
                "text_bytes": pc.sum(tokens["text_bytes"]).as_py() or 0,
                "checked_documents": sum(checked for _, checked in batches),
                "sources": tokens["source"].unique().to_pylist(),
            },
        )

    def _batch(self, tokenizer: Tokenizer, table: pa.Table, uri: str) -> tuple[pa.RecordBatch, int]:
        """(rows of TOKENS, number of documents compared with SentencePiece)."""
        column = table["text"].combine_chunks().cast(pa.binary())
        texts = column.to_pylist()
        ids = table["id"].to_pylist()
        values, offsets = tokenizer.encode_documents(texts)
        checked = self._check(tokenizer, ids, texts, values, offsets, uri)
        masked: list[list[dict[str, int]]] = [[] for _ in ids]
        token_bytes = None
        for row, spans in enumerate(table["masked_spans"].to_pylist()):
            if spans:
                token_bytes = tokenizer.token_bytes() if token_bytes is None else token_bytes
                document = values[offsets[row] : offsets[row + 1]]
                masked[row] = masked_tokens(texts[row].decode(), document.tolist(), token_bytes, spans)
        tokens = pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values))
        columns = [
            table["id"].combine_chunks(),
            table["source"].combine_chunks(),
            tokens.cast(schema.TOKENS.field("tokens").type),
            pa.array([len(text) for text in texts], pa.int64()),
            pa.array(masked, schema.SPANS),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=schema.TOKENS), checked

    def _check(
        self,
        tokenizer: Tokenizer,
        ids: list[str],
        texts: list[bytes],
        values: np.ndarray,
        offsets: np.ndarray,
        uri: str,
    ) -> int:
        """Compares the sample with SentencePiece; returns the number of documents that could be compared.

        Raises RuntimeError at the first difference: the shard is not made.
        """
        # another hash than `is_heldout` takes: with the same one nearly all of the sample would be held-out documents
        places = [xxhash.xxh3_64_intdigest(f"check {id}".encode(), seed=self.config.seed) for id in ids]
        lowest = min(range(len(ids)), key=places.__getitem__, default=0)
        sample = [row for row in range(len(ids)) if row == lowest or places[row] % self.config.check_one_in == 0]
        checked = 0
        for row in sample:
            document = values[offsets[row] : offsets[row + 1]]
            text = texts[row].replace(SPACE.encode(), b" ")  # SentencePiece takes both for the same character
            ends = np.cumsum(tokenizer.token_bytes()[document])
            windows = list(_windows(text, cuttable=not tokenizer.fast_encoder))
            for start, end in windows:
                first = int(np.searchsorted(ends, start, side="right")) if start else 0
                actual = document[first:] if end == len(text) else document[first : np.searchsorted(ends, end) + 1]
                expected = np.array(
                    [BOS] * (start == 0) + tokenizer.encode(text[start:end].decode()) + [EOS] * (end == len(text))
                )
                if not np.array_equal(actual, expected):
                    most = min(len(actual), len(expected))
                    place = int(np.argmax(np.append(actual[:most] != expected[:most], True)))
                    byte = start + int(tokenizer.token_bytes()[expected[:place]].sum())
                    raise RuntimeError(
                        f"{uri}: document {ids[row]} differs from SentencePiece from token {first + place}, byte "
                        f"{byte} on: got ids {actual[place : place + 4].tolist()}, SentencePiece gives "
                        f"{expected[place : place + 4].tolist()}; "
                        "nothing was written: report this text and the tokenizer's sha256"
                    )
            checked += bool(windows)
        return checked


def _windows(text: bytes, *, cuttable: bool) -> Iterator[tuple[int, int]]:
    """[start, end) of each compared window of a document; none for a long document that cannot be cut."""
    if len(text) <= SAMPLE_BYTES:
        yield 0, len(text)
    elif cuttable:
        for place in sorted({0, PART_BYTES - SAMPLE_BYTES // 2, len(text) - SAMPLE_BYTES}):
            if place + SAMPLE_BYTES <= len(text):
                start = cut_after(text, place) if place else 0
                end = cut_after(text, start + SAMPLE_BYTES)
                if start < end <= start + 4 * SAMPLE_BYTES:
                    yield start, end


def run(context: Context, config: Config) -> Outcome:
    (uri,) = context.input("tokenizer").uris()
    tokenizer = Tokenizer.load(uri)
    receipts = map_shards(context, "tokenize", context.input("text").uris(), _Tokenize(config, uri, tokenizer.sha256))
    tokens = dataset_of(
        receipts,
        "tokens",
        vocab_size=tokenizer.vocab_size,
        text_bytes=sum(receipt.facts["text_bytes"] for receipt in receipts),
        checked_documents=sum(receipt.facts["checked_documents"] for receipt in receipts),
        sources=sorted({source for receipt in receipts for source in receipt.facts["sources"]}),
    )
    return Outcome(datasets={"tokens": tokens}, tokenizer_sha256=tokenizer.sha256)


def _batches(table: pa.Table) -> list[pa.Table]:
    """Slices of about BATCH_BYTES of text; a longer document is a slice of its own."""
    sizes = pc.binary_length(table["text"]).to_numpy()
    parts, start, held = [], 0, 0
    for row, size in enumerate(sizes.tolist()):
        if row > start and held + size > BATCH_BYTES:
            parts.append(table.slice(start, row - start))
            start, held = row, 0
        held += size
    return [*parts, table.slice(start)] if table.num_rows else []


def _length(lists: pa.ChunkedArray) -> int:
    return int(sum(len(chunk.flatten()) for chunk in lists.chunks))
