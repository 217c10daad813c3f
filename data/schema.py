"""Every table this project stores: its columns with a sentence each, and the pure functions that make ids and hashes.

A document gets its `id` when it is collected and keeps it. Its `content_hash` is that of the current text. A packed row
is named by its `sequence_hash`, which ties cached logits and lineage to the exact tokens, segments and mask. Hashes are
xxh3: fast and the same on every machine, but no protection against an adversary. Cost: 10 GB/s a core for long rows.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from data.errors import UserError

HELDOUT_ONE_IN = 50
"""one document in this many is held out of training (2 %)"""


def _field(name: str, kind: pa.DataType, description: str) -> pa.Field:
    return pa.field(name, kind, metadata={"description": description})


def _list_of(kind: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", kind))  # Parquet's name, so reading keeps the schema


SPANS = _list_of(pa.struct([("start", pa.int32()), ("end", pa.int32())]))
DOCUMENT_SPANS = _list_of(pa.struct([("id", pa.string()), ("start", pa.int32()), ("end", pa.int32())]))

TEXT = pa.schema(
    [
        _field(
            "id",
            pa.string(),
            "Hash of source, file name and offset (32 hex digits), set when collected, never changed.",
        ),
        _field("content_hash", pa.string(), "xxh3-128 of the text as it is now, UTF-8 (32 hex digits)."),
        _field("text", pa.string(), "The document."),
        _field("source", pa.string(), "Name of the source that the document was collected from."),
        _field("metadata", pa.string(), "What the source says of the document, a JSON object."),
        _field("masked_spans", SPANS, "Character ranges [start, end) that no loss is taken on."),
    ]
)

REJECTS = pa.schema(
    [
        _field("id", pa.string(), "Id of the document, or of the place where one should have been."),
        _field("source", pa.string(), "Name of the source that it came from."),
        _field("name", pa.string(), "File that it came from, relative to the source."),
        _field("reason", pa.string(), "The rule that rejected it, one word of a fixed list."),
        _field("detail", pa.string(), "What the rule saw, for a person to read."),
        _field("content", pa.binary(), "The rejected bytes, possibly cut short."),
    ]
)

CLUSTERS = pa.schema(
    [
        _field("id", pa.string(), "Id of a document that was dropped as a duplicate."),
        _field("kept_id", pa.string(), "Id of the document that was kept in its place."),
        _field("content_hash", pa.string(), "xxh3-128 of the dropped document's text (32 hex digits)."),
        _field(
            "reason", pa.string(), "Either exact_duplicate (equal up to letter case and white space) or near_duplicate."
        ),
    ]
)

HITS = pa.schema(
    [
        _field("id", pa.string(), "Id of a document that shares an n-gram with an evaluation item."),
        _field("set", pa.string(), "Evaluation set: the name of its file without the ending."),
        _field("item", pa.int64(), "Line of the item in its file, from 0."),
        _field("ngrams", pa.int64(), "How many n-grams of the document are the item's."),
        _field("start", pa.int64(), "Character at which the first of them begins."),
        _field("end", pa.int64(), "Character at which the last of them ends."),
    ]
)

TOKENS = pa.schema(
    [
        _field("id", pa.string(), "Id of the document."),
        _field("source", pa.string(), "Name of the source that the document was collected from."),
        _field("tokens", _list_of(pa.int32()), "Token ids: <bos>, the text, <eos>."),
        _field("text_bytes", pa.int64(), "Size of the text in UTF-8 bytes."),
        _field("masked", SPANS, "Token ranges [start, end) that no loss is taken on."),
    ]
)

SEQUENCES = pa.schema(
    [
        _field("tokens", _list_of(pa.int32()), "L token ids; 0 in padding."),
        _field("segment_ids", _list_of(pa.int32()), "L segment numbers, from 1 in each row; 0 in padding."),
        _field("positions", _list_of(pa.int32()), "L positions that restart at 0 in each segment; 0 in padding."),
        _field(
            "loss_mask", _list_of(pa.bool_()), "L flags: whether a loss is taken on predicting token t+1 from token t."
        ),
        _field("documents", DOCUMENT_SPANS, "For each segment in order: the document's id and the span of its tokens."),
        _field("text_bytes", pa.int64(), "UTF-8 bytes of text in the row; a document's rows sum to its text_bytes."),
        _field("sequence_hash", pa.uint64(), "xxh3-64 of tokens, segment_ids and loss_mask."),
    ]
)

LOGITS = pa.schema(
    [
        _field("sequence_hash", pa.uint64(), "sequence_hash of the packed row that the teacher saw."),
        _field("unique", pa.binary(), "For each target in order: how many different ids it has, 1, 2 or 4 bytes each."),
        _field(
            "symbols", pa.binary(), "A byte an id, ascending ranks within a target: log2 of the gap, and the count."
        ),
        _field("bits", pa.binary(), "A bit stream: for each id the gap's lower bits, and a count of 8 or more."),
        _field(
            "high", pa.binary(), "Upper bytes of logarithms: of each id's probability or weight, then of the tails."
        ),
        _field("low", pa.binary(), "Lower bytes of the same; all of this is data/logits.py."),
        _field(
            "ranking", pa.binary(), "In the first row: ids of the packed rows by falling frequency, int32; else null."
        ),
    ]
)

VERDICT = pa.schema(
    [
        _field("check", pa.string(), "What was checked, in a word or two."),
        _field("passed", pa.bool_(), "Whether it holds; null where it could not be checked."),
        _field("value", pa.float64(), "What was found: a number of mismatches, a z score, a difference."),
        _field("limit", pa.float64(), "The largest value that passes."),
        _field("detail", pa.string(), "What was compared with what, for a person to read."),
    ]
)

METRICS = pa.schema(
    [
        _field("step", pa.int64(), "Optimizer step, from 1."),
        _field("loss_sum", pa.float64(), "Loss in nats, summed over the step's targets."),
        _field("targets", pa.int64(), "Targets in the step: the number that loss_sum is divided by."),
        _field("learning_rate", pa.float64(), "Learning rate of the step."),
        _field("grad_norm", pa.float64(), "L2 norm of the gradient before clipping."),
        _field("tokens_seen", pa.int64(), "Targets of all steps up to and with this one."),
        _field(
            "bad", pa.bool_(), "Whether loss or gradient were not finite, or a spike: the weights stayed as they were."
        ),
        _field("weights_checksum", pa.int64(), "Sum of the bit patterns of the weights after the step, modulo 2^32."),
        _field("gradients_checksum", pa.int64(), "The same of the summed gradients."),
    ]
)

LINEAGE = pa.schema(
    [
        _field("step", pa.int64(), "Optimizer step, from 1."),
        _field("slot", pa.int32(), "Place of the row in the global batch."),
        _field("dataset", pa.string(), "Name of the dataset that the row came from."),
        _field("shard", pa.int32(), "Number of the shard in the dataset's manifest."),
        _field("row", pa.int32(), "Number of the row in the shard."),
        _field("sequence_hash", pa.uint64(), "sequence_hash of the row."),
    ]
)


def columns_of(schema: pa.Schema, names: Sequence[str]) -> pa.Schema:
    """The schema of some of the columns."""
    return pa.schema([schema.field(name) for name in names])


def document_id(source: str, name: str, offset: int) -> str:
    """The id of the document at `offset` of file `name` of `source`: 32 hex digits (xxh3-128).

    `name` is the file's name relative to the source, so that moving the files changes no id. Lengths are hashed too, so
    no two different triples give the same bytes.
    """
    # surrogatepass: in Python, file names that are not UTF-8 have lone surrogates
    parts = [part.encode("utf-8", "surrogatepass") for part in (source, name)]
    digest = xxhash.xxh3_128()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    digest.update(offset.to_bytes(8, "little"))
    return digest.hexdigest()


def content_hash(text: str) -> str:
    """32 hex digits (xxh3-128) of the text in UTF-8."""
    return xxhash.xxh3_128_hexdigest(text.encode())


def text_bytes(texts: pa.ChunkedArray) -> int:
    """Size of all texts together, in UTF-8 bytes."""
    return pc.sum(pc.binary_length(texts)).as_py() or 0


def is_heldout(id: str) -> bool:
    """Whether the document is held out of all training (2 % are). It depends on the id alone, so all stages agree."""
    return xxhash.xxh3_64_intdigest(id.encode()) % HELDOUT_ONE_IN == 0


def sequence_hash(tokens: np.ndarray, segment_ids: np.ndarray, loss_mask: np.ndarray) -> int:
    """xxh3-64 of one packed row: tokens and segment_ids as little-endian int32, loss_mask as one byte each."""
    return int(sequence_hashes(tokens[None], segment_ids[None], loss_mask[None])[0])


def sequence_hashes(tokens_BT: np.ndarray, segment_ids_BT: np.ndarray, loss_mask_BT: np.ndarray) -> np.ndarray:
    """`sequence_hash` of each row, uint64 [B]. Raises UserError if the shapes differ."""
    if not tokens_BT.shape == segment_ids_BT.shape == loss_mask_BT.shape:
        raise UserError(
            f"got tokens {tokens_BT.shape}, segment_ids {segment_ids_BT.shape} and loss_mask {loss_mask_BT.shape}; "
            "give all three the same shape"
        )
    rows = len(tokens_BT)
    parts = [np.ascontiguousarray(part, "<i4").view(np.uint8).reshape(rows, -1) for part in (tokens_BT, segment_ids_BT)]
    bytes_of_rows = np.concatenate([*parts, loss_mask_BT.astype(np.uint8)], axis=1)
    return np.array([xxhash.xxh3_64_intdigest(row) for row in bytes_of_rows], dtype=np.uint64)
