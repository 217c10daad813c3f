"""Documents -> token ids: <bos>, the text, <eos>; shard k of the output is made of shard k of the input.

Turn markers that stand in the text are spelled out, so text cannot forge a dialogue.
"""

import functools
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from data import schema, shards
from data.masking import masked_tokens
from data.tokenizer import Tokenizer
from pipelines.shard_map import Part, ShardOutput, dataset_of, map_shards
from pipelines.stage import Context, Outcome, Read

VERSION = 1
READS = {
    "text": Read(help="documents", dataset="text"),
    "tokenizer": Read(
        help="a trained tokenizer, or a SentencePiece .model file", dataset="tokenizer", file_allowed=True
    ),
}
WRITES = ("tokens",)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Nothing to choose: text and tokenizer decide."""


@functools.lru_cache(maxsize=2)
def _tokenizer(uri: str, sha256: str) -> Tokenizer:
    """Kept by the worker process between shards. Raises ValueError where the file is not the tokenizer it should be."""
    tokenizer = Tokenizer.load(uri)
    if tokenizer.sha256 != sha256:
        raise ValueError(
            f"{uri} has sha256 {tokenizer.sha256}, and its manifest says {sha256}; it was changed: train it again"
        )
    return tokenizer


@dataclass(frozen=True)
class _Tokenize:
    tokenizer_uri: str
    tokenizer_sha256: str

    def __call__(self, uri: str) -> ShardOutput:
        tokenizer = _tokenizer(self.tokenizer_uri, self.tokenizer_sha256)
        token_bytes = tokenizer.token_bytes()
        table = shards.read_table(uri, schema.TEXT.names)
        rows: list[dict[str, Any]] = []
        for row in table.to_pylist():
            tokens = tokenizer.encode_document(row["text"])
            rows.append(
                {
                    "id": row["id"],
                    "source": row["source"],
                    "tokens": tokens,
                    "text_bytes": len(row["text"].encode()),
                    "masked": masked_tokens(row["text"], tokens, token_bytes, row["masked_spans"]),
                }
            )
        count = sum(len(row["tokens"]) for row in rows)
        tokens_table = pa.Table.from_pylist(rows, schema.TOKENS)
        text_bytes = sum(row["text_bytes"] for row in rows)
        return ShardOutput(
            parts={"tokens": Part(table=tokens_table, tokens=count)},
            facts={"text_bytes": text_bytes, "sources": sorted({row["source"] for row in rows})},
        )


def run(context: Context, config: Config) -> Outcome:
    (uri,) = context.input("tokenizer").uris()
    tokenizer = Tokenizer.load(uri)
    receipts = map_shards(context, "tokenize", context.input("text").uris(), _Tokenize(uri, tokenizer.sha256))
    tokens = dataset_of(
        receipts,
        "tokens",
        vocab_size=tokenizer.vocab_size,
        text_bytes=sum(receipt.facts["text_bytes"] for receipt in receipts),
        sources=sorted({source for receipt in receipts for source in receipt.facts["sources"]}),
    )
    return Outcome(datasets={"tokens": tokens}, tokenizer_sha256=tokenizer.sha256)
