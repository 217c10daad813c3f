"""Raw files -> documents and rejects: JSONL (plain, .gz, .zst), Parquet, and any other file as one document of text.

One pass over each file, a record at a time. What cannot be read as a record is a reject with a reason; a file that is
not what its name says is an error, because then nothing in it can be trusted.
"""

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import zstandard

from data import schema, shards, storage

JSONL_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
KEPT_BYTES = 4096
"""of a rejected record that is no text, so many are kept"""
MAGIC = {b"PAR1": "Parquet", b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip", b"%PDF": "PDF"}


@dataclass(frozen=True, kw_only=True)
class Record:
    """One document as found."""

    offset: int
    """number of the record in its file, from 0"""
    text: str
    metadata: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Reject:
    """One place where a document should have been."""

    offset: int
    reason: str
    detail: str
    content: bytes


def read_records(name: str, uri: str, text_field: str) -> Iterator[Record | Reject]:
    """The records of one file. Raises ValueError where the file is not of the kind its name says."""
    if name.endswith(JSONL_SUFFIXES):
        yield from _read_jsonl(name, uri, text_field)
    elif name.endswith(".parquet"):
        yield from _read_parquet(name, uri, text_field)
    else:
        yield _read_whole(name, uri)


def collect_file(source: str, name: str, uri: str, text_field: str) -> tuple[pa.Table, pa.Table]:
    """(TEXT, REJECTS) of one file."""
    texts: list[dict[str, Any]] = []
    rejects: list[dict[str, Any]] = []
    for record in read_records(name, uri, text_field):
        document = schema.document_id(source, name, record.offset)
        if isinstance(record, Reject):
            rejects.append(
                {
                    "id": document,
                    "source": source,
                    "name": name,
                    "reason": record.reason,
                    "detail": record.detail,
                    "content": record.content[:KEPT_BYTES],
                }
            )
            continue
        texts.append(
            {
                "id": document,
                "content_hash": schema.content_hash(record.text),
                "text": record.text,
                "source": source,
                "metadata": _metadata_json({"name": name, "record": record.metadata}),
                "masked_spans": [],
            }
        )
    return pa.Table.from_pylist(texts, schema.TEXT), pa.Table.from_pylist(rejects, schema.REJECTS)


def _metadata_json(metadata: dict[str, Any]) -> str:
    text = json.dumps(metadata, sort_keys=True, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate, valid in JSON as an escape and nowhere else
        return json.dumps(metadata, sort_keys=True)
    return text


def _read_whole(name: str, uri: str) -> Record | Reject:
    data = storage.read_bytes(uri)
    text, problem = _decode(data)
    if problem:
        return Reject(offset=0, reason="invalid_utf8", detail=problem, content=data)
    return Record(offset=0, text=text, metadata={})


def _read_jsonl(name: str, uri: str, text_field: str) -> Iterator[Record | Reject]:
    """One JSON object a line; blank lines are no records."""
    _refuse_magic(name, uri, allowed={".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd"}.get(name[name.rfind(".") :]))
    objects = 0
    bad: list[Reject] = []
    with storage.open_input(uri) as raw:
        for offset, line in enumerate(_lines(name, uri, raw)):
            if not line.strip():
                continue
            outcome = _parse_line(line, offset, text_field)
            if isinstance(outcome, Reject) and outcome.reason == "invalid_json" and not objects:
                bad.append(outcome)  # held back until a line is JSON: a file with none is no JSONL
                if len(bad) == 1000:
                    break
                continue
            objects += 1
            yield from bad
            bad = []
            yield outcome
    if bad and not objects:
        raise ValueError(
            f"{name} is not JSON lines: none of its first {len(bad)} lines is a JSON object ({bad[0].detail}); "
            "rename it to .txt to take it as one document, or leave it out with --exclude"
        )


def _lines(name: str, uri: str, raw: BinaryIO) -> Iterator[bytes]:
    suffix = name[name.rfind(".") :]
    if suffix not in (".gz", ".zst"):
        yield from raw
        return
    try:
        # gzip reads file after file where several were concatenated, and so do we for zstd
        stream = gzip.GzipFile(fileobj=raw) if suffix == ".gz" else io.BufferedReader(_ZstdStream(raw))
        with stream as lines:
            yield from lines
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise ValueError(f"{name} ends or breaks inside its compressed stream ({error}); fetch {uri} again") from error


class _ZstdStream(io.RawIOBase):
    """The content of all frames of a zstd file; EOFError where one is cut (zstandard's own reader ends quietly)."""

    def __init__(self, raw: BinaryIO) -> None:
        self.raw = raw
        self.frame: Any = None
        self.compressed = b""
        self.content = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.content:
            self.compressed = self.compressed or self.raw.read(1 << 16)
            if not self.compressed:
                if self.frame is not None:
                    raise EOFError("the last zstd frame is not complete")
                return 0
            self.frame = self.frame or zstandard.ZstdDecompressor().decompressobj()
            self.content = memoryview(self.frame.decompress(self.compressed))
            self.compressed = b""
            if self.frame.eof:
                self.compressed, self.frame = self.frame.unused_data, None
        count = min(len(buffer), len(self.content))
        buffer[:count], self.content = self.content[:count], self.content[count:]
        return count


def _parse_line(line: bytes, offset: int, text_field: str) -> Record | Reject:
    decoded, problem = _decode(line.removeprefix(codecs.BOM_UTF8) if offset == 0 else line)
    if problem:
        return Reject(offset=offset, reason="invalid_utf8", detail=problem, content=line)
    try:
        record = json.loads(decoded)
    except (ValueError, RecursionError) as error:  # ValueError: also for an integer of thousands of digits
        return Reject(offset=offset, reason="invalid_json", detail=f"line {offset + 1}: {error}", content=line)
    if not isinstance(record, dict):
        return Reject(offset=offset, reason="invalid_json", detail=f"line {offset + 1}: no object", content=line)
    text = record.pop(text_field, None)
    if not isinstance(text, str):
        fields = ", ".join(record).encode(errors="backslashreplace").decode() or "none"
        detail = f"line {offset + 1}: field {text_field!r} is {type(text).__name__}; there are {fields}"
        return Reject(offset=offset, reason="no_text", detail=detail, content=line)
    try:
        text.encode()
    except UnicodeEncodeError as error:  # "\ud800" is valid JSON and no valid text
        return Reject(offset=offset, reason="invalid_utf8", detail=str(error), content=line)
    return Record(offset=offset, text=text, metadata=record)


def _read_parquet(name: str, uri: str, text_field: str) -> Iterator[Record | Reject]:
    file = shards.open_parquet(uri)
    if text_field not in file.schema_arrow.names:
        raise ValueError(
            f"{name} has no column {text_field!r}; it has {', '.join(file.schema_arrow.names)}: set --text-field"
        )
    kind = file.schema_arrow.field(text_field).type
    dictionary = pa.types.is_dictionary(kind)
    kind = kind.value_type if dictionary else kind
    bytes_kind = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}.get(kind, kind)
    if bytes_kind not in (pa.binary(), pa.large_binary()):
        raise ValueError(
            f"{name}: column {text_field!r} holds {kind}, not strings: set --text-field to a column of strings"
        )
    offset = 0
    try:
        for batch in file.iter_batches(batch_size=1024, columns=[text_field]):
            # as bytes: a writer need not have checked that its strings are UTF-8
            column = batch.column(text_field)
            column = column.dictionary_decode() if dictionary else column
            for value in column.cast(bytes_kind).to_pylist():
                yield _parse_value(value, offset)
                offset += 1
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{name} is damaged ({error}); fetch {uri} again, or leave it out with --exclude") from error


def _parse_value(value: bytes | None, offset: int) -> Record | Reject:
    if value is None:
        return Reject(offset=offset, reason="no_text", detail=f"row {offset}: null", content=b"")
    text, problem = _decode(value)
    if problem:
        return Reject(offset=offset, reason="invalid_utf8", detail=problem, content=value)
    return Record(offset=offset, text=text, metadata={})


def _decode(data: bytes) -> tuple[str, str]:
    """(text, "") or ("", what is wrong)."""
    try:
        return data.decode("utf-8"), ""
    except UnicodeDecodeError as error:
        return "", str(error)


def _refuse_magic(name: str, uri: str, allowed: bytes | None) -> None:
    with storage.open_input(uri) as file:
        head = file.read(8)
    for magic, kind in MAGIC.items():
        if head.startswith(magic) and magic != allowed:
            raise ValueError(
                f"{name} is named JSON lines and is a {kind} file; give it its right name, or leave it out with "
                f"--exclude"
            )
    if allowed is not None and head and not head.startswith(allowed):
        raise ValueError(
            f"{name} is not compressed as its name says; give it its right name, or leave it out with --exclude"
        )
