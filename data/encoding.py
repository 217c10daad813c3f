"""Bytes -> text as browsers read them: a byte order mark, valid UTF-8, what is declared, and at last a guess.

Labels mean what the WHATWG's Encoding Standard says: euc-kr is cp949, Shift_JIS windows-31j, gb2312 gb18030, Big5
Big5-HKSCS, latin1 windows-1252. Bytes that are no character become U+FFFD, one by one, and the rest of the text stays
as it is. Cost: that of Python's decoders, once or twice.
"""

import codecs
import re
from collections.abc import Sequence
from dataclasses import dataclass

import ftfy
from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

_MOJIBAKE = ftfy.TextFixerConfig(
    unescape_html=False,
    uncurl_quotes=False,
    fix_latin_ligatures=False,
    fix_character_width=False,
    fix_line_breaks=False,
    remove_terminal_escapes=False,
    remove_control_chars=False,
    normalization=None,
    explain=False,
)
"""ftfy's repair of wrongly decoded text alone: its defaults also straighten quotes and compose characters"""
BROKEN = "\ufffd"
MOST_BROKEN_SHARE = 0.01
"""largest share of U+FFFD in the characters of a text"""
FEW_BROKEN = 3
"""number of U+FFFD that a text of any length may have"""
HEAD_BYTES = 4096
"""bytes at the beginning of a page in which it declares its encoding; browsers look at 1,024 of them at once"""
FEW_CHARACTERS = 8
"""number of characters beyond ASCII in East Asian text that can be valid UTF-8 by chance; one of three bytes counts as
three, because it seldom is"""
MOSTLY = 4
"""whole characters beyond ASCII for each broken one that make a text UTF-8, whatever is declared"""
WIDE_SHARE = 0.05
"""share of null bytes at the beginning of a text from which on it is UTF-16"""

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"),
)  # fmt: skip
# Python's codecs of the standard's encodings, where Python's codec of the same name reads less than browsers do.
_WIDER = {
    "euc_kr": "cp949", "shift_jis": "cp932", "gbk": "gb18030", "gb2312": "gb18030", "big5": "big5hkscs",
    "iso8859-11": "cp874", "iso8859-9": "cp1254", "iso2022_jp": "iso2022_jp",
}  # fmt: skip
# Labels that resiliparse's table lacks: of the standard, of Python, of detectors. utf-7 is no label, on purpose.
_LABELS = {
    "x-mac-cyrillic": "mac_cyrillic", "x-mac-ukrainian": "mac_cyrillic", "x-user-defined": "cp1252",
    "hz-gb-2312": "hz", "iso-2022-kr": "iso2022_kr", "csiso2022kr": "iso2022_kr", "cp932": "cp932", "cp949": "cp949",
    "uhc": "cp949", "ms949": "cp949", "cp936": "gb18030", "ms936": "gb18030", "cp950": "big5hkscs", "johab": "johab",
    "ibm855": "cp855", "ibm852": "cp852", "ibm865": "cp865", "tis620": "cp874", "mac-cyrillic": "mac_cyrillic",
    "mac-centraleurope": "mac_latin2", "utf-32le": "utf-32-le", "utf-32be": "utf-32-be", "utf-32": "utf-32",
}  # fmt: skip
_EAST_ASIAN = frozenset(
    {"cp949", "cp932", "gb18030", "big5hkscs", "euc_jp", "iso2022_jp", "iso2022_kr", "hz", "johab"}
)  # fmt: skip
_CHARSET = re.compile(r"charset\s*=\s*[\"'\s]*([^\"';,\s]+)", re.IGNORECASE)
_COMMENT = re.compile(rb"<!--.*?(?:-->|\Z)", re.DOTALL)
_META = re.compile(rb"<meta\s[^>]*?\bcharset\s*=\s*[\"'\s]*([\w.:+-]+)", re.IGNORECASE)
_XML = re.compile(rb"\A\s*<\?xml\s[^>]*?\bencoding\s*=\s*[\"']\s*([\w.:+-]+)", re.IGNORECASE)
_ESCAPE = re.compile(rb"\x1b(\([BJI]|\$[@B]|\$\(D)")
_BEYOND_ASCII = re.compile("[^\x00-\x7f\ufffd]")
_BEYOND_TWO_BYTES = re.compile("[^\x00-\u07ff\ufffd]")


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """A text and the encoding of its bytes."""

    text: str
    encoding: str
    """name of Python's codec"""


