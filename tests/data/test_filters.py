import json

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import filters, schema

RULES = {"empty": filters.not_empty, "too_long": filters.at_most(5)}


def texts(*values: str) -> pa.Table:
    rows = [
        {
            "id": f"{number:032x}",
            "content_hash": schema.content_hash(value),
            "text": value,
            "source": "s",
            "metadata": json.dumps({"name": f"file{number}.txt"}),
            "masked_spans": [{"start": 0, "end": 1}],
        }
        for number, value in enumerate(values)
    ]
    return pa.Table.from_pylist(rows, schema.TEXT)


@pytest.mark.parametrize("text", ["", " ", "\n\t\r", "\u3000\u00a0"])
def test_a_text_without_a_character_that_shows_is_empty(text: str) -> None:
    assert "white space" in (filters.not_empty(text) or "")
    assert filters.not_empty(text + ".") is None


def test_length_is_counted_in_characters() -> None:
    assert filters.at_most(3)("\u00fc\u00fc\u00fc") is None
    assert filters.at_most(3)("abcd") == "4 characters; at most 3"


def test_the_first_filter_that_objects_gives_the_reason() -> None:
    _, rejects = filters.filter_table(texts(" " * 9), RULES)
    assert rejects["reason"].to_pylist() == ["empty"]
    _, rejects = filters.filter_table(texts(" " * 9), dict(reversed(RULES.items())))
    assert rejects["reason"].to_pylist() == ["too_long"]


def test_a_reject_keeps_id_file_and_text() -> None:
    _, rejects = filters.filter_table(texts("short", "far too l\u00f6ng"), RULES)
    (reject,) = rejects.to_pylist()
    assert reject == {
        "id": f"{1:032x}",
        "source": "s",
        "name": "file1.txt",
        "reason": "too_long",
        "detail": "12 characters; at most 5",
        "content": "far too l\u00f6ng".encode(),
    }


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text(max_size=8), max_size=10))
def test_every_document_is_kept_untouched_or_rejected_in_order(values: list[str]) -> None:
    table = texts(*values)
    kept, rejects = filters.filter_table(table, RULES)
    good = [number for number, value in enumerate(values) if value.strip() and len(value) <= 5]
    assert kept.equals(table.take(pa.array(good, pa.int64())))
    assert kept.schema.equals(schema.TEXT, check_metadata=True)
    assert rejects.schema.equals(schema.REJECTS, check_metadata=True)
    assert rejects["id"].to_pylist() == [f"{number:032x}" for number in range(len(values)) if number not in good]
