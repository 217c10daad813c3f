"""Web archives become documents with their addresses; what is no page is told apart."""

import gzip
import time
from pathlib import Path

import pytest

from data import encoding, html_depth, sources, web

HTML = (
    "<html><head><title>T</title><script>x()</script></head><body><nav><a>Menu</a></nav>"
    "<main><h1>{0}</h1><p>{0} {0}</p></main></body></html>"
)


def record(kind: str, url: str, body: bytes, *, http: str | None = "200 OK", content_type: str = "text/html") -> bytes:
    if http is not None:
        body = f"HTTP/1.1 {http}\r\nContent-Type: {content_type}\r\n\r\n".encode() + body
    head = {
        "WARC-Type": kind,
        "WARC-Target-URI": url,
        "WARC-Date": "2024-11-24T00:00:00Z",
        "WARC-Record-ID": f"<urn:uuid:{len(body):032x}>",
        "Content-Type": "application/http; msgtype=response" if http is not None else "text/plain",
        "Content-Length": str(len(body)),
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    return f"WARC/1.0\r\n{lines}\r\n".encode() + body + b"\r\n\r\n"


def read(path: Path, content: bytes, **options: object) -> tuple[list[dict[str, object]], list[dict[str, object]], int]:
    path.write_bytes(content)
    chosen = sources.Options(**options)  # type: ignore[arg-type]
    (batch,) = sources.collect("web", [(path.name, str(path))], chosen, 1 << 30)
    return batch.text.to_pylist(), batch.rejects.to_pylist(), batch.passed_over


@pytest.mark.parametrize("suffix", [".warc", ".warc.gz"])
def test_responses_are_documents_and_the_rest_is_counted_or_rejected(tmp_path: Path, suffix: str) -> None:
    words = "Eine Seite \u00fcber W\u00f6rter."
    parts = [
        record("warcinfo", "", b"software: x", http=None),
        record("request", "http://a/1", b"", http="200 OK"),
        record("response", "http://a/1", HTML.format(words).encode(), content_type="text/html; charset=utf-8"),
        record(
            "response", "http://a/2", HTML.format(words).encode("latin-1"), content_type="text/html; charset=latin1"
        ),
        record("response", "http://a/3", b"plain text", content_type="text/plain"),
        record("response", "http://a/4", b"\x89PNG", content_type="image/png"),
        record("response", "http://a/5", b"gone", http="404 Not Found"),
        record("response", "http://a/6", b"<html><script>only()</script></html>"),
    ]
    content = b"".join(gzip.compress(part) for part in parts) if suffix.endswith("gz") else b"".join(parts)
    texts, rejects, passed_over = read(tmp_path / f"a{suffix}", content)
    assert [words in str(row["text"]) for row in texts] == [True, True, False]
    assert texts[2]["text"] == "plain text"
    assert '"url": "http://a/1"' in str(texts[0]["metadata"])
    assert "x()" not in str(texts[0]["text"])
    assert [row["reason"] for row in rejects] == ["not_text", "http_status", "no_text"]
    assert "http://a/4" in str(rejects[0]["detail"])
    assert passed_over == 2


def test_wet_conversions_are_documents_as_they_are(tmp_path: Path) -> None:
    content = record("warcinfo", "", b"x", http=None) + record(
        "conversion", "http://b", "\u00e9 text\n".encode(), http=None
    )
    texts, rejects, _ = read(tmp_path / "a.wet", content)
    assert [row["text"] for row in texts] == ["\u00e9 text\n"]
    assert not rejects


def test_html_nested_without_end_is_a_reject_in_little_time(tmp_path: Path) -> None:
    deep = b"<div>" * 100_000 + b"x"
    flat = b"<html><body>" + b"<p>A paragraph that nobody closes. " * 5000
    content = record("response", "http://deep", deep) + record("response", "http://flat", flat)
    began = time.monotonic()
    texts, rejects, _ = read(tmp_path / "a.warc", content)
    assert [row["reason"] for row in rejects] == ["html_too_deep"]
    assert len(texts) == 1
    assert time.monotonic() - began < 20


def test_a_page_that_is_too_long_is_a_reject(tmp_path: Path) -> None:
    content = record("response", "http://long", b"y" * 5000) + record(
        "response", "http://short", b"z", content_type="text/plain"
    )
    texts, rejects, _ = read(tmp_path / "a.warc", content, max_document_bytes=1000)
    assert [row["reason"] for row in rejects] == ["too_long"]
    assert [row["text"] for row in texts] == ["z"]


@pytest.mark.parametrize("damage", ["cut", "text", "flip"])
def test_a_broken_archive_is_an_error_that_names_it(tmp_path: Path, damage: str) -> None:
    parts = [gzip.compress(record("response", f"http://{k}", HTML.format("w" * k).encode())) for k in range(1, 9)]
    good = b"".join(parts)
    place = len(good) - 60
    bad = {
        "cut": good[:place],
        "text": b"just some text\n" * 50,
        "flip": good[:place] + bytes([good[place] ^ 0xFF]) + good[place + 1 :],
    }
    path = tmp_path / "bad.warc.gz"
    path.write_bytes(bad[damage])
    with pytest.raises(ValueError, match=r"bad\.warc\.gz"):
        list(sources.collect("web", [(path.name, str(path))], sources.Options(), 1 << 30))


def depth(content: bytes) -> int:
    """Depth of a page of any size; short pages are not counted."""
    return html_depth.depth(b"<br>" * 1000 + content, 1000)


def test_tags_that_never_close_are_read_in_linear_time() -> None:
    began = time.process_time()
    assert depth(b"<a " * 100_000) == 0
    assert depth(b"<" + b"a" * 500_000) == 0
    assert depth(b"<script>" * 100_000) == depth(b"<!--" * 100_000) == 0
    assert depth(b"<i><b x=1>" * 500) == 1000
    assert time.process_time() - began < 10


@pytest.mark.parametrize(
    "flat",
    [
        "<dl>" + "<dt>a<dd>b" * 1500,
        "<table>" + "<tr><td>a<td>b" * 1500,
        "<table><tbody>" + "<tr><th>a<td>b<tbody>" * 1500,
        "<ul>" + "<li>a<p>b" * 1500,
        "<p><span>a" * 1500,
        "<a name=x>a" * 1500,
        "<select>" + "<option>a" * 1500,
        "<ruby>" + "<rb>a<rt>b" * 1500,
        "<svg>" + "<path d='M1'/>" * 1500,
        "<script>" + "document.write('<div>');" * 1500 + "</script>",
        "<!--" + "<div>" * 1500 + "-->",
        "<div title='<'></div>" * 1500,
        "<font><div></font></div>" * 1500,
        "<p><font size=2>a</p>" * 1500,
        "<table>" + "<tr><td><b>a" * 1500,
        "<table>" + "<tr><td><p><b>a</p>" * 1500,
        "<button>a" * 1500,
    ],
)
def test_a_page_without_end_tags_that_html_implies_is_flat(flat: str) -> None:
    assert depth(flat.encode()) < 10
    assert not web.text_of(f"<p>Some words.</p>{flat}<p>The end.</p>".encode(), "utf-8", False).reason


def test_a_page_whose_open_tags_a_parser_would_repeat_without_end_counts_as_deep() -> None:
    fonts = "".join(f"<font size={size}>" for size in range(900))
    assert depth((fonts + "<p>a" * 5000).encode()) > 900  # inside them, none ends
    assert depth(("<p>" + fonts + "<p>a" * 5000).encode()) == 1001


@pytest.mark.parametrize(
    "unit",
    [
        "<div>",
        "<ul><li>",
        "<table><tr><td>",
        "<b><div></b>",
        "<li><ul></li>",
        "<DIV x='>'>",
        "<span><div></span>",
        "<o:p/>",
        "<div/>",
        "<div title='<'>",
        "<!--><div>",
        "<!--->--><div>",
        "<!-- --!><div>",
        "<rt>",
        "<p><b>a</p>a",
        "<b>a<button>a",
        "<svg><foreignObject><dt>",
        "<svg><title><p>",
        "<math><mi><p>",
    ],
)
def test_what_nests_is_deep(unit: str) -> None:
    assert depth(unit.encode() * 1500) > 1000


def test_a_tag_with_attributes_without_end_is_rejected_in_linear_time() -> None:
    began = time.process_time()
    names = " ".join(f"a{number}" for number in range(300_000))
    assert web.text_of(f"<p {names}>words</p>".encode(), "", True).reason == "html_too_deep"
    assert time.process_time() - began < 5
    long = f"<p title='{names}' class=x>words</p><img src='data:,{'x' * 100_000}'>"
    assert web.text_of(long.encode(), "", True).text == "words"


def test_a_deep_page_is_deep_in_any_encoding() -> None:
    page = "<p>\u00e9" + "<div>" * 1500
    for codec in ("utf-8", "utf-16", "utf-16-le", "utf-16-be", "utf-32"):
        assert web.text_of(page.encode(codec), "", True).reason == "html_too_deep"


RIGHT = "L\u2019\u00e9t\u00e9 \u00e0 la mer, d\u00e9j\u00e0."


@pytest.mark.parametrize(
    ("content", "charset", "text"),
    [
        (RIGHT.encode() + b" \xe9!", "utf-8", RIGHT + " \ufffd!"),
        (RIGHT.encode() + b" \xe9!", "", RIGHT + " \ufffd!"),
        (RIGHT.encode() + b" \xc3", "", RIGHT + " \ufffd"),
        ("It\u2019s".encode(), "", "It\u2019s"),
        ("It\u2019s".encode(), "iso-8859-1", "It\u2019s"),
        (RIGHT.encode(), '"utf-8"', RIGHT),
        (RIGHT.encode(), "'UTF-8'", RIGHT),
        (b"\xef\xbb\xbf" + RIGHT.encode(), "iso-8859-1", RIGHT),
        (b"\xff\xfe" + RIGHT.encode("utf-16-le"), "utf-8", RIGHT),
        (b"\xfe\xff" + RIGHT.encode("utf-16-be"), "", RIGHT),
        (RIGHT.encode("cp1252"), "latin1", RIGHT),
        (RIGHT.encode("cp1252"), "windows-1252", RIGHT),
        (RIGHT.encode("utf-16-le"), "utf-16", RIGHT),
        ("\ub620\ubc29\uac01\ud558, \uc559".encode("cp949"), "euc-kr", "\ub620\ubc29\uac01\ud558, \uc559"),
        ("\uc559".encode("cp949"), "ks_c_5601-1987", "\uc559"),
        ("\u2460\u3231\u9ad9 \uff5e".encode("cp932"), "Shift_JIS", "\u2460\u3231\u9ad9 \uff5e"),
        ("\u2460\u3231".encode("cp932"), "x-sjis", "\u2460\u3231"),
        ("\u570b\u9996\u9f8d".encode("gbk"), "gb2312", "\u570b\u9996\u9f8d"),
        ("\u3400\U00020000\u20ac".encode("gb18030"), "gb2312", "\u3400\U00020000\u20ac"),
        (b"\x80 5", "gbk", "\u20ac 5"),
        ("\u5605\u5481\u54cb".encode("big5hkscs"), "big5", "\u5605\u5481\u54cb"),
        ("\u5605".encode("big5hkscs"), "Big5-HKSCS", "\u5605"),
        (b"\xad\xa1\xad\xea", "euc-jp", "\u2460\u3231"),
        (b"\x1b$B-!-j\x1b(B x", "iso-2022-jp", "\u2460\u3231 x"),
        (b"\xb1\xb2", "tis-620", "\u0e11\u0e12"),
        (RIGHT.encode() + b" \xe9!", "iso-8859-1", RIGHT + " \ufffd!"),
        (RIGHT.encode() + b" \xe2\x80", "windows-1251", RIGHT + " \ufffd"),
        ("\u4f60\u597d\u4e16\u754c".encode() * 5 + b"\xe4", "gbk", "\u4f60\u597d\u4e16\u754c" * 5 + "\ufffd"),
        ("\u4f60\u597d\u4e16\u754c".encode(), "gbk", "\u4f60\u597d\u4e16\u754c"),
        ("\u0401\u043b\u043a\u0430".encode("cp1251"), "cp1251", "\u0401\u043b\u043a\u0430"),
        (RIGHT.encode("utf-16-le"), "", RIGHT),
        (RIGHT.encode("utf-16-be"), "iso-8859-1", RIGHT),
        ("<p>\u4e00\u732b</p>\n".encode("utf-16-le") * 9, "", "<p>\u4e00\u732b</p>\n" * 9),
        (b"\xff\xfe\0\0" + RIGHT.encode("utf-32-le"), "utf-8", RIGHT),
        (b"\x1b$B-!-j\x1b(B x", "", "\u2460\u3231 x"),
        (b"\x1b[1mbold\x1b[0m $x", "", "\x1b[1mbold\x1b[0m $x"),
    ],
)  # fmt: skip
def test_bytes_are_read_as_browsers_read_them(content: bytes, charset: str, text: str) -> None:
    header = encoding.charset_of(f"text/html; Charset = {charset}")
    assert encoding.decode(content, header).text == text


def test_markup_declares_its_encoding_where_the_header_does_not(tmp_path: Path) -> None:
    head = "<html><head><!-- <meta charset=koi8-r> --><meta {0}></head><body><p>{1}</p></body></html>"
    word = "\u043f\u0440\u0438\u0432\u0435\u0442 \u0432\u0441\u0435\u043c"
    content = b""
    for meta in ('charset="windows-1251"', "http-equiv=Content-Type content='text/html; charset=windows-1251'"):
        content += record("response", f"http://{len(meta)}", head.format(meta, word).encode("cp1251"))
    content += record(
        "response",
        "http://both",
        head.format("charset=cp1251", word * 9).encode("cp1251"),
        content_type="text/html; charset=utf-8",
    )
    texts, rejects, _ = read(tmp_path / "a.warc", content, main_content=False)
    assert [str(row["text"]).strip() for row in texts] == [word, word, word * 9]
    assert not rejects


def test_broken_characters_are_counted_and_too_many_are_a_reject(tmp_path: Path) -> None:
    page = b"<html><body><p>%s</p></body></html>"
    content = record("response", "http://a", page % (RIGHT.encode() + b"\xe9"), content_type="text/html; charset=utf-8")
    content += record(
        "response", "http://b", page % ("\u00e9" * 50).encode("latin-1"), content_type="text/html; charset=utf-8"
    )
    content += record("conversion", "http://c", b"caf\xe9 \xff", http=None)
    path = tmp_path / "a.warc"
    path.write_bytes(content)
    (batch,) = sources.collect("web", [("a.warc", str(path))], sources.Options(), 1 << 30)
    assert [text.strip() for text in batch.text["text"].to_pylist()] == [RIGHT + "\ufffd", "caf\ufffd \ufffd"]
    assert batch.broken == 3
    (reject,) = batch.rejects.to_pylist()
    assert reject["reason"] == "broken_encoding"
    assert "50 of 50 characters are broken in utf-8" in reject["detail"]
