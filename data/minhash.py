"""Which documents may be near-duplicates: MinHash over word shingles, banded (LSH).

    text -> folded -> words -> shingles of n words -> MinHash signature (rensa) -> one key a band

Two documents with Jaccard similarity J of their shingle sets share a band of r hashes with probability J^r, and at
least one of b bands with probability 1 - (1 - J^r)^b (Leskovec, Rajaraman, Ullman: Mining of Massive Datasets, 3.4).

Words are runs of letters, marks and digits of any script in the folded text (folding.py). So typographic quotes, dashes
and unusual spaces separate words as their ASCII forms do. Of scripts without spaces, Thai, Lao, Khmer and Burmese are
cut by ICU's dictionaries. In others, such as Chinese characters and kana, each character with its marks is a word.
Cost: about 30 MB/s a core, all in NumPy and Rust; texts are processed in blocks that stay in a core's cache.
"""

import functools

import numpy as np
import pyarrow as pa
import rensa

from data import characters, folding, words
from data.folding import BLOCK_BYTES

_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd: powers have inverses modulo 2^64
_WORD_BASE = np.uint64(0xD1B54A32D192ED03)
# ASCII letters and digits, and every byte of a longer UTF-8 character that `_spaced` leaves
_IN_WORD = np.array([byte >= 128 or chr(byte).isalnum() for byte in range(256)])
_BETWEEN, _OWN, _MARK, _CUT = 1, 2, 4, 8
"""kinds of characters: between words; a letter that is a word; a mark; of a script that is cut by dictionaries"""


