"""Personal data in text, found by class: it is redacted, or its document is dropped.

    column -> rows that may hold some (RE2 over the whole column) -> candidates in those rows -> checked -> ranges

Time is linear in the length of any text. A candidate counts if its check passes (data/pii_classes.py):

- an email address has letters of any script written with spaces; "[at]", "(dot)", "%40" and "&#64;" are read too
- a card has a valid Luhn digit, a known prefix and the printed grouping of digits
- an IBAN passes mod 97 and has the length of its country, in any grouping
- a national id has valid check digits or letters, or is a US number that may have been given out
- a phone number has a country code, is written as in North America, or follows a word such as "phone"
- an IP address is routed on the public internet, and no word before it makes it a version or a section

Not personal data: email addresses at example.com and at reserved names, `git@host:path`, the user in a URL,
`logo@2x.png`. Addresses in scripts written without spaces are missed. Precision and recall by class:
docs/benchmarks.md. Cost: some 50 MB/s a core in source code.
"""

import bisect
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from data import pii_classes

PLACEHOLDER = "[{}]"
"""text in place of a redacted range, with the name of the class; no tokenizer takes it for a named symbol"""
CLASSES = tuple(pii_classes.CLASSES)
"""classes in the order of the search: text that one class takes is not seen by a later one"""


def candidates(texts: pa.ChunkedArray, classes: Sequence[str]) -> list[int]:
    """Rows that may hold personal data of one of the classes."""
    if not classes or not len(texts):
        return []
    flags = [pc.match_substring_regex(texts, pii_classes.CLASSES[name].may_hold) for name in classes]
    matches = flags[0]
    for flag in flags[1:]:
        matches = pc.or_(matches, flag)
    return pc.indices_nonzero(matches.combine_chunks()).to_pylist()


def find(text: str, classes: Sequence[str]) -> list[tuple[str, int, int]]:
    """(class, start, end) of each range in characters, in order. Ranges do not overlap."""
    data = text.encode()
    taken: list[tuple[int, int, str]] = []
    for name in (class_name for class_name in CLASSES if class_name in classes):
        for start, end in pii_classes.CLASSES[name].search(data):
            place = bisect.bisect(taken, (start, end))
            overlaps = (place and taken[place - 1][1] > start) or (place < len(taken) and taken[place][0] < end)
            if not overlaps:
                taken.insert(place, (start, end, name))
    if not taken:
        return []
    # bytes to characters in one pass
    ranges, characters, place = [], 0, 0
    for start, end, name in taken:
        characters += len(data[place:start].decode())
        length = len(data[start:end].decode())
        ranges.append((name, characters, characters + length))
        characters, place = characters + length, end
    return ranges


def redact(text: str, ranges: Sequence[tuple[str, int, int]]) -> str:
    """The text with each range replaced by the placeholder of its class."""
    parts, place = [], 0
    for name, start, end in ranges:
        parts += [text[place:start], PLACEHOLDER.format(name)]
        place = end
    return "".join([*parts, text[place:]])


def shifted(spans: Sequence[Mapping[str, int]], ranges: Sequence[tuple[str, int, int]]) -> list[dict[str, int]]:
    """The spans at their places in the redacted text. A span that a placeholder falls into grows to hold it whole."""

    def moved(place: int, *, at_end: bool) -> int:
        change = 0
        for name, start, end in ranges:
            length = len(PLACEHOLDER.format(name))
            if end <= place:
                change += length - (end - start)
            elif start < place:
                return start + change + (length if at_end else 0)
        return place + change

    return [{"start": moved(span["start"], at_end=False), "end": moved(span["end"], at_end=True)} for span in spans]
