"""Overlap with evaluation sets: found whatever the case and punctuation, nothing else is."""

import gzip
import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import decontaminate, minhash
from tests.data.test_dedup import text_table

WORDS = [f"w{number}" for number in range(500)]
ITEM = " ".join(WORDS[:20])


def hits(texts: list[str], items: list[str | None], ngram_words: int = 13) -> list[dict[str, object]]:
    index, _ = decontaminate.index_of([items], ngram_words)
    return decontaminate.find_hits(text_table(texts), index, ["set"], ngram_words).to_pylist()


def test_an_item_is_found_behind_other_case_punctuation_and_line_breaks() -> None:
    disguised = "Before, " + ITEM.upper().replace(" ", ",\n- ") + "! after"
    (hit,) = hits(["nothing here", disguised], [None, ITEM])
    assert (hit["set"], hit["item"], hit["ngrams"]) == ("set", 1, 8)
    assert disguised[hit["start"] : hit["end"]] == ITEM.upper().replace(" ", ",\n- ")


def test_typographic_punctuation_hides_nothing() -> None:
    plain = "it's - as they say - the \"best\" of all the many possible worlds... or isn't it"
    typeset = (
        "it\u2019s\u2009\u2014\u00a0as they say \u2013 the \u201cbest\u201d of all the many possible "
        "worlds\u2026 or isn\u2019t it"
    )
    text = f"\u00ab{typeset}\u00bb\u3002"
    (hit,) = hits([text], [plain])
    assert text[hit["start"] : hit["end"]] == typeset


def test_twelve_words_in_common_are_no_overlap_of_thirteen() -> None:
    assert not hits([" ".join([*WORDS[:12], "other", *WORDS[13:25]])], [ITEM])
    assert hits([" ".join(WORDS[:13])], [ITEM])


def test_items_too_short_to_be_found_are_counted_and_match_nothing() -> None:
    index, short = decontaminate.index_of([["only five words in here", None, ITEM], ["a b"]], 13)
    assert short == [1, 1]
    assert set(index["item"].to_pylist()) == {2}
    assert not hits(["only five words in here"], ["only five words in here", ITEM])


def test_every_item_that_shares_the_words_is_named() -> None:
    item_hits = hits([ITEM], [ITEM, "x " + ITEM, "unrelated " * 20])
    assert [hit["item"] for hit in item_hits] == [0, 1]


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.sampled_from(
            ["a", "B", "\u0130c", "d1", "\u65e5\u3042", "\U0001f600", "\u2019", "\u3002", " ", ", ", "\n", "\u00e9x"]
        ),
        max_size=40,
    ),
    st.integers(2, 4),
)
def test_spans_are_where_the_words_are(parts: list[str], ngram_words: int) -> None:
    text = "".join(parts)
    hashes, places = minhash.shingle_places(text, ngram_words)
    assert len(hashes) == len(places)
    for value, (start, end) in zip(hashes.tolist(), places.tolist(), strict=True):
        again, whole = minhash.shingle_places(text[start:end], ngram_words)
        assert again.tolist() == [value]
        assert whole.tolist() == [[0, end - start]]


def test_masking_keeps_the_text_and_covers_exactly_the_shared_words() -> None:
    draw = random.Random(1)
    around = " ".join(draw.choice(WORDS[100:]) for _ in range(50))
    text = f"{around} {ITEM}. {around}"
    table = text_table([around, text])
    index, _ = decontaminate.index_of([[ITEM]], 13)
    masked = decontaminate.mask_spans(table, index, 13)
    assert masked["text"].equals(table["text"])
    assert masked["masked_spans"].to_pylist() == [
        [],
        [{"start": len(around) + 1, "end": len(around) + 1 + len(ITEM)}],
    ]


def test_spans_are_merged_in_order() -> None:
    assert decontaminate.merged([(5, 9), (0, 2), (8, 12), (12, 13), (20, 20)]) == [(0, 2), (5, 13), (20, 20)]


def test_all_strings_of_an_item_are_looked_for_or_the_named_fields(tmp_path: Path) -> None:
    file = tmp_path / "arc.test.jsonl"
    file.write_text(json.dumps({"q": "ask", "choices": ["x", {"y": "z"}], "n": 3, "bad": "\ud800"}) + "\n\n")
    assert list(decontaminate.read_items(str(file), file.name, [])) == ["ask\n\nx\n\nz\n\n?", None]
    assert list(decontaminate.read_items(str(file), file.name, ["q"])) == ["ask", None]
    with pytest.raises(ValueError, match=r"line 1 has no field answer; it has q, choices, n, bad: set --fields"):
        list(decontaminate.read_items(str(file), file.name, ["answer"]))
    assert decontaminate.set_name("a/arc.test.jsonl") == "a/arc"
    packed = tmp_path / "arc.jsonl.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    assert list(decontaminate.read_items(str(packed), packed.name, ["q"])) == ["ask", None]
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"arc\.jsonl\.gz is not compressed as its name says, or breaks"):
        list(decontaminate.read_items(str(packed), packed.name, []))


@pytest.mark.parametrize(("line", "mistake"), [("{", "is not JSON"), ("[1]", "is not a JSON object")])
def test_a_line_that_is_no_item_is_refused_by_name(tmp_path: Path, line: str, mistake: str) -> None:
    file = tmp_path / "gsm.jsonl"
    file.write_text('{"q": "fine"}\n' + line)
    with pytest.raises(ValueError, match=f"gsm.jsonl, line 2 {mistake}"):
        list(decontaminate.read_items(str(file), file.name, []))


def test_words_that_repeat_take_little_memory() -> None:
    repeated = hits(["0 " * 100_000], [" ".join(["0"] * 13)] * 300)
    assert len(repeated) == 300
    assert {hit["ngrams"] for hit in repeated} == {100_000 - 12}
    assert {(hit["start"], hit["end"]) for hit in repeated} == {(0, 199_999)}
