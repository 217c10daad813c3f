"""Web archives become documents with their addresses; what is no page is told apart."""

import gzip
import time
from pathlib import Path

import pytest

from data import sources, web

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


def test_tags_that_never_close_are_read_in_linear_time() -> None:
    began = time.process_time()
    assert web._depth(b"<a " * 500_000) == 0
    assert web._depth(b"<" + b"a" * 500_000) == 0
    assert web._depth(b"<a><b x=1>" * 500 + b"<br>" * 900) == 1000
    assert time.process_time() - began < 10
