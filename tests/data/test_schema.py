import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import schema

TABLES = ["TEXT", "REJECTS", "CLUSTERS", "HITS", "TOKENS", "SEQUENCES", "LOGITS", "METRICS", "LINEAGE"]

PROPERTY = settings(deadline=None, max_examples=50)


@pytest.mark.parametrize("name", TABLES)
def test_every_column_is_described_by_a_sentence(name: str) -> None:
    for field in getattr(schema, name):
        description = field.metadata[b"description"].decode()
        assert description[0].isupper() or description.startswith(("xxh3", "sequence_hash")), field.name
        assert description.endswith("."), field.name


@pytest.mark.parametrize("name", TABLES)
def test_a_table_keeps_its_schema_and_descriptions_through_parquet(name: str) -> None:
    table = getattr(schema, name).empty_table()
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer)
    assert pq.read_table(pa.BufferReader(buffer.getvalue())).schema.equals(table.schema, check_metadata=True)


def test_ids_and_hashes_never_change() -> None:
    assert schema.document_id("wiki", "a/b.jsonl", 17) == "ad212fefcd13d8296248f6049937ab69"
    assert schema.content_hash("caf\u00e9") == "fc88ba8ad8a06b6234b319bdcedd52af"
    row = np.arange(8, dtype=np.int32)
    assert schema.sequence_hash(row, row // 4 + 1, row % 2 == 0) == 1625741531205576217


@PROPERTY
@given(st.lists(st.tuples(st.text(), st.text(), st.integers(0, 2**40)), max_size=20, unique=True))
def test_different_places_give_different_document_ids(places: list[tuple[str, str, int]]) -> None:
    ids = {schema.document_id(*place) for place in places}
    assert len(ids) == len(places)
    assert all(len(id) == 32 for id in ids)


def test_a_file_name_that_is_not_utf8_has_an_id() -> None:
    assert schema.document_id("disk", b"\xff.txt".decode(errors="surrogateescape"), 0)


def test_two_percent_are_held_out() -> None:
    ids = [schema.document_id("s", "n", offset) for offset in range(50_000)]
    share = sum(map(schema.is_heldout, ids)) / len(ids)
    assert 0.018 < share < 0.022


def test_the_sequence_hash_sees_tokens_segments_and_mask() -> None:
    tokens, segments, mask = np.arange(6, dtype=np.int32), np.ones(6, np.int32), np.ones(6, bool)
    hashes = {schema.sequence_hash(tokens, segments, mask)}
    for index in range(6):
        for changed in range(3):
            parts = [tokens.copy(), segments.copy(), mask.copy()]
            parts[changed][index] = ~parts[changed][index]
            hashes.add(schema.sequence_hash(*parts))
    assert len(hashes) == 1 + 18


def test_the_sequence_hash_does_not_depend_on_the_memory_layout() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 1000, (5, 7), dtype=np.int32)
    segments = np.ones((5, 7), np.int32)
    mask = rng.random((5, 7)) < 0.5
    hashes = schema.sequence_hashes(tokens, segments, mask)
    assert hashes.dtype == np.uint64
    assert (hashes == schema.sequence_hashes(np.asfortranarray(tokens), segments.astype(np.int64), mask)).all()
    assert hashes[3] == schema.sequence_hash(tokens[3], segments[3], mask[3])


def test_rows_of_different_shapes_have_no_hash() -> None:
    row = np.zeros(4, np.int32)
    with pytest.raises(ValueError, match="give all three the same shape"):
        schema.sequence_hash(row, row[:3], row.astype(bool))
