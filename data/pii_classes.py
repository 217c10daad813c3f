"""The classes of personal data: where each may be, and what makes a candidate count.

A class is a pattern for whole columns, which says what rows may hold it, and a search in one text. Patterns are RE2's,
and checks look at a bounded number of bytes, so time is linear in the length of any text. Texts are UTF-8 bytes.
"""

import functools
import ipaddress
import re
import string
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import re2
from stdnum import iban, luhn, numdb
from stdnum.br import cpf
from stdnum.es import dni
from stdnum.it import codicefiscale

CONTEXT_BYTES = 48
"""bytes before a candidate that a check may look at"""
_ALNUM = frozenset(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
_DIGITS = frozenset(b"0123456789")
_SEPARATORS = (r"\.", " ", "  ", "-", "\u00a0", "\u2009", "\u202f", "\u2010", "\u2011")
"""what is printed between groups of digits"""
_SEPARATOR = re.compile(rb"(?:[-. ]|\xc2\xa0|\xe2\x80[\x89\xaf\x90\x91])")
Range = tuple[int, int]
Check = Callable[[bytes, int, int], bool]


@dataclass(frozen=True)
class PersonalClass:
    """How one class is found."""

    may_hold: str
    """RE2: a text that does not match holds none"""
    search: Callable[[bytes], Iterator[Range]]
    """[start, end) of each range in bytes, in order of the start"""


def _before(data: bytes, start: int) -> str:
    """What is before a place, in lower case, for a check of the context."""
    return data[max(start - CONTEXT_BYTES, 0) : start].decode(errors="replace").lower()


# --- email addresses

_RESERVED_HOSTS = ("example.com", "example.org", "example.net")
_RESERVED = re.compile(r"(^|\.)example\.\w+$")
_NO_TOP_LEVEL = frozenset(
    # reserved (RFC 2606, 6761, 6762, 8375, 9476) or used in private networks
    re.findall(
        r"\w+",
        "test example invalid localhost localdomain local internal intranet lan home arpa alt onion "
        # suffixes of files
        "png jpg jpeg gif svg webp avif bmp ico tif tiff pdf eps psd css js mjs ts jsx tsx html htm xhtml json xml "
        "yaml yml toml txt csv tsv tar gz tgz bz xz zst whl jar deb rpm apk exe dll bin conf cfg ini log lock patch "
        "diff "
        # units of a service manager, as in getty@tty1.service
        "service socket target timer slice mount automount swap device scope path",
    )
)
_AT = re2.compile(rb"@|\x{FF20}|%40|&#0*64;|&#[xX]40;| ?[\[({<] ?(?:at|AT) ?[\])}>] ?| (?:at|AT) ")
_SCRIPTS = r"\p{Latin}\p{Greek}\p{Cyrillic}\p{Armenian}\p{Hebrew}\p{Arabic}\p{Devanagari}\pM0-9"
"""scripts that are written with spaces, so that an address ends where a word does"""
_DOT = r"(?:\.| ?[\[({<] ?(?:dot|DOT) ?[\])}>] ?| (?:dot|DOT) )"
_HOST = re2.compile(
    rf"(?:[{_SCRIPTS}][{_SCRIPTS}\-]*{_DOT})+(?:xn--[A-Za-z0-9\-]+|[A-Za-z]+|[\p{{Cyrillic}}\p{{Greek}}]+)".encode()
)
_MOST_HOST, _MOST_LOCAL = 253, 64
_ASCII_LOCAL = frozenset(string.ascii_letters + string.digits + "._%+'-")


def _emails(data: bytes) -> Iterator[Range]:
    place = 0
    while at := _AT.search(data, place):
        at_start, place = at.span()
        # up to the next address; a longer name is none
        host = _HOST.match(data[place : place + 2 * _MOST_HOST])
        if host is None or _goes_on(data, end := place + host.end()):
            continue
        start = _local_start(data, at_start)
        if start < at_start and _is_email(data, start, end, at=data[at_start:place], host=data[place:end].decode()):
            if data[start : start + 1] == b"_" == data[end : end + 1]:
                start += 1  # emphasis in Markdown
            yield start, end
            place = end


def _goes_on(data: bytes, end: int) -> bool:
    """Whether a name goes on after its end: a longer word, a call, another part of a handle."""
    after = data[end : end + 1]
    return bool(after) and (after[0] in _ALNUM or after in b"(@")


def _local_start(data: bytes, end: int) -> int:
    """Where the part before an @ begins; `end` if there is none."""
    text = data[max(end - 4 * _MOST_LOCAL, 0) : end].decode(errors="replace")
    place = len(text)
    least = max(len(text) - _MOST_LOCAL - 1, 0)
    while place > least and (text[place - 1] in _ASCII_LOCAL or _in_local(text[place - 1])):
        place -= 1
    if len(text) - place > _MOST_LOCAL or "\ufffd" in text[place:]:
        return end
    local = text[place:].lstrip(".-+'%")
    while len(local) < len(text) - place and re.match(r"[0-9A-Fa-f]{2}", local) and text[-len(local) - 1] == "%":
        local = local[2:].lstrip("%")  # an escaped character of a URL
    return end - len(local.encode())


def _in_local(character: str) -> bool:
    """Whether a character beyond ASCII may be in the part before an @."""
    # scripts written without spaces do not belong to an address that begins inside their text
    without_spaces = "\u0e00" <= character < "\u0f00" or "\u1000" <= character < "\u10a0"
    without_spaces = without_spaces or "\u1780" <= character < "\u1800" or character >= "\u2e80"
    return (
        not without_spaces and character > "\x7f" and (character.isalnum() or unicodedata.category(character)[0] == "M")
    )


def _is_email(data: bytes, start: int, end: int, *, at: bytes, host: str) -> bool:
    host = host.lower()
    if at in (b" at ", b" AT ") and " dot " not in host:
        return False
    labels = re.split(_DOT, host) if " " in host or "dot" in host else host.split(".")
    top, plain = labels[-1], ".".join(labels)
    if top in _NO_TOP_LEVEL or (plain.endswith(_RESERVED_HOSTS) and _RESERVED.search(plain)):
        return False
    if len(plain) > _MOST_HOST or len(top) < 2 or (len(top) > 24 and top.isascii() and not top.startswith("xn--")):
        return False
    if any(len(label) > 63 or label.endswith("-") for label in labels):
        return False
    if (len(labels) > 2 or labels[0][-1] == "x") and re.fullmatch(r"\d+x?", labels[0]):
        return False  # logo@2x.png, package@18.3.dev
    # git@host:path
    if data[end : end + 1] == b":" and re.match(rb":[\w~.-]+(/|\.git\b)", data[end : end + CONTEXT_BYTES]):
        return False
    before = data[max(start - CONTEXT_BYTES, 0) : start]
    return b"/" not in before or not re.search(rb"://[^\s/?#]*$", before)  # the user in a URL


# --- numbers


def _alone(data: bytes, start: int, end: int, *, before: bytes = b".-+@~", after: bytes = b".:-") -> bool:
    """Whether a candidate does not begin or end inside a longer word or number."""
    previous = data[start - 1 : start]
    if previous and (previous[0] in _ALNUM or previous in before):
        return False
    if previous == b":" and start > 1 and data[start - 2] in _DIGITS:
        return False
    following = data[end : end + 2]
    if following and following[0] in _ALNUM:
        return False
    return not (len(following) == 2 and following[:1] in after and following[1] in _ALNUM)


def _numbers(pattern: str, check: Check, *, groups: bool = False) -> Callable[[bytes], Iterator[Range]]:
    """A search for a pattern. With `groups`, a match may include the number before it ("order 12 4111 1111 ..."), so
    every beginning of a group is tried."""
    compiled = re2.compile(pattern.encode())

    def search(data: bytes) -> Iterator[Range]:
        place = 0
        while match := compiled.search(data, place):
            start, end = match.span()
            right = _alone(data, start, end) and check(data, start, end)
            group = _SEPARATOR.search(data, start, end) if groups and not right else None
            place = group.end() if group else end
            if right:
                yield start, end

    return search


_CARDS = re.compile(
    rb"4(\d{12}|\d{15})|5[1-5]\d{14}|2(22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}|3(0[0-5]|[68]\d)\d{11}"
    rb"|6(011|5\d\d|4[4-9]\d)\d{12}|35(2[89]|[3-8]\d)\d{12}|62\d{14,17}|220[0-4]\d{12}"
)
_CARD = "|".join(
    pattern
    for separator in _SEPARATORS
    for pattern in (
        rf"\d{{4}}{separator}\d{{4}}{separator}\d{{4}}{separator}\d{{1,4}}",
        rf"\d{{4}}{separator}\d{{6}}{separator}\d{{4,5}}",
    )
)
_CARD = rf"{_CARD}|\d{{13,19}}"


def _is_card(data: bytes, start: int, end: int) -> bool:
    digits = re.sub(rb"\D", b"", data[start:end])
    if not _CARDS.fullmatch(digits) or not luhn.is_valid(digits.decode()):
        return False
    # 13 digits are more often an article number than a card of before 2000
    return len(digits) > 13 or re.search(r"card|visa|karte|carte|tarjeta", _before(data, start)) is not None


_IBAN_START = re2.compile(rf"[A-Za-z]{{2}}\d{{2}}(?:(?:{'|'.join(_SEPARATORS)})?[A-Za-z0-9]){{11}}".encode())
_LONGEST_IBAN = 34


def _ibans(data: bytes) -> Iterator[Range]:
    place = 0
    while match := _IBAN_START.search(data, place):
        start = match.start()
        end = _iban_end(data, start) if not start or data[start - 1] not in _ALNUM else 0
        if end:
            yield start, end
        place = end or start + 4


def _iban_end(data: bytes, start: int) -> int:
    """End of the IBAN that begins at `start`; 0 if none does."""
    length = _iban_length(data[start : start + 2].decode().upper())
    place, characters = start, b""
    while len(characters) < length:
        if data[place : place + 1].isalnum():
            characters += data[place : place + 1]
            place += 1
        elif (separator := _SEPARATOR.match(data, place)) and data[separator.end() : separator.end() + 1].isalnum():
            place = separator.end()
        else:
            return 0
    if not length or (data[place : place + 1] and data[place] in _ALNUM):
        return 0
    value = characters.decode()
    return place if (value.isupper() or value.islower()) and iban.is_valid(value) else 0


@functools.cache
def _iban_length(country: str) -> int:
    """Length of a country's IBANs in characters, by the registry in python-stdnum; 0 for an unknown country."""
    (_, properties), *_ = numdb.get("iban").info(country)
    return 4 + sum(map(int, re.findall(r"\d+", properties["bban"]))) if "bban" in properties else 0


_NATIONAL_ID = r"\d{3}-\d{2}-\d{4}|\d{3}\.\d{3}\.\d{3}-\d{2}|\d{8}-?[A-Z]|[A-Z]{6}\d{2}[A-Z]\d{2}[A-Z]\d{3}[A-Z]"
_DATE = r"(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])"


def _is_national_id(data: bytes, start: int, end: int) -> bool:
    number = data[start:end].decode()
    if re.fullmatch(r"\d{3}-\d{2}-\d{4}", number):  # US social security number; some are never given out
        area, group, serial = number.split("-")
        return area not in ("000", "666") and area[0] != "9" and group != "00" and serial != "0000"
    if re.match(_DATE + "[A-Z]", number) and not re.search(r"\b(dni|nif)\b", _before(data, start)):
        return False  # 20240115T101500
    return any(check.is_valid(number) for check in (dni, cpf, codicefiscale))


_GAP = "[ .()/\u00a0\u2009\u202f\u2010\u2011\\-]{0,3}"
_PHONE = (
    rf"\+\d(?:{_GAP}\d){{7,14}}|(?:\b1[-. ])?(?:\(\d{{3}}\) ?|\d{{3}}[-. ])\d{{3}}[-.]\d{{4}}"
    rf"|\(?0\d(?:{_GAP}\d){{6,14}}|\d{{3}} \d{{3}} \d{{4}}|1[3-9]\d{{9}}"
)
_CALL = re.compile(
    r"(tel|t\u00e9l|phone|fon|fax|mobil|cell|call|ring|whatsapp|hotline|ruf|handy|\u7535\u8bdd|\u96fb\u8a71|\u624b\u673a|\u624b\u6a5f|\u643a\u5e2f|\u260e)[^\n\d]{0,12}$"
)
"""a word before a number that makes it a phone number"""


def _is_phone(data: bytes, start: int, end: int) -> bool:
    match = data[start:end].decode()
    digits = re.sub(r"\D", "", match)
    if not match.startswith("+"):
        number = digits[1:] if len(digits) == 11 and digits[0] == "1" else digits
        printed = re.fullmatch(r"(?:1[-. ])?(?:\(\d{3}\) ?|\d{3}([-. ]))\d{3}([-.])\d{4}", match)
        if printed and number[0] >= "2" and number[3] >= "2":  # the North American plan
            return (printed[1], printed[2]) != (".", "-")
        return 7 <= len(digits) <= 16 and _CALL.search(_before(data, start)) is not None
    if not 8 <= len(digits) <= 15 or digits[0] == "0":  # E.164
        return False
    if digits[0] == "1":
        return len(digits) == 11 and digits[1] >= "2" and digits[4] >= "2"
    gaps = re.findall(r"\D+", match[1:])
    if gaps == ["."] and match.index(".") > 4:  # a number with a fraction
        return False
    return bool(gaps) or (len(digits) > 8 or not re.fullmatch(_DATE, digits))


# --- IP addresses

_IPV4 = r"(?:\d{1,3}\.){3}\d{1,3}"
_IP = rf"{_IPV4}|(?:[0-9A-Fa-f]{{1,4}}:){{2,7}}(?::?[0-9A-Fa-f]{{1,4}}){{1,6}}"
_VERSION = re.compile(
    r"(\bv|\bver|version|release|rev|revision|standards-version|kernel|linux|upgrade to|format|section|sec|\u00a7"
    r"|clause|chapter|figure|fig|table|annex|appendix|rule|oid|[a-z]/|[\w.~+]-|[\w.]_)[\s:=.(\"'$]*$"
)
"""what makes four numbers a version, a section or an object identifier"""
_ADDRESS = re.compile(r"(://|@|\b(ip|ips|ipv4|addr|address|host|server|client|ping|dns|resolver|peer|src|dst))\W*$")
"""what makes four numbers an address of which at least three are small"""
_SMALL = 32
_KNOWN = ("8.8.8.8", "8.8.4.4", "9.9.9.9")
"""addresses that are written more often than a version with the same numbers"""


def _is_ip(data: bytes, start: int, end: int) -> bool:
    match, ipv4 = data[start:end].decode(), data.find(b":", start, end) < 0
    port = ipv4 and re.match(rb":\d{1,5}(?![\w:.])", data[end : end + 8])
    if not _alone(data, start, end, before=b".-+" if ipv4 else b".:-+@", after=b".-" if port else b".:-"):
        return False
    try:
        address = ipaddress.ip_address(match)
    except ValueError:
        return False
    if not address.is_global:
        return False
    if not ipv4:
        return 0x2000 <= int(address) >> 112 <= 0x3FFF
    before = _before(data, start)
    if _VERSION.search(before) or match.endswith(".0.0.0"):
        return False
    small = sum(int(part) < _SMALL for part in match.split(".")) >= 3
    return not small or (not before.endswith("@") and (match in _KNOWN or _ADDRESS.search(before) is not None))


def _ips(data: bytes) -> Iterator[Range]:
    place = 0
    while match := _COMPILED_IP.search(data, place):
        place = match.end()
        if _is_ip(data, *match.span()):
            yield match.span()


_COMPILED_IP = re2.compile(_IP.encode())

CLASSES: Mapping[str, PersonalClass] = {
    "email": PersonalClass(
        r"[^\s@]@[^\s@]|\x{FF20}|%40|&#0*64;|&#[xX]40;|[\[({<] ?(?:at|AT) ?[\])}>]| (?:at|AT) [^\n]{1,80} (?:dot|DOT) ",
        _emails,
    ),
    "ip": PersonalClass(_IP, _ips),
    "iban": PersonalClass(_IBAN_START.pattern.decode(), _ibans),
    "card": PersonalClass(_CARD, _numbers(_CARD, _is_card, groups=True)),
    "national_id": PersonalClass(_NATIONAL_ID, _numbers(_NATIONAL_ID, _is_national_id)),
    "phone": PersonalClass(_PHONE, _numbers(_PHONE, _is_phone)),
}
"""in the order of the search: text that one class takes is not seen by a later one"""
