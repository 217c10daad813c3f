"""Classes of characters, as arrays over all code points: what is invisible, what joins its neighbours, what is a word.

Classes come from pyarrow's RE2, normal forms from its utf8proc, both pinned: they do not depend on the version of
Python. Cost: each array takes up to 0.3 s once a process, and 1 byte a code point.
"""

import functools
import unicodedata
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

POINTS = 0x110000
INVISIBLE = (
    r"\p{Cf}\x{034F}\x{115F}\x{1160}\x{17B4}\x{17B5}\x{180B}-\x{180F}\x{2065}\x{3164}\x{FE00}-\x{FE0F}\x{FFA0}"
    r"\x{FFF0}-\x{FFF8}\x{E0000}-\x{E0FFF}"
)
"""format characters (Cf: soft hyphen, zero-width and direction marks), and the others that Unicode calls default
ignorable, such as variation selectors; in the syntax of RE2"""
OPTIONAL = (
    r"\x{0640}\x{064B}-\x{0652}\x{0670}\x{0610}-\x{061A}\x{06D6}-\x{06DC}\x{06DF}-\x{06E4}\x{06E7}\x{06E8}"
    r"\x{06EA}-\x{06ED}\x{08F0}-\x{08F2}\x{0591}-\x{05BD}\x{05BF}\x{05C1}\x{05C2}\x{05C4}\x{05C5}\x{05C7}"
)
"""what Arabic and Hebrew are written with or without: the stretching tatweel, vowel signs, points, cantillation"""
BY_DICTIONARY = r"\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
"""scripts without spaces whose words only a dictionary finds"""
BY_LETTER = r"\p{Tai_Le}\p{New_Tai_Lue}\p{Tai_Tham}\p{Tai_Viet}\p{Javanese}\p{Balinese}\p{Yi}"
"""scripts without spaces and without a dictionary here: each letter with its marks is a word"""
IDEOGRAPHIC = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\x{30FC}"
"""scripts without spaces whose characters carry meaning or sound of their own"""


def points_of(text: str) -> np.ndarray:
    """The code points of a text, uint32 [characters]."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


@functools.cache
def in_class(inside: str) -> np.ndarray:
    """bool [code points]: whether a character is in [inside], in the syntax of RE2."""
    points, characters = all_characters()
    return _over_all(points, pc.match_substring_regex(characters, f"[{inside}]").to_numpy(zero_copy_only=False))


@functools.cache
def moves() -> np.ndarray:
    """bool [code points]: whether a character may move before, or join with, the one before it in a normal form."""
    points, characters = all_characters()
    decomposed = pc.utf8_normalize(characters, "NFD")
    later = {character for text in pc.unique(decomposed).to_pylist() for character in text[1:]}
    marks = in_class(r"\pM")
    held = [
        character in later
        or unicodedata.combining(character) != 0
        # a mark that is newer than this Python: the combining class is not known
        or (marks[point] and unicodedata.category(character) == "Cn")
        for point, character in zip(points.tolist(), characters.to_pylist(), strict=True)
    ]
    return _over_all(points, held)


@functools.cache
def blank() -> np.ndarray:
    """bool [code points]: white space, and spacing accents, which NFKC would turn into a space with a mark."""
    points, characters = all_characters()
    return _over_all(points, pc.starts_with(pc.utf8_normalize(characters, "NFKC"), " "))


def ranges_of(flags: np.ndarray) -> str:
    """The flagged code points as ranges, to stand in brackets in a regular expression."""
    places = np.flatnonzero(flags)
    breaks = np.flatnonzero(np.diff(places) > 1)
    starts, ends = places[np.append(0, breaks + 1)], places[np.append(breaks, len(places) - 1)]
    return "".join(f"{chr(start)}-{chr(end)}" for start, end in zip(starts.tolist(), ends.tolist(), strict=True))


@functools.cache
def all_characters() -> tuple[np.ndarray, pa.Array]:
    """(code points, their characters) of all planes that hold characters, without surrogates."""
    points = np.concatenate(
        [np.arange(0xD800), np.arange(0xE000, 0x20000), np.arange(0x20000, 0x34000), np.arange(0xE0000, 0xE1000)]
    )
    return points, pa.array(map(chr, points.tolist()), pa.string())


def _over_all(points: np.ndarray, flags: Sequence[bool] | np.ndarray | pa.ChunkedArray) -> np.ndarray:
    table = np.zeros(POINTS, bool)
    table[points] = np.asarray(flags)
    table.flags.writeable = False
    return table
