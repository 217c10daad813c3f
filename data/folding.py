"""The folded form of a text, in which texts are compared. The text that is kept never changes.

    text -> without invisible and optional characters -> NFKC -> lower case -> NFC

Texts that differ in letter case, in Unicode form (composed or not, full or half width, ligatures), or in characters
that do not show (soft hyphens, zero-width, format and direction marks) have one folded form. So have Arabic with and
without tatweel and vowel signs, Hebrew with and without points, and Greek with either sigma. No language has rules of
its own: Turkish dotless i stays, and dotted I becomes i. Cost: English runs at 100 MB/s a core or more, text whose
characters join at some 25 MB/s.
"""

import functools
import re
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data import characters

BLOCK_BYTES = 1 << 18
"""bytes of text in a block: arrays with 8 bytes for each of them stay in the second-level cache"""
MOST_MARKS = 30
"""marks on one letter that count: more are left out, because the time to sort them grows with the square of their
number. Unicode's stream-safe text has as many (UAX #15)"""
_UNLIKE = (
    ("\u03c2", "\u03c3"),  # Greek final sigma
    ("\u00df", "ss"),
    ("i\u0307", "i"),  # what lower case of Turkish dotted I gives elsewhere
    ("\u0e4d\u0e32", "\u0e33"),  # Thai and Lao am, which NFKC takes apart and dictionaries hold whole
    ("\u0ecd\u0eb2", "\u0eb3"),
)
"""what is replaced after lower case"""
_AFTER = "\u0e32\u0eb2"
"""second characters of `_UNLIKE`, as far as they are not marks"""


def fold(texts: pa.Array) -> pa.LargeStringArray:
    """The folded form of each text."""
    lowered = pc.utf8_lower(texts).cast(pa.large_string())
    data, offsets = bytes_of(lowered)
    lead, point = points_in(data)
    if not len(lead):
        return lowered
    kinds, sizes, forms = _table()
    kind = kinds[point]
    if not kind.any():
        return lowered
    document = np.searchsorted(offsets, lead[kind == _WHOLE], side="right") - 1
    if (single := kind == _SINGLE).any():
        data, offsets = _replaced(data, offsets, lead[single], sizes[point[single]], forms[point[single]])
        lowered = pa.LargeStringArray.from_buffers(len(texts), pa.py_buffer(offsets), pa.py_buffer(data))
    if not len(document):
        return lowered
    whole, number = np.unique(document), np.arange(len(lowered))
    number[whole] = len(lowered) + np.arange(len(whole))
    changing = np.flatnonzero(kind)
    many = bool((changing[MOST_MARKS:] - changing[:-MOST_MARKS] == MOST_MARKS).any())
    return pa.concat_arrays([lowered, _wholly(texts.take(pa.array(whole)), many)]).take(pa.array(number))


def fold_text(text: str) -> str:
    """The folded form of one text."""
    return text.lower() if text.isascii() else fold(pa.array([text], pa.large_string()))[0].as_py()


def fold_with_places(text: str) -> tuple[str, np.ndarray, np.ndarray]:
    """(folded form; for each of its characters the beginning and the end of what it was made of, in characters)."""
    if text.isascii():
        places = np.arange(len(text))
        return text.lower(), places, places + 1
    alone = ~_joins()[characters.points_of(text)]
    alone[0] = True
    edges = np.append(np.flatnonzero(alone), len(text))
    pieces = [text[start:end] for start, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)]
    distinct = list(dict.fromkeys(pieces))
    folded_of = dict(zip(distinct, fold(pa.array(distinct, pa.large_string())).to_pylist(), strict=True))
    folded = [folded_of[piece] for piece in pieces]
    lengths = np.fromiter(map(len, folded), np.int64, len(folded))
    return "".join(folded), np.repeat(edges[:-1], lengths), np.repeat(edges[1:], lengths)


def blocks(texts: pa.ChunkedArray) -> Iterator[pa.Array]:
    """The texts in blocks of about BLOCK_BYTES. A longer text is a block of its own."""
    for chunk in texts.chunks:
        sizes = np.cumsum(pc.binary_length(chunk).to_numpy(zero_copy_only=False))
        start = 0
        while start < len(chunk):
            before = sizes[start - 1] if start else 0
            end = max(start + 1, int(np.searchsorted(sizes, before + BLOCK_BYTES, side="right")))
            yield chunk.slice(start, end - start)
            start = end


def bytes_of(texts: pa.LargeStringArray) -> tuple[np.ndarray, np.ndarray]:
    """(bytes of all texts uint8 [n], offsets int64 [texts + 1])."""
    offsets = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1]
    buffer = texts.buffers()[2]
    data = np.frombuffer(buffer, np.uint8)[offsets[0] : offsets[-1]] if buffer is not None else np.zeros(0, np.uint8)
    return data, offsets - offsets[0]