def mix(values: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64, a bijection of uint64 in which every output bit depends on every input bit."""
    z = values.astype(np.uint64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def signatures(texts: pa.ChunkedArray, shingle_words: int, hashes: int, seed: int) -> np.ndarray:
    """MinHash signatures, uint32 [documents, hashes]. A document without words has 2**32 - 1 everywhere."""
    made = [signatures_of(folding.fold(block), shingle_words, hashes, seed) for block in folding.blocks(texts)]
    return np.concatenate([np.zeros((0, hashes), np.uint32), *made])


def signatures_of(folded: pa.LargeStringArray, shingle_words: int, hashes: int, seed: int) -> np.ndarray:
    """As `signatures`, of one block of folded texts."""
    shingles, offsets = _shingles(*_word_hashes(*_worded(folded)), shingle_words)
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(shingles, offsets.astype(np.uint64), hashes, seed)
    return np.array(matrix.to_rows(), np.uint32).reshape(-1, hashes)


def band_keys(signatures_DH: np.ndarray, bands: int) -> np.ndarray:
    """A key for each band, uint64 [documents, bands]: equal if all hashes of the band are equal."""
    documents, hashes = signatures_DH.shape
    parts = mix(signatures_DH).reshape(documents, bands, hashes // bands)
    powers = _powers(_BASE, hashes // bands)
    keys = (parts * powers).sum(axis=2, dtype=np.uint64)
    return mix(keys + np.arange(1, bands + 1, dtype=np.uint64) * _WORD_BASE)


def has_words(signatures_DH: np.ndarray) -> np.ndarray:
    """bool [documents]: False for a document without words."""
    return (signatures_DH != np.uint32(0xFFFFFFFF)).any(axis=1)


def shingle_hashes(texts: pa.Array, shingle_words: int) -> tuple[np.ndarray, np.ndarray]:
    """(hashes of all shingles uint64 [n], offsets int64 [documents + 1]) of a string array.

    A document with fewer words than a shingle has one shingle, of all its words. A document without words has none.
    """
    return _shingles(*_word_hashes(*_worded(folding.fold(texts))), shingle_words)


def word_counts(texts: pa.Array) -> np.ndarray:
    """Number of words of each text, int64 [texts]."""
    return _word_hashes(*_worded(folding.fold(texts)))[1]


def shingle_places(text: str, shingle_words: int) -> tuple[np.ndarray, np.ndarray]:
    """(hashes of the shingles of one text uint64 [n], character ranges [start, end) int64 [n, 2])."""
    folded, begin, end = folding.fold_with_places(text)
    cuts = words.dictionary_cuts(folded)
    begin, end = np.insert(begin, cuts, 0), np.insert(end, cuts, 0)  # spaces, at which no word begins or ends
    data, offsets, begins = _spaced(*folding.bytes_of(pa.array([words.cut(folded)], pa.large_string())))
    start = np.flatnonzero(begins)
    hashes, _ = _shingles(*_word_hashes(data, offsets, begins), shingle_words)
    if not len(hashes):
        return hashes, np.zeros((0, 2), np.int64)
    # a word ends with its last byte: the last byte inside a word before the next word begins
    last_inside = np.maximum.accumulate(np.where(_IN_WORD[data], np.arange(len(data)), 0))
    last_byte = last_inside[np.append(start[1:], len(data)) - 1]
    character_of = np.cumsum((data & 0xC0) != 0x80) - 1
    last = np.minimum(np.arange(len(hashes)) + shingle_words, len(start)) - 1
    places = np.stack([begin[character_of[start[: len(hashes)]]], end[character_of[last_byte[last]]]], axis=1)
    return hashes, places


def _shingles(words: np.ndarray, counts: np.ndarray, shingle_words: int) -> tuple[np.ndarray, np.ndarray]:
    first = np.cumsum(counts) - counts
    shingles = np.where(counts >= shingle_words, counts - shingle_words + 1, np.minimum(counts, 1))
    ends = np.cumsum(shingles)
    start = np.repeat(first - (ends - shingles), shingles) + np.arange(int(ends[-1]) if len(ends) else 0)
    powers = _powers(_WORD_BASE, shingle_words)
    padded = np.concatenate([words, np.zeros(shingle_words, np.uint64)])
    from_every_word = np.zeros(len(words), np.uint64)
    for place, power in enumerate(powers):
        from_every_word += padded[place : place + len(words)] * power
    total = from_every_word[start]
    # a short document: without the words of the documents after it
    for document in np.flatnonzero((counts > 0) & (counts < shingle_words)).tolist():
        own = slice(first[document], first[document] + counts[document])
        total[ends[document] - 1] = (words[own] * powers[: counts[document]]).sum(dtype=np.uint64)
    return mix(total), np.concatenate([[0], ends]).astype(np.int64)


def _worded(folded: pa.LargeStringArray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(bytes of folded texts, offsets, whether a word begins at the byte), with ASCII spaces between words."""
    data, offsets = folding.bytes_of(folded)
    lead, point = folding.points_in(data)
    if len(lead) and (cut := (_kinds()[point] & _CUT) != 0).any():
        number = np.arange(len(folded))
        rows = np.unique(np.searchsorted(offsets, lead[cut], side="right") - 1)
        number[rows] = len(folded) + np.arange(len(rows))
        spaced = pa.array(map(words.cut, folded.take(pa.array(rows)).to_pylist()), pa.large_string())
        data, offsets = folding.bytes_of(pa.concat_arrays([folded, spaced]).take(pa.array(number)))
    return _spaced(data, offsets)


def _spaced(data: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(the texts with an ASCII space for each character between words, offsets, whether a word begins at the byte)."""
    lead, point = folding.points_in(data)
    if not len(lead):
        return data, offsets, _begins(data, offsets)
    kind, length = _kinds()[point], folding.lengths_at(data, lead)
    between = (kind & _BETWEEN) != 0
    data, kept = data.copy(), np.ones(len(data), bool)
    data[lead[between]] = ord(" ")
    for place in (1, 2, 3):
        kept[lead[between & (length > place)] + place] = False
    data, new_place = data[kept], np.concatenate([[0], np.cumsum(kept)])
    offsets = new_place[offsets]
    begins = _begins(data, offsets)
    own = (kind & _OWN) != 0
    if own.any():
        place = new_place[lead]
        after = place[own] + length[own]
        after, marks = after[after < len(data)], place[(kind & _MARK) != 0]
        of_marks = begins[marks]
        begins[after] = _IN_WORD[data[after]]
        begins[place[own]] = True
        begins[marks] = of_marks  # a mark belongs to the letter before it
    return data, offsets, begins


def _begins(data: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """bool [bytes]: whether a run of bytes inside words begins at the byte."""
    inside = _IN_WORD[data]
    begins = inside & ~np.concatenate([[False], inside[:-1]])
    starts_of_documents = offsets[:-1][offsets[:-1] < len(data)]
    begins[starts_of_documents] = inside[starts_of_documents]
    return begins


@functools.cache
def _kinds() -> np.ndarray:
    """The kinds of every code point, uint8."""
    in_class = characters.in_class
    inside = in_class(r"\pL\pM\pN")
    own = in_class(characters.IDEOGRAPHIC + characters.BY_LETTER) & in_class(r"\pL\pN")
    kinds = np.where(inside, 0, _BETWEEN) | np.where(own, _OWN, 0)
    kinds |= np.where(in_class(r"\pM"), _MARK, 0) | np.where(in_class(characters.BY_DICTIONARY), _CUT, 0)
    return kinds.astype(np.uint8)


def _word_hashes(data: np.ndarray, offsets: np.ndarray, begins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(hash of every word uint64 [words], number of words of each document int64 [documents])."""
    inside, start = _IN_WORD[data], np.flatnonzero(begins)
    # the hash of a word is a difference of prefix sums of a polynomial, times the inverse power of the word's start
    powers = _powers(_BASE, len(data))
    sums = np.concatenate([[np.uint64(0)], np.cumsum(np.where(inside, data, 0).astype(np.uint64) * powers)])
    inverse = pow(int(_BASE), -1, 1 << 64)
    end = np.concatenate([start[1:], [len(data)]]) if len(start) else start
    values = (sums[end] - sums[start]) * _powers(np.uint64(inverse), len(data))[start]
    document = np.searchsorted(offsets, start, side="right") - 1
    return mix(values), np.bincount(document, minlength=len(offsets) - 1).astype(np.int64)


def _powers(base: np.uint64, count: int) -> np.ndarray:
    """base^0 to base^(count - 1) modulo 2^64, read-only."""
    # the powers for one long text must not stay in memory
    return _kept_powers(base)[:count] if count <= 2 * BLOCK_BYTES else _made_powers(base, count)


@functools.cache
def _kept_powers(base: np.uint64) -> np.ndarray:
    return _made_powers(base, 2 * BLOCK_BYTES)


def _made_powers(base: np.uint64, count: int) -> np.ndarray:
    powers = np.full(count, base, np.uint64)
    powers[:1] = 1
    powers = np.cumprod(powers, dtype=np.uint64)
    powers.flags.writeable = False
    return powers
