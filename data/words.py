"""Words, sentences, lines and paragraphs as the quality heuristics count them.

A word is a run of letters, digits and underscores, with apostrophes inside and with its combining marks, or one other
character that is not white space. In scripts without spaces, words are ICU's: of dictionaries, or single letters with
their marks. So words are those of Unicode's UAX #29, but a full stop, comma or colon always ends one, as in English
before. A sentence ends in a run of . ! ? (or what ends one in its script) and closing quotes before white space, or
with the text. After the full width marks of East Asia no white space is needed. Cost: linear in the text, without a
model.
"""

import functools
import itertools
import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import regex

from data import characters
from data.folding import MOST_MARKS

_WORD = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")
_JOINERS = r"\u200c\u200d"
_INSIDE = rf"[\p{{L}}\p{{N}}\p{{M}}_{_JOINERS}]*"
_FLAG = r"[\U0001F1E6-\U0001F1FF]"
# the time of \X alone grows with the square of a run of flags
_MARKED_WORD = regex.compile(
    rf"[\p{{L}}\p{{N}}_]{_INSIDE}(?:['\u2019][\p{{L}}\p{{N}}_]{_INSIDE})*"
    rf"|{_FLAG}{_FLAG}?[\p{{M}}{_JOINERS}\U0001F3FB-\U0001F3FF]*|(?![\s\x1c-\x1f\u200b{_JOINERS}])\X"
)
"""in text with marks: as _WORD, and a character with its marks is one"""
_BY_LETTER = regex.compile(f"[{characters.BY_LETTER}]")
_LETTERS = regex.compile(rf"[{characters.BY_LETTER}]\p{{M}}*|[^{characters.BY_LETTER}]+")
_TOO_MANY_MARKS = regex.compile(rf"(\p{{M}}{{{MOST_MARKS}}})\p{{M}}+")
_HIDDEN = regex.compile(rf"[\p{{Cf}}--[\u200b{_JOINERS}]]+", regex.VERSION1)
_TERMINAL_TEXT = (
    "!.?\u061d\u061e\u061f\u06d4\u0700\u0701\u0702\u07f9\u0837\u0839\u083d\u083e\u0964\u0965\u104a\u104b\u1362\u1367"
    "\u1368\u166e\u1735\u1736\u17d4\u17d5\u17d6\u17d9\u17da\u1803\u1809\u1944\u1945\u1aa8\u1aa9\u1aaa\u1aab\u1b5a\u1b5b"
    "\u1b5e\u1b5f\u1b7d\u1b7e\u1c3b\u1c3c\u1c7e\u1c7f\u203c\u203d\u2047\u2048\u2049\u2e2e\u2e3c\u2e53\u2e54\u3002\ua4ff"
    "\ua60e\ua60f\ua6f3\ua6f7\ua876\ua877\ua8ce\ua8cf\ua92f\ua9c8\ua9c9\uaa5d\uaa5e\uaa5f\uaaf0\uaaf1\uabeb\ufe52\ufe56"
    "\ufe57\uff01\uff0e\uff1f\uff61\u0589"
)
TERMINAL = tuple(_TERMINAL_TEXT)
"""characters that end a sentence in some script: Unicode's Sentence_Terminal, in the basic plane"""
_UNSPACED_ENDS = "\u3002\uff01\uff1f\uff61"
_ENDS = f"[{re.escape(''.join(TERMINAL))}\u2026]"
_CLOSING = "[\"'\u2019\u201d)\\]\u300d\u300f\uff09]*+"
# The search looks at a run once, from its first character: a million dots would otherwise take hours.
_SENTENCE_END = re.compile(f"[{_UNSPACED_ENDS}]{_ENDS}*+{_CLOSING}\\s*+|(?<!{_ENDS}){_ENDS}++{_CLOSING}(?:\\s+|$)")


