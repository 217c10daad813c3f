import bz2
import gzip
import json
import lzma
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from data import schema, sources

COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    ".jsonl": bytes,
    ".jsonl.gz": gzip.compress,
    ".jsonl.zst": zstandard.compress,
}


def lines(*records: object) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def collect_file(source: str, name: str, uri: str, text_field: str = "text") -> tuple[pa.Table, pa.Table]:
    """(TEXT, REJECTS) of one file."""
    batches = list(sources.collect(source, [(name, uri)], sources.Options(text_field=text_field), 1000))
    return pa.concat_tables([batch.text for batch in batches]), pa.concat_tables([batch.rejects for batch in batches])


def collect(tmp_path: Path, name: str, content: bytes, text_field: str = "text") -> tuple[list[str], list[str]]:
    """(texts, reasons of the rejects) of one file."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    text, rejects = collect_file("source", name, str(path), text_field)
    assert text.schema.equals(schema.TEXT, check_metadata=True)
    assert rejects.schema.equals(schema.REJECTS, check_metadata=True)
    return text["text"].to_pylist(), rejects["reason"].to_pylist()


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_each_line_is_a_document(tmp_path: Path, suffix: str) -> None:
    content = (
        lines({"text": "one"}, {"text": "zwei \u00fc"}, {"text": ""}) + b"\n  \n" + lines({"text": "after blanks"})
    )
    texts, reasons = collect(tmp_path, "a" + suffix, COMPRESSIONS[suffix](content))
    assert texts == ["one", "zwei \u00fc", "", "after blanks"]
    assert reasons == []


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
def test_a_stream_of_several_frames_is_read_to_its_end(tmp_path: Path, suffix: str) -> None:
    compress = COMPRESSIONS[suffix]
    content = b"".join(compress(lines({"text": f"frame {number}"})) for number in range(3))
    assert collect(tmp_path, "a" + suffix, content)[0] == ["frame 0", "frame 1", "frame 2"]


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
def test_a_long_stream_is_read_whole(tmp_path: Path, suffix: str) -> None:
    noise = random.Random(0)
    records = [{"text": noise.randbytes(noise.randrange(4000)).hex()} for _ in range(300)]
    texts, _ = collect(tmp_path, "a" + suffix, COMPRESSIONS[suffix](lines(*records)))
    assert texts == [record["text"] for record in records]


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
@pytest.mark.parametrize("left", [0.3, 0.9, 0.999])
def test_a_stream_cut_short_is_an_error_and_no_shorter_corpus(tmp_path: Path, suffix: str, left: float) -> None:
    noise = random.Random(0)
    whole = COMPRESSIONS[suffix](lines(*({"text": noise.randbytes(50).hex()} for _ in range(50))))
    with pytest.raises(ValueError, match="ends or breaks inside its compressed stream"):
        collect(tmp_path, "a" + suffix, whole[: int(left * len(whole))])


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
def test_a_damaged_stream_is_an_error(tmp_path: Path, suffix: str) -> None:
    noise = random.Random(0)
    content = lines(*({"text": noise.randbytes(50).hex()} for _ in range(50)))
    compress = zstandard.ZstdCompressor(write_checksum=True).compress if suffix == ".jsonl.zst" else gzip.compress
    damaged = bytearray(compress(content))
    damaged[len(damaged) // 2] ^= 0xFF
    with pytest.raises(ValueError, match="ends or breaks inside its compressed stream"):
        collect(tmp_path, "a" + suffix, bytes(damaged))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "caf\xe9"}', "invalid_utf8"),
        (b'{"text": "\\ud800"}', "invalid_utf8"),
        (b'{"text": "cut', "invalid_json"),
        (b'["text"]', "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b'{"text": "a", "number": ' + b"1" * 5000 + b"}", "invalid_json"),
        (b'{"body": "a"}', "no_text"),
        (b'{"\\ud800": "a"}', "no_text"),
        (b'{"text": null}', "no_text"),
        (b'{"text": 7}', "no_text"),
    ],
    ids=["latin-1", "surrogate", "cut", "list", "deep", "digits", "other field", "odd field", "null", "number"],
)
def test_a_line_that_is_no_document_is_a_reject_with_its_reason(tmp_path: Path, line: bytes, reason: str) -> None:
    texts, reasons = collect(tmp_path, "a.jsonl", lines({"text": "before"}) + line + b"\n" + lines({"text": "after"}))
    assert texts == ["before", "after"]
    assert reasons == [reason]


def test_a_reject_tells_its_place_and_keeps_its_first_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines({"text": "good"}) + b'{"text": 1' + b" " * 10_000 + b"\n")
    _, rejects = collect_file("wiki", "x/a.jsonl", str(path), "text")
    (reject,) = rejects.to_pylist()
    assert reject["id"] == schema.document_id("wiki", "x/a.jsonl", 1)
    assert (reject["source"], reject["name"]) == ("wiki", "x/a.jsonl")
    assert reject["detail"].startswith("line 2: ")
    assert len(reject["content"]) == sources.KEPT_BYTES


def test_ids_follow_source_name_and_line_and_not_the_folder(tmp_path: Path) -> None:
    ids = []
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.jsonl").write_bytes(b"\n" + lines({"text": "same"}, {"text": "same"}))
        text, _ = collect_file("wiki", "a.jsonl", str(tmp_path / folder / "a.jsonl"), "text")
        ids.append(text["id"].to_pylist())
    assert ids[0] == ids[1] == [schema.document_id("wiki", "a.jsonl", line) for line in (1, 2)]
    assert text["content_hash"].to_pylist() == [schema.content_hash("same")] * 2


def test_other_fields_are_kept_as_metadata(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines({"text": "t", "url": "\u00e9", "n": 1}) + b'{"text": "u", "odd": "\\ud800"}\n')
    text, _ = collect_file("s", "a.jsonl", str(path), "text")
    assert [json.loads(metadata) for metadata in text["metadata"].to_pylist()] == [
        {"name": "a.jsonl", "record": {"url": "\u00e9", "n": 1}},
        {"name": "a.jsonl", "record": {"odd": "\ud800"}},
    ]


def test_the_text_may_be_in_another_field(tmp_path: Path) -> None:
    assert collect(tmp_path, "a.jsonl", lines({"body": "b", "text": "t"}), text_field="body")[0] == ["b"]


def test_a_byte_order_mark_hides_no_document(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbf" + lines({"text": "first"}, {"text": "second"})
    assert collect(tmp_path, "a.jsonl", content) == (["first", "second"], [])
    assert collect(tmp_path, "joined.jsonl", content + content) == (["first", "second"] * 2, [])


def test_an_empty_file_has_no_documents(tmp_path: Path) -> None:
    for suffix in COMPRESSIONS:
        assert collect(tmp_path, "a" + suffix, b"") == ([], [])


@pytest.mark.parametrize("content", [b"plain text\nand more\n", b"not json\n" * 2000], ids=["short", "long"])
def test_a_jsonl_without_one_json_object_is_an_error(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ValueError, match=r"is not JSON lines.*rename it to \.txt"):
        collect(tmp_path, "a.jsonl", content)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", gzip.compress(b"{}", mtime=0), "is a gzip file"),
        ("a.jsonl", zstandard.compress(b"{}"), "is a zstd file"),
        ("a.jsonl", b"PAR1....", "is a Parquet file"),
        ("a.jsonl", b"PK\x03\x04..", "is a zip file"),
        ("a.jsonl", b"%PDF-1.7", "is a PDF file"),
        ("a.jsonl.gz", zstandard.compress(b"{}"), "is a zstd file"),
        ("a.jsonl.zst", b'{"text": "a"}', "is not compressed as its name says"),
        ("a.jsonl.gz", b'{"text": "a"}', "is not compressed as its name says"),
        ("a.parquet", b'{"text": "a"}', "is not a Parquet file"),
        ("a.parquet", b"", "is not a Parquet file"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_an_error(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        collect(tmp_path, name, content)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())], ids=str
)
def test_each_row_of_a_parquet_file_is_a_document(tmp_path: Path, kind: pa.DataType) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"n": [1, 2, 3], "text": pa.array(["one", None, "dr\u00ed"], kind)}), path)
    text, rejects = collect_file("s", "a.parquet", str(path), "text")
    assert text["text"].to_pylist() == ["one", "dr\u00ed"]
    assert text["id"].to_pylist() == [schema.document_id("s", "a.parquet", row) for row in (0, 2)]
    assert rejects["reason"].to_pylist() == ["no_text"]


def test_parquet_strings_that_are_not_utf8_are_counted_rejects(tmp_path: Path) -> None:
    unchecked = pa.Array.from_buffers(pa.string(), 3, pa.array([b"ok", b"\xff\xfe", b"fine"]).buffers())
    pq.write_table(pa.table({"text": unchecked}), tmp_path / "written.parquet")
    content = (tmp_path / "written.parquet").read_bytes()
    assert collect(tmp_path, "a.parquet", content) == (["ok", "fine"], ["invalid_utf8"])


def test_metadata_that_is_not_utf8_is_kept_as_text(tmp_path: Path) -> None:
    unchecked = pa.Array.from_buffers(pa.string(), 2, pa.array([b"ok", b"caf\xe9"]).buffers())
    pq.write_table(pa.table({"text": ["a", "b"], "from": unchecked}), tmp_path / "a.parquet")
    options = sources.Options(metadata_fields=("from",))
    (batch,) = sources.collect("source", [("a.parquet", str(tmp_path / "a.parquet"))], options, 1000)
    assert [json.loads(row)["record"]["from"] for row in batch.text["metadata"].to_pylist()] == ["ok", "caf\\xe9"]


def test_a_parquet_file_without_the_text_column_says_what_it_has(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["a"], "text": [1]}), tmp_path / "x")
    content = (tmp_path / "x").read_bytes()
    with pytest.raises(ValueError, match="no column 'content'; it has body, text: set --text-field"):
        collect(tmp_path, "a.parquet", content, text_field="content")
    with pytest.raises(ValueError, match="'text' holds int64, not strings"):
        collect(tmp_path, "a.parquet", content)


def test_a_damaged_parquet_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [f"row {n}" for n in range(3000)]}), tmp_path / "x", write_page_checksum=True)
    damaged = bytearray((tmp_path / "x").read_bytes())
    damaged[500] ^= 1
    with pytest.raises(ValueError, match=r"a\.parquet is damaged"):
        collect(tmp_path, "a.parquet", bytes(damaged))


def test_any_other_file_is_one_document(tmp_path: Path) -> None:
    assert collect(tmp_path, "a.txt", "l\u00edne\nline\n".encode()) == (["l\u00edne\nline\n"], [])
    assert collect(tmp_path, "b.py", b"\xff") == ([], ["invalid_utf8"])


@settings(deadline=None, max_examples=100)
@given(st.lists(st.binary(max_size=40) | st.text(max_size=20).map(lambda text: lines({"text": text})), max_size=8))
def test_any_bytes_are_documents_rejects_or_an_error_of_the_file(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes]
) -> None:
    content = b"\n".join(parts)
    try:
        texts, reasons = collect(tmp_path_factory.mktemp("any"), "a.jsonl", content)
    except ValueError as error:
        if not str(error).startswith("a.jsonl is"):
            raise
        return
    assert len(texts) + len(reasons) == sum(bool(line.strip()) for line in content.split(b"\n"))


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress, bz2.compress, lzma.compress])
def test_files_are_read_by_content_and_suffix_in_any_case(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    ending = {gzip.compress: ".GZ", zstandard.compress: ".zst", bz2.compress: ".bz2", lzma.compress: ".xz"}[compress]
    records = lines({"text": "one"}, {"text": "two"})
    for name in ("a.json", "a.ndjson", "a.JSONL", "a.txt"):
        assert collect(tmp_path, name + ending, compress(records)) == (["one", "two"], [])
    assert collect(tmp_path, "b.txt" + ending, compress(b"plain\n")) == (["plain\n"], [])
    assert collect(tmp_path, "b.html" + ending, compress(b"<p>Some <b>words</b></p>"))[0] == ["Some words"]
    with pytest.raises(ValueError, match=r"b\.txt"):
        collect(tmp_path, "b.txt" + ending, compress(b"plain\n" * 50)[:-9])


def test_zstd_of_pzstd_and_with_long_windows_is_read(tmp_path: Path) -> None:
    records, frame = lines({"text": "one"}, {"text": "two"}), b"\x50\x2a\x4d\x18\x04\0\0\0size"
    packed = frame + zstandard.compress(records[:10]) + frame + zstandard.compress(records[10:])
    assert collect(tmp_path, "a.jsonl.zst", packed) == (["one", "two"], [])
    long = zstandard.ZstdCompressionParameters.from_level(3, window_log=28, enable_ldm=True)
    stream = zstandard.ZstdCompressor(compression_params=long).compressobj()
    assert collect(tmp_path, "b.jsonl.zst", stream.compress(records) + stream.flush()) == (["one", "two"], [])


def test_a_file_that_looks_like_json_lines_is_never_one_document(tmp_path: Path) -> None:
    records = lines({"text": "one"}, {"text": "two"})
    for name in ("a.NDJSON", "a.txt", "a.json", "a.md"):
        assert collect(tmp_path, name, records) == (["one", "two"], [])
    for before in (b"\n", b" \t", b"\xef\xbb\xbf\r\n\n ", b"\n" * 100):
        assert collect(tmp_path, "a.txt", before + records) == (["one", "two"], [])
        assert collect(tmp_path, "a.txt.gz", gzip.compress(before + records)) == (["one", "two"], [])
    assert collect(tmp_path, "b.txt", b"{braces}\n") == (["{braces}\n"], [])
    assert collect(tmp_path, "c.HTML", "<p>\u00e9t\u00e9</p>".encode())[0] == ["\u00e9t\u00e9"]


def test_a_file_beside_json_lines_and_binary_content_are_no_documents(tmp_path: Path) -> None:
    assert collect(tmp_path, "a.jsonl.sha256", b"9f86d0  a.jsonl\n") == ([], ["invalid_json"])
    assert collect(tmp_path, "a.jsonl.00", lines({"text": "one"})) == (["one"], [])
    assert collect(tmp_path, "a.jsonl.d/b.txt", b"words") == (["words"], [])
    assert collect(tmp_path, "a.txt", "plain words".encode("utf-16-le")) == ([], ["not_text"])


@pytest.mark.parametrize(
    ("content", "texts", "reasons"),
    [
        ('[{"text": "one"}, {"text": "two"}]', ["one", "two"], []),
        ('[\n {"text": "one"},\n {"text": "two"}\n]\n', ["one", "two"], []),
        ('{\n "text": "one",\n "n": 1\n}', ["one"], []),
        ('{"text": "one"}', ["one"], []),
        ('{"text": "one"}\n\n{"text": "two"}\n', ["one", "two"], []),
        ('{"version": 1, "data": [{"text": "one"}, {"text": "two"}]}', ["one", "two"], []),
        ('{\n "data": [{"text": "one"}, 7]\n}', ["one"], ["invalid_json"]),
        ('{\n "name": "x", "files": ["a"]\n}', [], ["no_text"]),
        ('["a", "b"]', [], ["invalid_json", "invalid_json"]),
        ('{"text": "one"}\n{"text": \n', ["one"], ["invalid_json"]),
        ("[]", [], []),
        ("7", [], ["invalid_json"]),
    ],
)
@pytest.mark.parametrize("suffix", [".json", ".JSON.gz"])
def test_a_json_file_is_read_by_its_content(
    tmp_path: Path, suffix: str, content: str, texts: list[str], reasons: list[str]
) -> None:
    raw = b"\xef\xbb\xbf" + content.encode()
    packed = gzip.compress(raw) if suffix.endswith("gz") else raw
    assert collect(tmp_path, "a" + suffix, packed) == (texts, reasons)


def test_a_json_file_that_is_no_json_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.json is not JSON lines"):
        collect(tmp_path, "a.json", b'{\n // a comment\n "text": 1\n}')


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path: Path) -> None:
    for name, content in {
        "a.txt": b"\xef\xbb\xbfwords",
        "b.html": b"\xef\xbb\xbf<p>words</p>",
        "c.md": b"\xef\xbb\xbfwords",
    }.items():
        assert collect(tmp_path, name, content) == (["words"], [])
