"""Personal data in text, found by class: it is redacted, or its document is dropped.

    column -> rows that may hold some (RE2 over the whole column) -> candidates in those rows -> checked -> ranges

All patterns are RE2's, so time is linear in the length of any text. A candidate counts if its check passes:

- a card has a valid Luhn digit, a known prefix and the printed grouping of digits
- an IBAN passes mod 97 and has the length of its country
- a national id has valid check digits or letters, or is a US number that may have been given out
- an IP address is routed on the public internet; one after "v" or "version" is taken for a version number

Email addresses at example.com and similar hosts are not touched. Cost: some 40 MB/s a core in text without personal
data.
"""

import bisect
import functools
import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import re2
from stdnum import iban, luhn, numdb
from stdnum.br import cpf
from stdnum.es import dni
from stdnum.it import codicefiscale

PLACEHOLDER = "[{}]"
"""text in place of a redacted range, with the name of the class; no tokenizer takes it for a named symbol"""

_EXAMPLE_HOSTS = (b"example.com", b"example.org", b"example.net", b"localhost.localdomain")


def _email(match: bytes, text: bytes, start: int, end: int) -> bool:
    host = match.lower().partition(b"@")[2]
    return not any(host == example or host.endswith(b"." + example) for example in _EXAMPLE_HOSTS)


def _phone(match: bytes, text: bytes, start: int, end: int) -> bool:
    digits = sum(byte in b"0123456789" for byte in match)
    if match.startswith(b"+"):
        return 8 <= digits <= 15 and match[1:2] != b"0"  # E.164
    area, exchange = [part for part in re.split(rb"\D+", match) if part][:2]
    return area[0] >= ord("2") and exchange[0] >= ord("2")  # the North American plan


def _ip(match: bytes, text: bytes, start: int, end: int) -> bool:
    before = text[max(start - 9, 0) : start].lower()
    if b":" not in match and re.search(rb"(\bv|version[ :=]*|ver\.? ?|[-/_])$", before):
        return False
    try:
        address = ipaddress.ip_address(match.decode())
    except ValueError:
        return False
    return address.is_global and (address.version == 4 or 0x2000 <= int(address) >> 112 <= 0x3FFF)


_CARDS = re.compile(
    rb"4(\d{12}|\d{15})|5[1-5]\d{14}|2(22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}|3(0[0-5]|[68]\d)\d{11}"
    rb"|6(011|5\d\d|4[4-9]\d)\d{12}|35(2[89]|[3-8]\d)\d{12}"
)


def _card(match: bytes, text: bytes, start: int, end: int) -> bool:
    digits = re.sub(rb"[ -]", b"", match)
    return bool(_CARDS.fullmatch(digits)) and luhn.is_valid(digits.decode())


def _iban(match: bytes, text: bytes, start: int, end: int) -> bool:
    compact = match.decode().replace(" ", "")
    return len(compact) == _iban_length(compact[:2]) and iban.is_valid(compact)


@functools.cache
def _iban_length(country: str) -> int:
    """Length of a country's IBANs in characters, by the registry in python-stdnum; 0 for an unknown country."""
    (_, properties), *_ = numdb.get("iban").info(country)
    return 4 + sum(map(int, re.findall(r"\d+", properties["bban"]))) if "bban" in properties else 0


def _national_id(match: bytes, text: bytes, start: int, end: int) -> bool:
    number = match.decode()
    if re.fullmatch(r"\d{3}-\d{2}-\d{4}", number):  # US social security number; some are never given out
        area, group, serial = number.split("-")
        return area not in ("000", "666") and area[0] != "9" and group != "00" and serial != "0000"
    return any(check.is_valid(number) for check in (dni, cpf, codicefiscale))