def charset_of(content_type: str) -> str:
    """The charset of a Content-Type header, without quotes; empty if there is none."""
    match = _CHARSET.search(content_type)
    return match[1] if match else ""


def codec_of(label: str) -> str | None:
    """Python's codec that reads what browsers read under a label; None for an unknown label."""
    label = label.strip(" \t\r\n\f\"'").lower()
    if label in _LABELS:
        return _LABELS[label]
    codec = map_encoding_to_html5(label, False) if label else None
    return None if codec is None else _WIDER.get(str(codec), str(codec))


def too_broken(text: str, character: str = BROKEN) -> bool:
    """Whether the text has too many characters U+FFFD, or others that stand for no text, to be kept."""
    broken = text.count(character)
    return broken > FEW_BROKEN and broken > MOST_BROKEN_SHARE * len(text)


def repaired(text: str) -> str:
    """The text with what was decoded wrongly decoded again, as far as ftfy is sure."""
    return ftfy.fix_text(text, _MOJIBAKE)


def decode(content: bytes, charset: str = "", markup: bool = False) -> Decoded:
    """The text of `content`, whose header declares `charset`. Markup can declare its own charset too.

    A byte order mark wins over all declarations, and so does UTF-8 with hardly a broken character. If the text is
    broken by what the header declares, and not by what the markup declares, the markup is right. A guess is made only
    if nothing is declared.
    """
    for mark, codec in _BOMS:
        if content.startswith(mark):
            return Decoded(text=_text(content[len(mark) :], codec), encoding=codec)
    if (wide := _wide(content)) is not None:
        return wide
    declared = [codec for codec in map(codec_of, _declared(content, charset, markup)) if codec]
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return _best(content, declared) if declared else _guessed(content)
    legacy = declared[0] if declared and (declared[0] in _EAST_ASIAN or "\0" in text) else "utf-8"
    if not declared and b"\x1b$" in content and _ESCAPE.search(content):
        legacy = "iso2022_jp"
    if legacy != "utf-8" and _chance(text[:HEAD_BYTES]) <= FEW_CHARACTERS:
        other = _text(content, legacy)
        if BROKEN not in other:
            return Decoded(text=other, encoding=legacy)
    return Decoded(text=text, encoding="utf-8")


def _declared(content: bytes, charset: str, markup: bool) -> Sequence[str]:
    labels = [charset]
    if markup:
        head = _COMMENT.sub(b"", content[:HEAD_BYTES])
        labels += [match[1].decode() for pattern in (_XML, _META) if (match := pattern.search(head))]
    # markup that says in ASCII that it is UTF-16 is not
    return [
        label if place == 0 or not label.lower().startswith("utf-16") else "utf-8" for place, label in enumerate(labels)
    ]


def _chance(text: str) -> int:
    """Number of characters beyond ASCII that may be others; three for each one that hardly is."""
    return len(_BEYOND_ASCII.findall(text)) + 2 * len(_BEYOND_TWO_BYTES.findall(text))


def _wide(content: bytes) -> Decoded | None:
    """The text of UTF-16 without a byte order mark; None for other bytes. Null bytes betray its ASCII characters."""
    head = content[:HEAD_BYTES]
    if head.count(0) <= WIDE_SHARE * len(head):
        return None
    codec = "utf-16-le" if head[1::2].count(0) > head[::2].count(0) else "utf-16-be"
    text = _text(content, codec)
    return None if "\0" in text or too_broken(text) else Decoded(text=text, encoding=codec)