def points_in(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(places of the first bytes of characters beyond ASCII, their code points) of UTF-8."""
    lead = np.flatnonzero(data >= 0xC0)
    if not len(lead):
        return lead, lead
    length = lengths_at(data, lead)
    padded = np.append(data, np.zeros(3, np.uint8)).astype(np.uint32)
    point = padded[lead] & np.uint32(0xFF) >> (length + 1).astype(np.uint32)
    for place in (1, 2, 3):
        point = np.where(length > place, point << 6 | padded[lead + place] & 0x3F, point)
    return lead, point


def lengths_at(data: np.ndarray, lead: np.ndarray) -> np.ndarray:
    """Bytes of the characters beyond ASCII that begin at `lead`."""
    return 2 + (data[lead] >= 0xE0) + (data[lead] >= 0xF0)


_SINGLE, _WHOLE = 1, 2
"""kinds of characters: replaced by as many bytes or fewer; one whose text is normalized"""


@functools.cache
def _table() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every code point: its kind uint8, bytes of what replaces a _SINGLE uint8, these bytes as uint32."""
    points, every = characters.all_characters()
    folded, lowered = _wholly(every.cast(pa.large_string())), pc.utf8_lower(every).cast(pa.large_string())
    changed = np.flatnonzero(pc.not_equal(folded, lowered).to_numpy(zero_copy_only=False))
    kinds, sizes = np.zeros(characters.POINTS, np.uint8), np.zeros(characters.POINTS, np.uint8)
    forms, moves = np.zeros(characters.POINTS, np.uint32), characters.moves()
    kinds[moves] = _WHOLE
    for point, form in zip(points[changed].tolist(), folded.take(pa.array(changed)).to_pylist(), strict=True):
        data = form.encode()
        if len(data) > len(chr(point).encode()) or moves[characters.points_of(form)].any():
            kinds[point] = _WHOLE
        elif not form or not moves[point]:
            kinds[point], sizes[point], forms[point] = _SINGLE, len(data), int.from_bytes(data, "little")
    # the first characters of pairs that are replaced
    kinds[[ord(old[0]) for old, _ in _UNLIKE if old[-1] in _AFTER]] = _WHOLE
    return kinds, sizes, forms


def _replaced(
    data: np.ndarray, offsets: np.ndarray, lead: np.ndarray, sizes: np.ndarray, forms: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(bytes, offsets) with the characters at `lead` replaced by the first `sizes` bytes of `forms`."""
    data, lengths, left_out = data.copy(), lengths_at(data, lead), []
    for place in range(4):
        written, cut = sizes > place, (sizes <= place) & (lengths > place)
        data[lead[written] + place] = forms[written] >> np.uint32(8 * place) & np.uint32(0xFF)
        left_out.append(lead[cut] + place)
    places = np.sort(np.concatenate(left_out))
    return np.delete(data, places), offsets - np.searchsorted(places, offsets)


def _wholly(texts: pa.Array, many_marks: bool = False) -> pa.LargeStringArray:
    """The folded form of each text, by way of normal forms. `many_marks`: a letter may have more than MOST_MARKS."""
    if not len(texts):
        return pa.array([], pa.large_string())
    left_out = f"[{characters.INVISIBLE}{characters.OPTIONAL}]+"
    spaced = pc.replace_substring_regex(texts, f"[{_blanks()}]", " ")
    shown = pc.replace_substring_regex(spaced, left_out, "")
    if many_marks:
        shown = pa.array([_too_many().sub(r"\1", text) for text in shown.to_pylist()], shown.type)
    folded = pc.utf8_normalize(shown, "NFKC")
    folded = pc.utf8_lower(pc.replace_substring_regex(folded, left_out, ""))
    for old, new in _UNLIKE:
        folded = pc.replace_substring(folded, old, new)
    return pc.utf8_normalize(folded, "NFC").cast(pa.large_string())


@functools.cache
def _too_many() -> re.Pattern[str]:
    joins = f"[{characters.ranges_of(_joins())}]"
    return re.compile(f"({joins}{{{MOST_MARKS}}}){joins}+")


@functools.cache
def _blanks() -> str:
    flags = characters.blank().copy()
    flags[ord(" ")] = False
    return characters.ranges_of(flags)


@functools.cache
def _joins() -> np.ndarray:
    """bool [code points]: whether a character may be folded together with the one before it."""
    points, every = characters.all_characters()
    moves = characters.moves()
    joins = moves | characters.in_class(characters.INVISIBLE + characters.OPTIONAL)
    blank = characters.blank()
    for point, form in zip(points.tolist(), pc.utf8_normalize(every, "NFKC").to_pylist(), strict=True):
        if moves[ord(form[0])] and not blank[point]:
            joins[point] = True
    joins[[ord(character) for character in _AFTER]] = True
    return joins