Check = Callable[[bytes, bytes, int, int], bool]
_PATTERNS: Mapping[str, tuple[str, Check]] = {
    "email": (r"[A-Za-z0-9][A-Za-z0-9._%+\-]{0,63}@(?:[A-Za-z0-9\-]{1,63}\.){1,8}[A-Za-z]{2,24}", _email),
    "ip": (r"(?:\d{1,3}\.){3}\d{1,3}|(?:[0-9A-Fa-f]{1,4}:){2,7}(?::?[0-9A-Fa-f]{1,4}){1,6}", _ip),
    "iban": (r"[A-Z]{2}\d{2}(?:[A-Z0-9]{11,30}|(?: [A-Z0-9]{4}){2,7}(?: [A-Z0-9]{1,3})?)", _iban),
    "card": (
        r"\d{4} \d{4} \d{4} \d{1,4}|\d{4}-\d{4}-\d{4}-\d{1,4}|\d{4} \d{6} \d{4,5}|\d{4}-\d{6}-\d{4,5}|\d{13,16}",
        _card,
    ),
    "national_id": (
        r"\d{3}-\d{2}-\d{4}|\d{3}\.\d{3}\.\d{3}-\d{2}|\d{8}-?[A-Z]|[A-Z]{6}\d{2}[A-Z]\d{2}[A-Z]\d{3}[A-Z]",
        _national_id,
    ),
    "phone": (r"\+\d(?:[ .()\-]{0,2}\d){7,14}|(?:\(\d{3}\) ?|\d{3}[-. ])\d{3}[-.]\d{4}", _phone),
}
CLASSES = tuple(_PATTERNS)
"""classes in the order of the search: text that one class takes is not seen by a later one"""
_COMPILED = {name: re2.compile(pattern.encode()) for name, (pattern, _) in _PATTERNS.items()}
_GROUP_ENDS = re.compile(rb"[ -]")
_WORD_BYTES = frozenset(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_")


def candidates(texts: pa.ChunkedArray, classes: Sequence[str]) -> list[int]:
    """Rows in which a pattern of one of the classes matches."""
    if not classes or not len(texts):
        return []
    flags = [pc.match_substring_regex(texts, _PATTERNS[name][0]) for name in classes]
    matches = flags[0]
    for flag in flags[1:]:
        matches = pc.or_(matches, flag)
    return pc.indices_nonzero(matches.combine_chunks()).to_pylist()


def find(text: str, classes: Sequence[str]) -> list[tuple[str, int, int]]:
    """(class, start, end) of each range in characters, in order. Ranges do not overlap."""
    data = text.encode()
    taken: list[tuple[int, int, str]] = []
    for name in (class_name for class_name in CLASSES if class_name in classes):
        check = _PATTERNS[name][1]
        for start, end in _alone(data, name):
            place = bisect.bisect(taken, (start, end))
            overlaps = (place and taken[place - 1][1] > start) or (place < len(taken) and taken[place][0] < end)
            if not overlaps and check(data[start:end], data, start, end):
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


def _alone(data: bytes, name: str) -> Iterator[tuple[int, int]]:
    """Candidates that do not begin or end inside a longer word, number or address, the longest of one start first.

    A match of groups may include the number before ("order 12 4111 1111 ...") or after the right one, so every
    beginning and every end of a group is tried.
    """
    numeric = name in ("ip", "card", "phone", "national_id")
    pattern, place = _COMPILED[name], 0
    while match := pattern.search(data, place):
        start, longest = match.span()
        ends = [longest]
        if name == "iban":
            ends += [end for end in range(longest - 1, start, -1) if data[end : end + 1] in (b" ", b"-")]
        # next: the next group, or after the match if it has no groups
        groups = _GROUP_ENDS.search(data, start, longest) if name in ("iban", "card") else None
        place = groups.end() if groups else longest
        before = data[start - 1 : start]
        if before and (before[0] in _WORD_BYTES or (numeric and before in b".:-+@")):
            continue
        for end in ends:
            after = data[end : end + 2]
            if after and after[0] in _WORD_BYTES:
                continue
            if numeric and end == longest and len(after) == 2 and after[0] in b".:-" and chr(after[1]).isalnum():
                continue
            yield start, end


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
