"""Which documents may be near-duplicates: MinHash over word shingles, banded (LSH).

    text -> words -> shingles of n words -> MinHash signature (rensa) -> one key a band

Two documents with Jaccard similarity J of their shingle sets share a band of r hashes with probability J^r, and at
least one of b bands with probability 1 - (1 - J^r)^b (Leskovec, Rajaraman, Ullman: Mining of Massive Datasets, 3.4).

Words are runs of letters, marks and digits of any script, after lower-casing. So typographic quotes, dashes and unusual
spaces separate words as their ASCII forms do. A CJK character or kana is a word of its own. Cost: about 30 MB/s a core,
all in NumPy and Rust; texts are processed in blocks that stay in a core's cache.
"""

import functools
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import rensa

BLOCK_BYTES = 1 << 18
"""bytes of text in a block: arrays with 8 bytes for each of them stay in the second-level cache"""
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd: powers have inverses modulo 2^64
_WORD_BASE = np.uint64(0xD1B54A32D192ED03)
# ASCII letters and digits, and every byte of a longer UTF-8 character that `_lowered` leaves
_IN_WORD = np.array([byte >= 128 or chr(byte).isalnum() for byte in range(256)])
# first bytes of U+3000 to U+DFFF: kana, CJK, Hangul, written without spaces
_OWN_WORD = np.array([0xE3 <= byte <= 0xED for byte in range(256)])
_BETWEEN_WORDS = r"[^\x00-\x7f\pL\pM\pN]"
"""characters beyond ASCII between words: punctuation, symbols and white space"""


def mix(values: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64, a bijection of uint64 in which every output bit depends on every input bit."""
    z = values.astype(np.uint64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def signatures(texts: pa.ChunkedArray, shingle_words: int, hashes: int, seed: int) -> np.ndarray:
    """MinHash signatures, uint32 [documents, hashes]. A document without words has 2**32 - 1 everywhere."""
    made = [np.zeros((0, hashes), np.uint32)]
    for block in blocks(texts):
        shingles, offsets = shingle_hashes(block, shingle_words)
        matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(shingles, offsets.astype(np.uint64), hashes, seed)
        made.append(np.array(matrix.to_rows(), np.uint32).reshape(-1, hashes))
    return np.concatenate(made)


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
    words, counts = _word_hashes(*_lowered(texts))
    return _shingles(words, counts, shingle_words)


def word_counts(texts: pa.Array) -> np.ndarray:
    """Number of words of each text, int64 [texts]."""
    return _word_hashes(*_lowered(texts))[1]


def shingle_places(text: str, shingle_words: int) -> tuple[np.ndarray, np.ndarray]:
    """(hashes of the shingles of one text uint64 [n], character ranges [start, end) int64 [n, 2])."""
    data, offsets = _lowered(pa.array([text]))
    inside = _IN_WORD[data]
    start = np.flatnonzero(_word_begins(data, offsets))
    words, counts = _word_hashes(data, offsets)
    hashes, _ = _shingles(words, counts, shingle_words)
    if not len(hashes):
        return hashes, np.zeros((0, 2), np.int64)
    # a word ends after its last byte: the last byte inside a word before the next word begins
    last_inside = np.maximum.accumulate(np.where(inside, np.arange(len(data)), 0))
    end = last_inside[np.append(start[1:], len(data)) - 1] + 1
    # lower-casing maps one character to one, so places in characters stay the same
    character_of = np.concatenate([[0], np.cumsum((data & 0xC0) != 0x80)])
    last = np.minimum(np.arange(len(hashes)) + shingle_words, len(start)) - 1
    places = np.stack([character_of[start[: len(hashes)]], character_of[end[last]]], axis=1)
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


def _lowered(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """(bytes of the texts in lower case, offsets), with a space for each character beyond ASCII between words."""
    lowered = pc.utf8_lower(texts).cast(pa.large_string())
    offsets = np.frombuffer(lowered.buffers()[1], np.int64)[lowered.offset : lowered.offset + len(lowered) + 1]
    buffer = lowered.buffers()[2]
    data = np.frombuffer(buffer, np.uint8)[offsets[0] : offsets[-1]] if buffer is not None else np.zeros(0, np.uint8)
    return _spaced(data, offsets - offsets[0])


def _spaced(data: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The texts with an ASCII space for each character beyond ASCII that separates words."""
    lead = np.flatnonzero(data >= 0xC0)
    if not len(lead):
        return data, offsets
    length = 2 + (data[lead] >= 0xE0) + (data[lead] >= 0xF0)
    padded = np.append(data, np.zeros(3, np.uint8)).astype(np.uint32)
    point = padded[lead] & np.uint32(0xFF) >> (length + 1).astype(np.uint32)
    for place in (1, 2, 3):
        point = np.where(length > place, point << 6 | padded[lead + place] & 0x3F, point)
    between = _between_words()[point]
    lead, length = lead[between], length[between]
    data, kept = data.copy(), np.ones(len(data), bool)
    data[lead] = ord(" ")
    for place in (1, 2, 3):
        kept[lead[length > place] + place] = False
    return data[kept], np.concatenate([[0], np.cumsum(kept)])[offsets]


@functools.cache
def _between_words() -> np.ndarray:
    """bool [code points]: whether a character separates words, by pyarrow's RE2, so for every version of Python."""
    points = [point for point in range(0x110000) if not 0xD800 <= point < 0xE000]  # without surrogates
    table = np.zeros(0x110000, bool)
    table[points] = pc.match_substring_regex(pa.array(map(chr, points), pa.string()), _BETWEEN_WORDS).to_numpy(False)
    return table


def _word_hashes(data: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(hash of every word uint64 [words], number of words of each document int64 [documents])."""
    inside = _IN_WORD[data]
    start = np.flatnonzero(_word_begins(data, offsets))
    # the hash of a word is a difference of prefix sums of a polynomial, times the inverse power of the word's start
    powers = _powers(_BASE, len(data))
    sums = np.concatenate([[np.uint64(0)], np.cumsum(np.where(inside, data, 0).astype(np.uint64) * powers)])
    inverse = pow(int(_BASE), -1, 1 << 64)
    end = np.concatenate([start[1:], [len(data)]]) if len(start) else start
    values = (sums[end] - sums[start]) * _powers(np.uint64(inverse), len(data))[start]
    document = np.searchsorted(offsets, start, side="right") - 1
    return mix(values), np.bincount(document, minlength=len(offsets) - 1).astype(np.int64)


def _word_begins(data: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """bool [bytes]: whether a word begins at the byte."""
    inside = _IN_WORD[data]
    previous = np.concatenate([[False], inside[:-1]])
    own = _OWN_WORD[data]
    begins = inside & (~previous | own)
    after_own = np.flatnonzero(own) + 3
    after_own = after_own[after_own < len(data)]
    begins[after_own] |= inside[after_own]
    starts_of_documents = offsets[:-1][offsets[:-1] < len(data)]
    begins[starts_of_documents] = inside[starts_of_documents]
    return begins


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