def split_words(text: str) -> list[str]:
    """The words of a text, in order. They are composed (NFC), without soft hyphens and other format characters.

    Of the marks of a letter, MOST_MARKS stay.
    """
    if is_plain(text):
        return _WORD.findall(text)
    shown = _TOO_MANY_MARKS.sub(r"\1", _HIDDEN.sub("", text))
    composed = pc.utf8_normalize(pa.scalar(shown), "NFC").as_py()
    runs = _MARKED_WORD.findall(composed)
    without_spaces = [run for run in runs if unspaced(run)]
    if not without_spaces:
        return runs
    # the words of all these runs at once, and a newline after each run
    parts = iter(_segments("\n".join([*without_spaces, ""])))
    words: list[str] = []
    for run in runs:
        words += itertools.takewhile(lambda part: part != "\n", parts) if unspaced(run) else (run,)
    return words


def is_plain(text: str) -> bool:
    """Whether the words of a text are its runs of letters: without combining marks, and with spaces between words."""
    return text.isascii() or not _special()[characters.points_of(text)].any()


def unspaced(text: str) -> bool:
    """Whether the text has a character of a script without spaces."""
    return not text.isascii() and _any_unspaced().search(text) is not None


@functools.cache
def unspaced_letters() -> str:
    """The letters of scripts without spaces, to stand in brackets in a regular expression."""
    return characters.ranges_of(_unspaced() & characters.in_class(r"\pL\pN"))


def edges(text: str) -> set[int]:
    """Places in a text, in characters, where a word of a script without spaces may begin or end."""
    return set(itertools.accumulate(map(len, _segments(text)), initial=0))


def cut(text: str) -> str:
    """The text with a space before and after each word of a script that is cut by ICU's dictionaries."""
    return _by_dictionary().sub(lambda run: f" {' '.join(_icu_words(run[0]))} ", text)


def dictionary_cuts(text: str) -> list[int]:
    """Places in a text, in characters, at which `cut` puts a space."""
    return [
        place
        for run in _by_dictionary().finditer(text)
        for place in itertools.accumulate(map(len, _icu_words(run[0])), initial=run.start())
    ]


def split_lines(text: str) -> list[str]:
    """The text cut at runs of newlines, as re.split("\\n+", text) does, ten times as fast.

    A run at the beginning or end of the text gives an empty line.
    """
    before = [""] if text.startswith("\n") else []
    after = [""] if text.endswith("\n") else []
    return [*before, *(line for line in text.split("\n") if line), *after] or [text]


def split_paragraphs(text: str) -> list[str]:
    """The text without white space around it, cut at runs of two or more newlines."""
    paragraphs = [part.lstrip("\n") for part in text.strip().split("\n\n")]
    return [part for part in paragraphs if part] or [""]


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, in order, each with the white space after it."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    if not ends or ends[-1] < len(text):
        ends.append(len(text))
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False) if start < end]


def _segments(text: str) -> list[str]:
    """The parts of a text by ICU's rules for words. A letter of a script without a dictionary is a part."""
    segments = _icu_words(text)
    if not _BY_LETTER.search(text):
        return segments
    return [part for segment in segments for part in _LETTERS.findall(segment)]


def _icu_words(text: str) -> list[str]:
    from icu4py.breakers import WordBreaker  # 40 MB of tables: only for texts of these scripts

    return list(WordBreaker(text, "en"))


@functools.cache
def _special() -> np.ndarray:
    """bool [code points]: whether _WORD alone does not find the words of a text with this character."""
    return characters.in_class(r"\pM\p{Cf}\x{1F1E6}-\x{1F1FF}\x{1F3FB}-\x{1F3FF}") | _unspaced()


@functools.cache
def _unspaced() -> np.ndarray:
    """bool [code points]: whether a character is of a script without spaces."""
    scripts = characters.BY_DICTIONARY + characters.BY_LETTER + characters.IDEOGRAPHIC
    return characters.in_class(scripts) & characters.in_class(r"\pL\pM\pN")


@functools.cache
def _by_dictionary() -> re.Pattern[str]:
    flags = characters.in_class(characters.BY_DICTIONARY) & characters.in_class(r"\pL\pM\pN")
    return re.compile(f"[{characters.ranges_of(flags)}]+")


@functools.cache
def _any_unspaced() -> re.Pattern[str]:
    return re.compile(f"[{characters.ranges_of(_unspaced())}]")
