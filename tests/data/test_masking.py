import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.masking import masked_tokens

TEXTS = st.text("ab \u00e9\u6f22\U0001f600\u2581", max_size=12)
WIDTHS = np.arange(64)
"""id k stands for k bytes; 0 is a control id"""


@st.composite
def tokenized(draw: st.DrawFn) -> tuple[str, list[int], list[dict[str, int]]]:
    """A text, a cut of its bytes into tokens between <bos> and <eos>, and spans of its characters."""
    text = draw(TEXTS)
    left = len(text.replace("\u2581", " ").encode())
    tokens = [0]
    while left:
        tokens.append(draw(st.integers(1, min(left, 5))))
        left -= tokens[-1]
    places = st.integers(0, len(text))
    spans = draw(st.lists(st.tuples(places, places).map(sorted), max_size=3))
    return text, [*tokens, 0], [{"start": start, "end": end} for start, end in spans]


@settings(deadline=None, max_examples=200)
@given(tokenized())
def test_exactly_the_tokens_that_share_a_byte_with_a_span_are_masked(
    case: tuple[str, list[int], list[dict[str, int]]],
) -> None:
    text, tokens, spans = case
    plain = text.replace("\u2581", " ")
    masked_bytes = set()
    for span in spans:
        begin = len(plain[: span["start"]].encode())
        masked_bytes |= set(range(begin, begin + len(plain[span["start"] : span["end"]].encode())))
    expected, place = set(), 0
    for index, width in enumerate(tokens):
        if masked_bytes & set(range(place, place + width)):
            expected.add(index)
        place += width
    masked = masked_tokens(text, tokens, WIDTHS, spans)
    assert {index for span in masked for index in range(span["start"], span["end"])} == expected


def test_a_span_becomes_one_range_of_whole_tokens() -> None:
    # bytes: <bos> "he" "llo" " " "world" <eos>
    tokens = [0, 2, 3, 1, 5, 0]
    assert masked_tokens("hello world", tokens, WIDTHS, [{"start": 3, "end": 7}]) == [{"start": 2, "end": 5}]


def test_without_spans_nothing_is_masked() -> None:
    assert masked_tokens("abc", [0, 3, 0], WIDTHS, []) == []
    assert masked_tokens("abc", [0, 3, 0], WIDTHS, [{"start": 2, "end": 2}]) == []


@pytest.mark.parametrize(("start", "end"), [(0, 4), (-1, 2), (2, 1)])
def test_a_span_outside_the_text_is_refused(start: int, end: int) -> None:
    with pytest.raises(ValueError, match=r"got the masked span .* in a text of 3 characters"):
        masked_tokens("abc", [0, 3, 0], WIDTHS, [{"start": start, "end": end}])
