"""From documents to rows of L tokens, by one of two packings.

`concatenate` takes documents in the given order and cuts them every L tokens; only the last row has padding. `best_fit`
keeps documents whole that fit a row, and cuts longer ones into full rows and a rest; any row may have padding.

    TOKENS -> read_documents -> pack_documents -> SEQUENCES

A segment is the part of one document that is in one row. Segments do not see each other, positions restart in each
segment, and a document that is cut gets no new <bos>. The target of token t is token t + 1 of the same segment. The
last token of a segment has no target, and neither does a token before a masked token.

Cost: a few passes of NumPy over all tokens of the shard, which take about ten times the memory of the tokens.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from data.errors import UserError
from data.schema import SEQUENCES, sequence_hashes


@dataclass(frozen=True, kw_only=True, eq=False)
class Document:
    """One tokenized document."""

    id: str
    """document id"""
    tokens: np.ndarray
    """token ids: <bos>, the text, <eos>, int32 [n]"""
    text_bytes: int
    """size of the text, in UTF-8 bytes"""
    masked: Sequence[tuple[int, int]] = ()
    """token ranges [start, end) that are not targets"""

    def __post_init__(self) -> None:
        count = len(self.tokens)
        if not count:
            raise UserError(
                f"document {self.id!r} has no tokens; even an empty text has <bos> and <eos>: tokenize it again"
            )
        for start, end in self.masked:
            if not 0 <= start <= end <= count:
                raise UserError(
                    f"document {self.id!r} masks tokens {start} to {end}, but has {count} tokens; tokenize it again"
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


def pack_documents(
    documents: Iterable[Document], sequence_length: int, packing: Literal["concatenate", "best_fit"] = "concatenate"
) -> pa.Table:
    """A SEQUENCES table of the documents.

    Raises UserError for a length below 2, and for more tokens than a shard can hold.
    """
    if sequence_length < 2:
        raise UserError(
            f"got sequence_length={sequence_length}; a row needs a token and the next one to predict: give 2 or more"
        )
    documents = list(documents)
    if not documents:
        return SEQUENCES.empty_table()
    lengths = np.array([len(document.tokens) for document in documents], np.int64)
    if lengths.sum() + sequence_length >= 2**31:
        raise UserError(
            f"got {lengths.sum()} tokens for one shard; a shard holds less than 2**31 tokens: pack into more shards"
        )
    segments = _PACKINGS[packing](lengths, sequence_length)
    rows = len(segments.first_of_row)
    slots = rows * sequence_length

    # for each token, in the order of segments: its place in the rows, and in the stream of all documents
    restarts = np.arange(segments.length.sum()) - np.repeat(
        np.cumsum(segments.length) - segments.length, segments.length
    )
    place = np.repeat(segments.start, segments.length) + restarts
    document_starts = np.cumsum(lengths) - lengths
    stream = np.repeat(document_starts[segments.document] + segments.begin, segments.length) + restarts
    tokens = np.zeros(slots, np.int32)
    tokens[place] = np.concatenate([document.tokens for document in documents])[stream]
    segment_ids = np.zeros(slots, np.int32)
    segment_ids[place] = np.repeat(segments.number, segments.length)
    positions = np.zeros(slots, np.int32)
    positions[place] = restarts
    no_target = np.zeros(len(stream) + 1, bool)  # by place in the stream: whether the token is masked
    for document, begin in zip(documents, document_starts.tolist(), strict=True):
        for start, end in document.masked:
            no_target[begin + start : begin + end] = True
    loss_mask = np.zeros(slots, bool)
    loss_mask[place] = ~no_target[stream + 1]
    loss_mask[segments.start + segments.length - 1] = False

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
    """Parts of documents in the order of the rows. Arrays are int64 [segments], except for `first_of_row`."""

    start: np.ndarray
    """first slot of the segment, counted over all rows"""
    length: np.ndarray
    """number of tokens"""
    number: np.ndarray
    """segment id in the row, from 1"""
    document: np.ndarray
    """number of the document"""
    begin: np.ndarray
    """first token in the document"""
    stop: np.ndarray
    """end in the document, one past the last token"""
    first_of_row: np.ndarray
    """number of the first segment of each row, int64 [rows]"""


def _concatenate(lengths: np.ndarray, sequence_length: int) -> _Segments:
    """Documents in order, cut every `sequence_length` tokens. Only the last row has padding."""
    ends = np.cumsum(lengths)
    starts = ends - lengths
    start = np.union1d(starts, np.arange(0, ends[-1], sequence_length))
    document = np.searchsorted(starts, start, side="right") - 1
    return _segments(start, np.diff(start, append=ends[-1]), document, start - starts[document], sequence_length)


def _best_fit(lengths: np.ndarray, sequence_length: int) -> _Segments:
    """Best-fit decreasing (Ding et al. 2024, arXiv 2404.10830).

    Documents longer than a row give full rows and a rest. The pieces, longest first, each go to the row with the least
    room that is enough.
    """
    full = lengths // sequence_length
    row = np.arange(int(full.sum()))  # full rows, document by document
    document = np.repeat(np.arange(len(lengths)), full)
    begin = (row - np.repeat(np.cumsum(full) - full, full)) * sequence_length
    rest = lengths - full * sequence_length
    pieces = np.flatnonzero(rest)
    pieces = pieces[np.argsort(-rest[pieces], kind="stable")]
    rooms: list[list[int]] = [[] for _ in range(sequence_length + 1)]  # rows by the room left in them
    some = 0  # bit r is set if a row has room r
    start = np.zeros(len(pieces), np.int64)
    rows = len(row)
    for number, length in enumerate(rest[pieces].tolist()):
        enough = some >> length
        if enough:
            room = length + (enough & -enough).bit_length() - 1
            chosen = rooms[room].pop()
            if not rooms[room]:
                some &= ~(1 << room)
        else:
            room, chosen, rows = sequence_length, rows, rows + 1
        start[number] = (chosen + 1) * sequence_length - room
        if room > length:
            rooms[room - length].append(chosen)
            some |= 1 << (room - length)
    starts = np.concatenate([row * sequence_length, start])
    order = np.argsort(starts)
    return _segments(
        starts[order],
        np.concatenate([np.full(len(row), sequence_length), rest[pieces]])[order],
        np.concatenate([document, pieces])[order],
        np.concatenate([begin, full[pieces] * sequence_length])[order],
        sequence_length,
    )


_PACKINGS = {"concatenate": _concatenate, "best_fit": _best_fit}


def _segments(
    start: np.ndarray, length: np.ndarray, document: np.ndarray, begin: np.ndarray, sequence_length: int
) -> _Segments:
    """Segments in the order of their first slot. Every row has at least one."""
    row = start // sequence_length
    first_of_row = np.searchsorted(row, np.arange(int(row[-1]) + 1))
    return _Segments(
        start=start,
        length=length,
        number=np.arange(len(start)) - first_of_row[row] + 1,
        document=document,
        begin=begin,
        stop=begin + length,
        first_of_row=first_of_row,
    )


def _floor_share(total: np.ndarray, part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """floor(total * part / whole), int64. For whole < 2**31 it does not overflow."""
    quotient, remainder = np.divmod(total, whole)
    return quotient * part + remainder * part // whole
