"""Documents to rows of L tokens: concatenated in the order given, cut every L tokens, the last row padded.

    TOKENS -> read_documents -> pack_documents -> SEQUENCES

A segment is the part of one document that lies in one row. Segments do not see each other, positions restart in each,
and a document that is cut gets no new <bos>. Target t is token t + 1 of the same segment: the last token of a segment
has none, and neither has a token whose successor is masked.

Cost: a few passes of NumPy over all tokens of the shard, which must fit in memory about ten times over.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from data.schema import SEQUENCES, sequence_hashes


@dataclass(frozen=True, kw_only=True, eq=False)
class Document:
    """One tokenized document."""

    id: str
    """its document id"""
    tokens: np.ndarray
    """int32 [n]: <bos>, the text, <eos>"""
    text_bytes: int
    """size of its text in UTF-8 bytes"""
    masked: Sequence[tuple[int, int]] = ()
    """token ranges [start, end) that are no targets"""

    def __post_init__(self) -> None:
        count = len(self.tokens)
        if not count:
            raise ValueError(
                f"document {self.id!r} has no tokens; an empty text still has <bos> and <eos>: tokenize it again"
            )
        for start, end in self.masked:
            if not 0 <= start <= end <= count:
                raise ValueError(
                    f"document {self.id!r} masks tokens {start} to {end}, but has {count}: tokenize it again"
                )


def read_documents(table: pa.Table) -> Iterator[Document]:
    """The rows of a TOKENS table, in order."""
    for batch in table.to_batches():
        tokens, masked = batch["tokens"], batch["masked"]
        ids, text_bytes, ranges = batch["id"].to_pylist(), batch["text_bytes"].to_pylist(), masked.to_pylist()
        values, offsets = tokens.values.to_numpy(), tokens.offsets.to_numpy()
        for row, id in enumerate(ids):
            yield Document(
                id=id,
                tokens=values[offsets[row] : offsets[row + 1]],
                text_bytes=text_bytes[row],
                masked=tuple((span["start"], span["end"]) for span in ranges[row]),
            )


def pack_documents(documents: Iterable[Document], sequence_length: int) -> pa.Table:
    """A SEQUENCES table of the documents, in the order given.

    Raises ValueError for a length below 2, or for more tokens than a shard can hold.
    """
    if sequence_length < 2:
        raise ValueError(
            f"got sequence_length={sequence_length}; a row needs at least 2 tokens: one, and the next to predict"
        )
    documents = list(documents)
    if not documents:
        return SEQUENCES.empty_table()
    lengths = np.array([len(document.tokens) for document in documents], np.int64)
    ends = np.cumsum(lengths)  # of each document in the stream of all tokens
    rows = -(-int(ends[-1]) // sequence_length)
    slots = rows * sequence_length
    if slots >= 2**31:
        raise ValueError(f"got {ends[-1]} tokens for one shard, which holds less than 2**31: pack into more shards")
    segments = _cut(ends, lengths, sequence_length)

    tokens = np.zeros(slots, np.int32)
    np.concatenate([document.tokens for document in documents], out=tokens[: ends[-1]], casting="same_kind")
    segment_ids = np.zeros(slots, np.int32)
    segment_ids[: ends[-1]] = np.repeat(segments.number, segments.length)
    positions = np.zeros(slots, np.int32)
    positions[: ends[-1]] = np.arange(ends[-1]) - np.repeat(segments.start, segments.length)
    loss_mask = np.zeros(slots, bool)
    loss_mask[: ends[-1]] = True
    loss_mask[segments.start + segments.length - 1] = False
    for document, begin in zip(documents, (ends - lengths).tolist(), strict=True):
        for start, end in document.masked:
            # Targets start..end-1 are predicted one token earlier. Token 0 is nobody's target: the token before it ends
            # another segment, which has no target there anyway.
            loss_mask[max(begin + start - 1, 0) : max(begin + end - 1, 0)] = False

    text_bytes = np.array([document.text_bytes for document in documents], np.int64)[segments.document]
    count = lengths[segments.document]
    shares = _floor_share(text_bytes, segments.stop, count) - _floor_share(text_bytes, segments.begin, count)
    ids = pa.array([document.id for document in documents], pa.string())
    spans = pa.StructArray.from_arrays(
        [
            ids.take(pa.array(segments.document)),
            pa.array(segments.begin, pa.int32()),
            pa.array(segments.stop, pa.int32()),
        ],
        fields=list(SEQUENCES.field("documents").type.value_type),
    )
    span_offsets = np.append(segments.first_of_row, len(segments.start)).astype(np.int32)
    shape = (rows, sequence_length)
    hashes = sequence_hashes(tokens.reshape(shape), segment_ids.reshape(shape), loss_mask.reshape(shape))
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * np.int32(sequence_length))
    columns = [
        pa.ListArray.from_arrays(offsets, pa.array(part)) for part in (tokens, segment_ids, positions, loss_mask)
    ]
    columns += [pa.ListArray.from_arrays(pa.array(span_offsets), spans)]
    columns += [pa.array(np.add.reduceat(shares, segments.first_of_row)), pa.array(hashes)]
    return pa.Table.from_arrays(columns, schema=SEQUENCES)


@dataclass(frozen=True, kw_only=True)
class _Segments:
    """The stream of all tokens cut at documents and at rows; each array is int64 [segments] but the last."""

    start: np.ndarray
    """first token in the stream"""
    length: np.ndarray
    """tokens"""
    number: np.ndarray
    """segment id in its row, from 1"""
    document: np.ndarray
    """number of its document"""
    begin: np.ndarray
    """first token in the document"""
    stop: np.ndarray
    """end in the document"""
    first_of_row: np.ndarray
    """[rows]: number of the first segment of each row"""


def _cut(document_ends: np.ndarray, document_lengths: np.ndarray, sequence_length: int) -> _Segments:
    document_starts = document_ends - document_lengths
    row_starts = np.arange(0, document_ends[-1], sequence_length)
    start = np.union1d(document_starts, row_starts)
    length = np.diff(start, append=document_ends[-1])
    first_of_row = np.searchsorted(start, row_starts)
    document = np.searchsorted(document_starts, start, side="right") - 1
    begin = start - document_starts[document]
    return _Segments(
        start=start,
        length=length,
        number=np.arange(len(start)) - first_of_row[start // sequence_length] + 1,
        document=document,
        begin=begin,
        stop=begin + length,
        first_of_row=first_of_row,
    )


def _floor_share(total: np.ndarray, part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """floor(total * part / whole), int64, without overflow for any total as long as whole < 2**31."""
    quotient, remainder = np.divmod(total, whole)
    return quotient * part + remainder * part // whole
