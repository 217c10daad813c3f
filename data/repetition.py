"""How much of a text repeats itself, as the Gopher paper measures it (arXiv 2112.11446, table A1).

N-grams are compared by 64-bit hashes of their characters, all n-grams of a text at once in NumPy and Arrow.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

_BASE = np.uint64(0x9E3779B97F4A7C15)
_INVERSE = np.uint64(pow(int(_BASE), -1, 1 << 64))


def repeated(parts: Sequence[str]) -> tuple[int, int]:
    """(number of parts that repeat an earlier one, characters in these parts)."""
    seen: set[str] = set()
    count = characters = 0
    for part in parts:
        if part in seen:
            count += 1
            characters += len(part)
        else:
            seen.add(part)
    return count, characters


class Ngrams:
    """The n-grams of one list of words, for any n."""

    def __init__(self, words: Sequence[str], separator: str) -> None:
        """`separator` is the text between words when n-grams are compared and measured."""
        lengths = np.fromiter(map(len, words), np.int64, len(words)) + len(separator)
        self._start = np.concatenate([[0], np.cumsum(lengths)])
        self._separator = len(separator)
        joined = separator.join([*words, ""])
        characters = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64) + np.uint64(1)
        self._sums = np.concatenate([[np.uint64(0)], np.cumsum(characters * _powers(_BASE, len(characters)))])
        self._inverse = _powers(_INVERSE, len(characters) + 1)

    def _hashes(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """(hash, length in characters) of every n-gram."""
        start, end = self._start[:-n], self._start[n:] - self._separator
        return (self._sums[end] - self._sums[start]) * self._inverse[start], end - start

    def _numbered(self, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(number of each n-gram in order of first occurrence, equal n-grams alike; its length; counts by number)."""
        hashes, lengths = self._hashes(n)
        numbers = pa.array(hashes).dictionary_encode().indices.to_numpy()
        return numbers, lengths, np.bincount(numbers)

    def most_common_characters(self, n: int) -> int:
        """Characters in all occurrences of the most common n-gram (the first of several); 0 without n-grams."""
        if len(self._start) <= n:
            return 0
        numbers, lengths, counts = self._numbered(n)
        chosen = int(counts.argmax())  # the lowest number, so the first in the text
        return int(lengths[np.argmax(numbers == chosen)] * counts[chosen])

    def repeated_characters(self, n: int) -> int:
        """Characters in n-grams that repeat an earlier one. N-grams that overlap a counted n-gram are not counted."""
        if len(self._start) <= n:
            return 0
        numbers, lengths, counts = self._numbered(n)
        again = np.flatnonzero(counts[numbers] > 1)
        seen: set[int] = set()
        characters = free_from = 0
        for place, number in zip(again.tolist(), numbers[again].tolist(), strict=True):
            if place < free_from:
                continue
            if number in seen:
                characters += int(lengths[place])
                free_from = place + n
            else:
                seen.add(number)
        return characters


def _powers(base: np.uint64, count: int) -> np.ndarray:
    powers = np.full(count, base, np.uint64)
    powers[:1] = 1
    return np.cumprod(powers, dtype=np.uint64)
