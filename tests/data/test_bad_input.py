"""Broken and hostile input ends in documents, counted rejects or an error by name, in bounded time and memory."""

import gzip
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from data import decontaminate, documents, sources
from pipelines.stages import collect_text
from tests.programs.places import REPOSITORY


def read(path: Path, **options: object) -> tuple[list[str], list[str]]:
    """(texts, reasons of the rejects)."""
    chosen = sources.Options(**options)  # type: ignore[arg-type]
    batches = list(sources.collect("s", [(path.name, str(path))], chosen, 8 << 20))
    return [text for batch in batches for text in batch.text["text"].to_pylist()], [
        reason for batch in batches for reason in batch.rejects["reason"].to_pylist()
    ]


def peak_bytes(path: Path) -> int:
    """Peak memory of a process that reads the file, over one that only imports the reader; what it tells is printed."""
    script = (
        "import resource, sys\nfrom data import sources\nbase = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n"
        "    for one in sources.collect('s', [(sys.argv[1], sys.argv[1])], sources.Options(), 8 << 20): pass\n"
        "except ValueError as error: print(error, file=sys.stderr)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) * 1024)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "content"), [(".gz", "zeros"), (".zst", "zeros"), (".zst", "lines")])
def test_a_decompression_bomb_is_an_error_soon_and_in_little_memory(tmp_path: Path, suffix: str, content: str) -> None:
    size = 400 << 20
    line = json.dumps({"text": "a" * 1000}).encode() + b"\n"
    data = bytes(size) if content == "zeros" else line * (size // len(line))
    path = tmp_path / f"bomb.jsonl{suffix}"
    path.write_bytes(gzip.compress(data, 9) if suffix == ".gz" else zstandard.compress(data))
    began = time.process_time()
    with pytest.raises(ValueError, match=r"bomb.jsonl.* expands more than 200 times .*--exclude"):
        read(path)
    assert time.process_time() - began < 60
    assert peak_bytes(path) < 600 << 20


def test_a_long_line_is_a_document_up_to_the_limit_and_then_a_reject(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_bytes(b'{"text": "%b"}\n{"text": "next"}\n' % (b"x" * 50_000_000))
    texts, reasons = read(path)
    assert [len(text) for text in texts] == [50_000_000, 4]
    texts, reasons = read(path, max_document_bytes=1_000_000)
    assert (texts, reasons) == (["next"], ["too_long"])


@pytest.mark.chaos
def test_a_line_of_a_gigabyte_is_skipped_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "huge.jsonl"
    with path.open("wb") as file:
        file.write(b'{"text": "')
        for _ in range(1024):
            file.write(b"x" * (1 << 20))
        file.write(b'"}\n{"text": "next"}\n')
    assert read(path) == (["next"], ["too_long"])
    assert peak_bytes(path) < 600 << 20


@pytest.mark.chaos("a million documents")
def test_a_million_empty_documents_take_little_time_and_memory(tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_bytes(b'{"text": ""}\n' * 1_000_000)
    began = time.process_time()
    texts, _ = read(path)
    assert len(texts) == 1_000_000
    assert time.process_time() - began < 60


def test_nul_and_lone_surrogates(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'{"text": "a\\u0000b"}\n{"text": "\\ud800"}\n{"text": "\\udc00x", "n": 1}\n{"text": "\\ud83d\\ude00"}\n'
    )
    assert read(path) == (["a\0b", "\U0001f600"], ["invalid_utf8"] * 2)


def test_a_schema_that_changes_in_the_middle_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [
        {"text": "one"},
        {"body": "two"},
        {"text": {"a": "three"}},
        {"text": ["four"]},
        {"text": "five", "n": {"m": 1}},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert read(path) == (["one", "five"], ["no_text"] * 3)
    nested = tmp_path / "b.jsonl"
    nested.write_text('{"a": {"b": "x"}}\n{"a.b": "y"}\n{"a": "z"}\n')
    assert read(nested, text_field="a.b") == (["x", "y"], ["no_text"])


def parquet(path: Path, texts: list[str], **options: object) -> Path:
    pq.write_table(pa.table({"text": texts, "n": list(range(len(texts)))}), path, **options)
    return path


@pytest.mark.chaos("one huge value")
def test_one_huge_value_repeated_is_read_in_little_memory(tmp_path: Path) -> None:
    value = pa.DictionaryArray.from_arrays(pa.array(np.zeros(2000, np.int32)), pa.array(["x" * 2_000_000]))
    path = tmp_path / "repeated.parquet"
    pq.write_table(pa.table({"text": value}), path, store_schema=False)
    assert path.stat().st_size < 1 << 20
    assert peak_bytes(path) < 1 << 30  # 4 GB at once


@pytest.mark.slow
def test_a_footer_that_lies_is_an_error_or_harmless_and_never_a_crash(tmp_path: Path) -> None:
    good = parquet(tmp_path / "good.parquet", [f"text number {k} " * 9 for k in range(500)]).read_bytes()
    footer = int.from_bytes(good[-8:-4], "little") + 8
    draw = np.random.default_rng(4)
    path = tmp_path / "bad.parquet"
    outcomes = {"error": 0, "read": 0}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(300):
        place = len(good) - 1 - int(draw.integers(0, footer))
        path.write_bytes(good[:place] + bytes([good[place] ^ (1 << int(draw.integers(0, 8)))]) + good[place + 1 :])
        refusal = ""
        try:
            texts, reasons = read(path)
            assert len(texts) + len(reasons) <= 500
        except ValueError as error:
            refusal = str(error)
        assert not refusal or "bad.parquet" in refusal
        outcomes["error" if refusal else "read"] += 1
    assert outcomes["error"] > 100, outcomes
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2 << 20  # kB


def test_columns_are_kept_as_metadata_where_asked_for(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", ["x", "y"])
    chosen = sources.Options(metadata_fields=("n",))
    (batch,) = sources.collect("s", [("a.parquet", str(path))], chosen, 1 << 20)
    assert [json.loads(metadata)["record"] for metadata in batch.text["metadata"].to_pylist()] == [{"n": 0}, {"n": 1}]
    with pytest.raises(ValueError, match="has no column 'm'; it has text, n: set"):
        list(sources.collect("s", [("a.parquet", str(path))], sources.Options(metadata_fields=("m",)), 1))


def test_a_bad_file_is_skipped_whole_and_counted_where_that_is_chosen(tmp_path: Path) -> None:
    good, bad = tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"
    good.write_text('{"text": "good"}\n')
    content = gzip.compress(b"".join(b'{"text": "number %d"}\n' % k for k in range(50_000)))
    bad.write_bytes(content[: len(content) // 2])
    files = [("b.jsonl.gz", str(bad)), ("a.jsonl", str(good))]
    with pytest.raises(ValueError, match=r"b.jsonl.gz ends or breaks"):
        list(sources.collect("s", files, sources.Options(), 1 << 20))
    (batch,) = sources.collect("s", files, sources.Options(skip_bad_files=True), 1 << 20)
    assert batch.text["text"].to_pylist() == ["good"]
    (reject,) = batch.rejects.to_pylist()
    assert (reject["reason"], reject["name"]) == ("bad_file", "b.jsonl.gz")
    assert "ends or breaks" in reject["detail"]


def test_encoding_is_repaired_on_request_only(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("It\u00e2\u20ac\u2122s broken", encoding="utf-8")
    assert read(path)[0] == ["It\u00e2\u20ac\u2122s broken"]
    (batch,) = sources.collect("s", [("a.txt", str(path))], sources.Options(fix_encoding=True), 1 << 20)
    assert batch.text["text"].to_pylist() == ["It\u2019s broken"]
    assert batch.fixed == 1


@pytest.mark.parametrize(
    "text", ["\u201cIt\u2019s\u201d", "a\r\nb", "\ufb01n", "\uff21", "e\u0301", "&lt;b&gt;", "\x1b[1mx"]
)
def test_the_repair_of_encodings_changes_no_text_that_was_decoded_rightly(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode())
    (batch,) = sources.collect("s", [("a.txt", str(path))], sources.Options(fix_encoding=True), 1 << 20)
    assert batch.text["text"].to_pylist() == [text]
    assert batch.fixed == 0


def test_batches_are_the_whole_in_any_size(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"number {k}"}) if k % 7 else "{" for k in range(1, 500)))
    whole = read(path)
    for size in (1, 50, 10**9):
        batches = list(sources.collect("s", [("a.jsonl", str(path))], sources.Options(), size))
        assert [text for batch in batches for text in batch.text["text"].to_pylist()] == whole[0]
        assert sum(batch.rejects.num_rows for batch in batches) == len(whole[1])


def test_what_a_batch_holds_is_counted_with_its_metadata_and_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": "x", "notes": "n" * 10_000}) + "\n" for _ in range(300)))
    batches = list(sources.collect("s", [("a.jsonl", str(path))], sources.Options(), 100_000))
    assert len(batches) > 20
    path.write_text('{"text": ""}\n' * 3000)
    assert len(list(sources.collect("s", [("a.jsonl", str(path))], sources.Options(), 100_000))) > 5


def test_metadata_is_strict_json_and_times_of_any_year_are_kept_as_text(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    columns = {
        "text": pa.array(["x", "y"], pa.string_view()),
        "day": pa.array([-(10**6), 0], pa.date32()),
        "days": pa.array([[2**31 - 1], [0]], pa.list_(pa.date32())),
        "time": pa.array([10**13, 0], pa.timestamp("s")),
        "score": [float("nan"), 0.5],
    }
    pq.write_table(pa.table(columns), path)
    options = sources.Options(metadata_fields=("day", "days", "time", "score"))
    (batch,) = sources.collect("s", [("a.parquet", str(path))], options, 1 << 20)
    assert batch.text["text"].to_pylist() == ["x", "y"]
    first, second = (
        json.loads(text, parse_constant=pytest.fail)["record"] for text in batch.text["metadata"].to_pylist()
    )
    assert first["day"] == "-0768-02-04"
    assert first["score"] == "nan"
    assert isinstance(first["time"], str)
    assert first["days"] == ["2147483647"]
    assert second == {"day": "1970-01-01", "days": ["1970-01-01"], "time": "1970-01-01 00:00:00", "score": 0.5}


def test_infinite_numbers_of_json_lines_become_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x", "a": NaN, "b": [Infinity, {"c": -Infinity}], "d": 1e999, "e": 1.5}\n')
    (batch,) = sources.collect("s", [("a.jsonl", str(path))], sources.Options(), 1 << 20)
    (metadata,) = (json.loads(text, parse_constant=pytest.fail) for text in batch.text["metadata"].to_pylist())
    assert metadata["record"] == {"a": "nan", "b": ["inf", {"c": "-inf"}], "d": "inf", "e": 1.5}


def test_lines_end_at_a_newline_only() -> None:
    content = "\ufeffa\u2028b\u0085c\x0cd\r\ne\x1cf\n\ng".encode()
    assert documents.lines_of(content) == ["a\u2028b\u0085c\x0cd", "e\x1cf", "", "g"]
    assert documents.lines_of(b"") == []


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffa\ufeffb".encode())
    assert read(path) == (["a\ufeffb"], [])


def test_hidden_files_are_left_out_and_sets_are_named_by_path() -> None:
    names = ["a.txt", "._a.txt", ".git/x.txt", "b/.c/d.txt", "b/c.d.txt", "b/.e.jsonl"]
    assert [name for name in names if collect_text.selected(collect_text.Config(), name)] == ["a.txt", "b/c.d.txt"]
    shown = collect_text.Config(hidden=True)
    assert [name for name in names if collect_text.selected(shown, name)] == names
    assert decontaminate.set_name("mmlu/test.jsonl") == "mmlu/test"
    assert decontaminate.set_name("test.jsonl") == "test"
