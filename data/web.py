"""Web archives -> text: WARC responses (HTML without what is around its article, or plain text) and WET conversions.

Records are read one at a time, up to a largest size. Bytes are decoded as browsers do it (data/encoding.py). Broken
characters become U+FFFD and are counted, and a page with too many of them is no document. Cost: about 10 MB/s of HTML
a core.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType
from resiliparse.parse.html import HTMLTree

from data import encoding, html_depth, main_content
from data.compressed import Expansion
from data.errors import UserError

SUFFIXES = (".warc", ".warc.gz", ".wet", ".wet.gz", ".warc.wet.gz")
MARKUP = ("text/html", "application/xhtml+xml")
MOST_DEPTH = 1000
"""largest depth of nested elements: the parser's time grows with the square of the depth"""
_TOO_DEEP = f"elements more than {MOST_DEPTH:,} deep, or too many attributes in a tag, for a parser in linear time"

_XHTML = "http://www.w3.org/1999/xhtml"
_CLOSES_ITSELF = re.compile(
    r"<((?!(?:area|base|br|col|embed|hr|img|input|link|meta|param|source|track|wbr)[\s/])[A-Za-z][\w:.-]*+)"
    r"""((?:\s++[^\s"'<>/=]++(?:\s*+=\s*+(?:"[^"<]*+"|'[^'<]*+'))?+)*+)\s*+/>"""
)


@dataclass(frozen=True, kw_only=True)
class Page:
    """A document of a web archive, or the reason why a record is none."""

    text: str = ""
    reason: str = ""
    """reason of the reject; empty if `text` is a document"""
    detail: str = ""
    content: bytes = b""
    broken: int = 0
    """number of U+FFFD in the text"""
    metadata: dict[str, Any]


def read_pages(name: str, raw: BinaryIO, most_bytes: int, article: bool) -> Iterator[Page | None]:
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
        yield _page(record, content, most_bytes, article)


def _is_whole(record: WarcRecord, content: bytes) -> bool:
    """Whether the record has all bytes that its header promises. An encoded payload counts as whole: it is unknown."""
    encoded = record.http_headers is not None and (
        "Content-Encoding" in record.http_headers or "Transfer-Encoding" in record.http_headers
    )
    return encoded or len(content) >= record.content_length


def _page(record: WarcRecord, content: bytes, most_bytes: int, article: bool) -> Page:
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
    charset = encoding.charset_of(record.http_headers.get("Content-Type") or "") if record.http_headers else "utf-8"
    outcome = text_of(content, charset, article) if kind in MARKUP else plain_text(content, charset)
    return replace(outcome, metadata=metadata | outcome.metadata, content=content[:4096] if outcome.reason else b"")


def plain_text(content: bytes, charset: str = "") -> Page:
    """The text of a page without markup."""
    decoded = encoding.decode(content, charset)
    return _checked(decoded.text, decoded.encoding)


def text_of(content: bytes, charset: str, article: bool) -> Page:
    """The text of a page of HTML, whose header declares `charset`. If `article`, without menus and the like."""
    decoded = encoding.decode(content, charset, markup=True)
    page = _closed(decoded.text) if _XHTML in decoded.text[: encoding.HEAD_BYTES] else decoded.text
    markup = content if decoded.encoding == "utf-8" and page is decoded.text else page.encode()
    if html_depth.depth(markup, MOST_DEPTH) > MOST_DEPTH:
        return Page(reason="html_too_deep", detail=_TOO_DEEP, metadata={})
    text = main_content.text_of(HTMLTree.parse(page), article)
    if not text.strip():
        return Page(reason="no_text", detail="no text was found in the page", metadata={})
    return _checked(text, decoded.encoding)


def _closed(page: str) -> str:
    """The page with an end tag for each element of XHTML that closes itself. HTML would go on to its next end tag: all
    text after <title/> would be the title."""
    return _CLOSES_ITSELF.sub(r"<\1\2></\1>", page) if "/>" in page else page


def _checked(text: str, codec: str) -> Page:
    broken = text.count(encoding.BROKEN)
    if encoding.too_broken(text):
        detail = f"{broken:,} of {len(text):,} characters are broken in {codec}"
        return Page(reason="broken_encoding", detail=detail, metadata={})
    return Page(text=text, broken=broken, metadata={"encoding": codec} | ({"broken": broken} if broken else {}))
