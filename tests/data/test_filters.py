import json
import time

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import filters, schema
from data.filters import Rules
from data.heuristics import C4Quality, FineWebQuality, GopherQuality, GopherRepetition

SHORT = Rules(max_characters=5)
ALL = Rules(
    max_characters=10**9,
    gopher_quality=GopherQuality(),
    gopher_repetition=GopherRepetition(),
    c4=C4Quality(),
    fineweb=FineWebQuality(),
    languages=("en",),
    words=("bad",),
    pii={"email": "redact", "phone": "redact", "ip": "redact", "card": "redact", "iban": "drop", "national_id": "drop"},
)


def texts(*values: str, spans: list[dict[str, int]] | None = None) -> pa.Table:
    rows = [
        {
            "id": f"{number:032x}",
            "content_hash": schema.content_hash(value),
            "text": value,
            "source": "s",
            "metadata": json.dumps({"name": f"file{number}.txt"}),
            "masked_spans": spans or [],
        }
        for number, value in enumerate(values)
    ]
    return pa.Table.from_pylist(rows, schema.TEXT)


def reasons(rules: Rules, *values: str) -> list[str]:
    kept, rejects, _ = filters.filter_table(texts(*values), rules)
    assert kept.num_rows + rejects.num_rows == len(values)
    return rejects["reason"].to_pylist()


@pytest.mark.parametrize("text", ["", " ", "\n\t\r", "\u3000\u00a0", " " * 9])
def test_a_text_without_a_character_that_shows_is_empty(text: str) -> None:
    assert reasons(SHORT, text) == ["empty"]
    assert reasons(SHORT, text[:4] + ".") == []


def test_length_is_counted_in_characters() -> None:
    _, rejects, _ = filters.filter_table(texts("\u00fc" * 5, "abcdef"), SHORT)
    assert rejects["detail"].to_pylist() == ["6 characters; at most 5"]


def test_a_reject_keeps_id_file_and_text() -> None:
    _, rejects, _ = filters.filter_table(texts("short", "far too l\u00f6ng"), SHORT)
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
    table = texts(*values, spans=[{"start": 0, "end": 1}])
    kept, rejects, counts = filters.filter_table(table, SHORT)
    good = [number for number, value in enumerate(values) if value.strip() and len(value) <= 5]
    assert kept.equals(table.take(pa.array(good, pa.int64())))
    assert kept.schema.equals(schema.TEXT, check_metadata=True)
    assert rejects.schema.equals(schema.REJECTS, check_metadata=True)
    assert rejects["id"].to_pylist() == [f"{number:032x}" for number in range(len(values)) if number not in good]
    assert not counts


def test_words_of_the_list_are_whole_words_in_any_case() -> None:
    rules = Rules(
        max_characters=10**6, words=("bad", "two words", "c++", "stra\u00dfe", *(f"w{k}" for k in range(900)))
    )
    held = ["so BAD.", "bad", "(Two Words)", "use c++ now", "die Stra\u00dfe", "w899", "two\n  words"]
    free = ["badly", "abad", "two, words", "twowords", "w900", "stra\u00dfen", "_bad_"]
    assert reasons(rules, *held, *free) == ["word_list"] * len(held)


def test_languages_are_told_apart_and_odd_texts_break_nothing() -> None:
    rules = Rules(max_characters=10**6, languages=("en", "de"), min_language_score=0.5)
    german = "Das ist ein deutscher Satz, der niemandem etwas tut.\nUnd noch einer."
    french = "Ceci est une phrase fran\u00e7aise, qui ne fait de mal \u00e0 personne."
    assert reasons(rules, "This is an English sentence.\nAnd another.", german, french) == ["language"]
    assert reasons(rules, "\0\0", "12 34", "\U0001f600") == ["language"] * 3


def test_redaction_counts_rewrites_and_moves_masked_spans() -> None:
    text = "Write to ann@firma.de or call +49 30 123456, thanks."
    start = text.index("thanks")
    table = texts(text, spans=[{"start": 0, "end": 5}, {"start": start, "end": start + 6}])
    rules = Rules(max_characters=1000, pii={"email": "redact", "phone": "redact"})
    kept, _, counts = filters.filter_table(table, rules)
    (row,) = kept.to_pylist()
    assert row["text"] == "Write to [email] or call [phone], thanks."
    assert row["content_hash"] == schema.content_hash(row["text"])
    assert row["id"] == f"{0:032x}"
    assert [row["text"][span["start"] : span["end"]] for span in row["masked_spans"]] == ["Write", "thanks"]
    assert counts == {"pii_email_redacted": 1, "pii_phone_redacted": 1}


def test_a_class_of_personal_data_can_drop_the_document() -> None:
    rules = Rules(max_characters=1000, pii={"iban": "drop", "email": "keep"})
    assert reasons(rules, "to DE89 3704 0044 0532 0130 00.", "a@firma.de") == ["pii_iban"]


def test_lines_that_c4_removes_are_counted_and_spans_are_not_lost_silently() -> None:
    line = "This is a plain sentence with enough words."
    text = "\n".join([line] * 6 + ["menu", "Enable JavaScript to see this page."])
    rules = Rules(max_characters=10**6, c4=C4Quality())
    kept, _, counts = filters.filter_table(texts(text), rules)
    assert kept["text"].to_pylist() == ["\n".join([line] * 6)]
    assert counts == {"c4_line_not_terminal": 1, "c4_line_javascript": 1}
    with pytest.raises(ValueError, match="run filter_text before decontaminate_text"):
        filters.filter_table(texts(text, spans=[{"start": 0, "end": 3}]), rules)


@pytest.mark.parametrize(
    "text",
    ["x" * 5_000_000, "\n" * 3_000_000, "a\n" * 1_000_000, "1-" * 2_000_000, "@" * 2_000_000, "word " * 500_000,
     "\0" * 1000, "\u2581" * 99, "\U0001f600 " * 9999, "1." * 1_000_000, "AB12 " * 200_000, "(" * 2_000_000],
    ids=lambda text: repr(text[:5]),
)  # fmt: skip
def test_no_text_takes_long_or_breaks_a_rule(text: str) -> None:
    began = time.monotonic()
    assert len(reasons(ALL, text)) <= 1
    assert time.monotonic() - began < 30  # seconds where a pattern or a count were quadratic: hours


def test_unknown_classes_and_treatments_are_refused() -> None:
    with pytest.raises(ValueError, match="got the classes of personal data mail; there are email"):
        Rules(max_characters=1, pii={"mail": "drop"})
    with pytest.raises(ValueError, match="for personal data; allowed are keep, redact, drop"):
        Rules(max_characters=1, pii={"email": "hide"})  # type: ignore[dict-item]