def _best(content: bytes, codecs_declared: Sequence[str]) -> Decoded:
    text = _text(content, "utf-8")
    if len(_BEYOND_ASCII.findall(text)) >= MOSTLY * text.count(BROKEN) and (
        codecs_declared[0] not in _EAST_ASIAN or _chance(text) > FEW_CHARACTERS
    ):
        return Decoded(text=text, encoding="utf-8")
    decoded = [Decoded(text=_text(content, codec), encoding=codec) for codec in dict.fromkeys(codecs_declared)]
    return next((text for text in decoded if not too_broken(text.text)), decoded[0])


def _guessed(content: bytes) -> Decoded:
    """UTF-8 with a few broken bytes if most characters beyond ASCII are whole; else what a detector says."""
    text = _text(content, "utf-8")
    if len(_BEYOND_ASCII.findall(text)) > text.count(BROKEN):
        return Decoded(text=text, encoding="utf-8")
    codec = codec_of(str(detect_encoding(content, html5_compatible=False) or "")) or "cp1252"
    if codec == "utf-8":  # it is not: more is broken than whole
        codec = "cp1252"
    return Decoded(text=_text(content, codec), encoding=codec)


def _text(content: bytes, codec: str) -> str:
    if codec == "iso2022_jp":
        content, codec = _euc_of(content), "euc_jp"
    # a lone surrogate is no text, and Python's decoders of wide characters let none pass
    return content.decode(codec, _READ_AS_BROWSERS)


def _euc_of(content: bytes) -> bytes:
    """ISO-2022-JP as EUC-JP, whose decoder knows more characters."""
    parts = _ESCAPE.split(content)
    whole = [parts[0]]
    for escape, part in zip(parts[1::2], parts[2::2], strict=True):
        if escape.startswith(b"$"):
            high = bytes(byte | 0x80 if 0x21 <= byte <= 0x7E else byte for byte in part)
            part = b"".join(b"\x8f" + high[at : at + 2] for at in range(0, len(high), 2)) if escape == b"$(D" else high
        elif escape == b"(I":
            part = b"".join(b"\x8e%c" % (byte | 0x80) if 0x21 <= byte <= 0x5F else b"%c" % byte for byte in part)
        whole.append(part)
    return b"".join(whole)


def _read_as_browsers(error: UnicodeError) -> tuple[str, int]:
    """What browsers read where Python's decoder stops, or U+FFFD."""
    assert isinstance(error, UnicodeDecodeError)
    start, first, pair = error.start, error.object[error.start], error.object[error.start : error.start + 2]
    if error.encoding == "charmap" and 0x80 <= first <= 0x9F:
        return chr(first), start + 1
    if error.encoding == "gb18030" and first == 0x80:
        return "\u20ac", start + 1
    try:
        if error.encoding == "big5hkscs" and len(pair) == 2:
            return pair.decode("cp950"), start + 2
        if error.encoding == "euc_jp" and len(pair) == 2 and all(0xA1 <= byte <= 0xFE for byte in pair):
            return _shifted(pair).decode("cp932"), start + 2
    except UnicodeDecodeError:
        pass
    return BROKEN, error.end


def _shifted(pair: bytes) -> bytes:
    """A character of EUC-JP as Shift_JIS, in which the vendors' rows have codes too."""
    row, cell = pair[0] - 0xA1, pair[1] - 0xA1
    lead = row // 2 + (0x81 if row < 62 else 0xC1)
    trail = cell + (0x9F if row % 2 else 0x40 if cell < 63 else 0x41)
    return bytes((lead, trail))


_READ_AS_BROWSERS = "as_browsers"
codecs.register_error(_READ_AS_BROWSERS, _read_as_browsers)
