from collections import defaultdict

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.packing import Document, pack_documents, read_documents
from data.schema import SEQUENCES, TOKENS, sequence_hash

PROPERTY = settings(deadline=None, max_examples=50)


@st.composite
def documents(draw: st.DrawFn, min_size: int = 0) -> list[Document]:
    made = []
    for number in range(draw(st.integers(min_size, 8))):
        tokens = draw(st.lists(st.integers(0, 255_999), min_size=1, max_size=30))
        point = st.integers(0, len(tokens))
        masked = draw(st.lists(st.tuples(point, point).map(lambda ends: (min(ends), max(ends))), max_size=2))
        made.append(
            Document(
                id=f"{number:032x}",
                tokens=np.array(tokens, np.int32),
                text_bytes=draw(st.integers(0, 2**45)),
                masked=tuple(masked),
            )
        )
    return made


@PROPERTY
@given(documents(), st.integers(2, 40))
def test_the_segments_of_each_document_in_row_order_give_it_back(docs: list[Document], length: int) -> None:
    tokens_by_document: dict[str, list[int]] = defaultdict(list)
    for row in pack_documents(docs, length).to_pylist():
        segments = np.array(row["segment_ids"])
        assert len(row["tokens"]) == length
        assert segments.max() == len(row["documents"])
        for number, span in enumerate(row["documents"], start=1):
            tokens = np.array(row["tokens"])[segments == number].tolist()
            assert span["start"] == len(tokens_by_document[span["id"]])
            assert span["end"] - span["start"] == len(tokens)
            tokens_by_document[span["id"]] += tokens
    assert list(tokens_by_document.items()) == [(doc.id, doc.tokens.tolist()) for doc in docs]


@PROPERTY
@given(documents(), st.integers(2, 40))
def test_positions_restart_in_each_segment_and_padding_is_zero_at_the_end_of_the_last_row(
    docs: list[Document], length: int
) -> None:
    rows = pack_documents(docs, length).to_pylist()
    for number, row in enumerate(rows):
        segments = row["segment_ids"]
        used = len(segments) - segments.count(0)
        assert used == length or number == len(rows) - 1
        assert segments[:used] == sorted(segments[:used])
        assert segments[0] == 1
        for t in range(length):
            if t >= used:
                assert (row["tokens"][t], segments[t], row["positions"][t], row["loss_mask"][t]) == (0, 0, 0, False)
            elif t == 0 or segments[t] != segments[t - 1]:
                assert row["positions"][t] == 0
            else:
                assert row["positions"][t] == row["positions"][t - 1] + 1


@PROPERTY
@given(documents(), st.integers(2, 40))
def test_a_target_is_the_next_token_of_the_segment_unless_masked(docs: list[Document], length: int) -> None:
    by_id = {doc.id: doc for doc in docs}
    for row in pack_documents(docs, length).to_pylist():
        expected = [False] * length
        t = 0
        for span in row["documents"]:
            for token in range(span["start"], span["end"]):
                masked = any(start <= token + 1 < end for start, end in by_id[span["id"]].masked)
                expected[t] = token + 1 < span["end"] and not masked
                t += 1
        assert row["loss_mask"] == expected


@PROPERTY
@given(documents(min_size=1), st.integers(2, 40))
def test_text_bytes_are_shared_out_without_loss(docs: list[Document], length: int) -> None:
    table = pack_documents(docs, length)
    assert sum(table["text_bytes"].to_pylist()) == sum(doc.text_bytes for doc in docs)
    by_id = {doc.id: doc for doc in docs}
    for row in table.to_pylist():
        share = 0
        for span in row["documents"]:
            doc = by_id[span["id"]]
            share += doc.text_bytes * span["end"] // len(doc.tokens) - doc.text_bytes * span["start"] // len(doc.tokens)
        assert row["text_bytes"] == share


