"""Sentences are cut as the plain pattern says, and in time that grows with the text alone."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.words import split_sentences, split_words

PLAIN = re.compile("[.!?\u2026\u3002\uff01\uff1f]+[\"'\u2019\u201d)\\]]*(?:\\s+|$)")


def by_the_plain_pattern(text: str) -> list[str]:
    ends = [match.end() for match in PLAIN.finditer(text)]
    if not ends or ends[-1] < len(text):
        ends.append(len(text))
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False) if start < end]


@given(st.text(alphabet=".!?\u2026\u3002\"')] \n\tab", max_size=60))
def test_sentences_end_where_the_plain_pattern_ends_them(text: str) -> None:
    assert split_sentences(text) == by_the_plain_pattern(text)
    assert "".join(split_sentences(text)) == text


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "text", ["." * 2_000_000 + "x", "?\"'" * 700_000 + "x", "a'" * 1_000_000, "." + ")" * 2_000_000 + "x"]
)
def test_a_document_that_is_made_to_be_slow_is_not(text: str) -> None:
    """A pattern that begins again at each dot of a run takes hours over a million of them."""
    assert split_sentences(text) == [text]
    assert split_words(text)
