"""Web archives -> text: WARC responses (HTML by resiliparse's extraction, or plain text) and WET conversions.

Records are read one at a time, up to a largest size. The encoding of markup is that of its HTTP header, its meta tag,
or its bytes. Cost: about 10 MB/s of HTML a core.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType
from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.encoding import bytes_to_str, detect_encoding, map_encoding_to_html5
from resiliparse.parse.html import HTMLTree

from data.compressed import Expansion
from data.errors import UserError

SUFFIXES = (".warc", ".warc.gz", ".wet", ".wet.gz", ".warc.wet.gz")
MARKUP = ("text/html", "application/xhtml+xml")
MOST_DEPTH = 1000
"""largest depth of nested elements: the parser's time grows with the square of the depth"""
# linear in the page: no quantifier backtracks, and a tag ends before the next one begins
_TAG = re.compile(rb"<(/?)([A-Za-z][A-Za-z0-9]*+)[^<>]*+>")
_VOID = frozenset(b"area base br col embed hr img input link meta param source track wbr p li".split())


@dataclass(frozen=True, kw_only=True)
class Page:
    """A document of a web archive, or the reason why a record is none."""

    text: str = ""
    reason: str = ""
    """reason of the reject; empty if `text` is a document"""
    detail: str = ""
    content: bytes = b""
    metadata: dict[str, Any]


def read_pages(name: str, raw: BinaryIO, most_bytes: int, main_content: bool) -> Iterator[Page | None]:
    """A page for each response and conversion, in order. None for a record of another kind (request, metadata).

    Raises UserError if a record is cut or the file is not an archive, OSError if it cannot be read.
    """
    expansion = Expansion(name, raw.tell)
    for record in ArchiveIterator(raw, parse_http=True, auto_decode="all"):
        if record.record_type not in (WarcRecordType.response, WarcRecordType.conversion):
            yield None
            continue
        declared = record.headers.get("Content-Length") or ""
        content = record.reader.read(most_bytes + 1)
        expansion.add(len(content))
        if len(content) <= most_bytes and declared.isdigit() and not _is_whole(record, content):
            raise UserError(f"{name} is cut or damaged inside record {record.record_id or '?'}")
        yield _page(record, content, most_bytes, main_content)


def _is_whole(record: WarcRecord, content: bytes) -> bool:
    """Whether the record has all bytes that its header promises. An encoded payload counts as whole: it is unknown."""
    encoded = record.http_headers is not None and (
        "Content-Encoding" in record.http_headers or "Transfer-Encoding" in record.http_headers
    )
    return encoded or len(content) >= record.content_length


def _page(record: WarcRecord, content: bytes, most_bytes: int, main_content: bool) -> Page:
    kind = (record.http_content_type or "").lower() if record.http_headers is not None else "text/plain"
    status = record.http_headers.status_code if record.http_headers is not None else None
    metadata = {
        "url": record.headers.get("WARC-Target-URI"),
        "date": record.headers.get("WARC-Date"),
        "record": record.headers.get("WARC-Record-ID"),
        "type": kind,
        "language": record.headers.get("WARC-Identified-Content-Language"),
    }
    metadata = {name: value for name, value in metadata.items() if value}

    def reject(reason: str, detail: str) -> Page:
        return Page(reason=reason, detail=detail, content=content[:4096], metadata=metadata)

    if len(content) > most_bytes:
        return reject("too_long", f"more than {most_bytes:,} bytes")
    if status is not None and not 200 <= status < 300:
        return reject("http_status", f"status {status}")
    if kind not in (*MARKUP, "text/plain"):
        return reject("not_text", f"content type {kind or 'not given'}")
    encoding = _encoding(record, content, kind)
    if kind == "text/plain":
        return Page(text=bytes_to_str(content, encoding), metadata=metadata)
    if (depth := _depth(content)) > MOST_DEPTH:
        return reject("html_too_deep", f"elements {depth:,} deep; at most {MOST_DEPTH:,}")
    text = extract_plain_text(HTMLTree.parse_from_bytes(content, encoding), main_content=main_content)
    if not text.strip():
        return reject("no_text", "no text was found in the page")
    return Page(text=text, metadata=metadata)


def _encoding(record: WarcRecord, content: bytes, kind: str) -> str:
    if record.http_headers is None:
        return "utf-8"  # conversions are always UTF-8
    declared = record.http_charset
    if declared and map_encoding_to_html5(declared, False):
        return str(declared)
    return str(detect_encoding(content, from_html_meta=kind in MARKUP))


def _depth(content: bytes) -> int:
    """Depth of nested elements, counted from their tags in one pass; exact if all are closed in order."""
    if content.count(b"<") <= MOST_DEPTH:
        return 0
    depth = deepest = 0
    for match in _TAG.finditer(content):
        closes, tag = match.groups()
        if tag.lower() in _VOID:
            continue
        depth = max(depth - 1, 0) if closes else depth + 1
        deepest = max(deepest, depth)
    return deepest