@PROPERTY
@given(documents(), st.integers(2, 40))
def test_each_row_carries_its_sequence_hash_and_the_table_its_schema(docs: list[Document], length: int) -> None:
    table = pack_documents(docs, length)
    assert table.schema.equals(SEQUENCES, check_metadata=True)
    table.validate(full=True)
    for row in table.to_pylist():
        parts = (np.array(row[name]) for name in ("tokens", "segment_ids", "loss_mask"))
        assert row["sequence_hash"] == sequence_hash(*parts)


@PROPERTY
@given(documents())
def test_documents_read_from_a_table_are_the_ones_written(docs: list[Document]) -> None:
    rows = [
        {
            "id": doc.id,
            "source": "s",
            "tokens": doc.tokens.tolist(),
            "text_bytes": doc.text_bytes,
            "masked": [{"start": start, "end": end} for start, end in doc.masked],
        }
        for doc in docs
    ]
    table = pa.Table.from_pylist(rows, TOKENS)
    for part in (table, table.slice(1), pa.concat_tables([table, table])):
        again = list(read_documents(part))
        assert [doc.id for doc in again] == part["id"].to_pylist()
        assert [doc.tokens.tolist() for doc in again] == part["tokens"].to_pylist()
    assert [doc.masked for doc in read_documents(table)] == [doc.masked for doc in docs]


def test_what_cannot_be_packed_is_refused() -> None:
    with pytest.raises(ValueError, match="give 2 or more"):
        pack_documents([], 1)
    with pytest.raises(ValueError, match="'x' has no tokens"):
        Document(id="x", tokens=np.array([], np.int32), text_bytes=0)
    with pytest.raises(ValueError, match="masks tokens 1 to 3, but has 2"):
        Document(id="x", tokens=np.array([2, 1], np.int32), text_bytes=0, masked=((1, 3),))


@PROPERTY
@given(documents(), st.integers(2, 40))
def test_best_fit_keeps_every_token_once_and_cuts_only_what_no_row_can_hold(docs: list[Document], length: int) -> None:
    spans_by_document: dict[str, list[tuple[int, int]]] = defaultdict(list)
    by_id = {doc.id: doc for doc in docs}
    text_bytes = 0
    for row in pack_documents(docs, length, "best_fit").to_pylist():
        segments = np.array(row["segment_ids"])
        assert segments.max() == len(row["documents"])
        text_bytes += row["text_bytes"]
        for number, span in enumerate(row["documents"], start=1):
            inside = np.flatnonzero(segments == number)
            assert np.array_equal(inside, np.arange(inside[0], inside[0] + len(inside)))
            document = by_id[span["id"]]
            assert np.array(row["tokens"])[inside].tolist() == document.tokens[span["start"] : span["end"]].tolist()
            assert np.array(row["positions"])[inside].tolist() == list(range(len(inside)))
            for place, token in zip(inside.tolist(), range(span["start"], span["end"]), strict=True):
                target = token + 1
                masked = any(start <= target < end for start, end in document.masked)
                assert row["loss_mask"][place] == (target < span["end"] and not masked)
            spans_by_document[span["id"]].append((span["start"], span["end"]))
    assert text_bytes == sum(doc.text_bytes for doc in docs)
    for doc in docs:
        cuts = sorted(spans_by_document[doc.id])
        assert [0, *(end for _, end in cuts)] == [*(start for start, _ in cuts), len(doc.tokens)]
        assert len(cuts) == -(-len(doc.tokens) // length)


def test_best_fit_fills_rows_with_documents_of_many_lengths() -> None:
    draw = np.random.default_rng(3)
    lengths = np.minimum(draw.lognormal(6, 1.2, 5000).astype(int) + 2, 60_000)
    docs = [Document(id=f"{n:032x}", tokens=np.ones(size, np.int32), text_bytes=0) for n, size in enumerate(lengths)]
    rows = pack_documents(docs, 2048, "best_fit").num_rows
    assert lengths.sum() / (rows * 2048) > 0.99
