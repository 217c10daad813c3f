"""Raw files -> documents and rejects: JSON, JSON lines, Parquet, web archives, HTML, and any other file as one text.

Each file is read once, one record at a time, and records leave in batches, so memory does not grow with the files. A
record that cannot be read becomes a reject with a reason. A file that is damaged, or is not of the kind that its name
says, is an error, because nothing in it can be trusted.
"""

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from data import compressed, encoding, json_file, schema, shards, storage, web
from data.documents import json_text, rows_of, take_field
from data.errors import UserError

JSONL_SUFFIXES = (".jsonl", ".ndjson", ".json")
_CALLED_LINES = re.compile(r"\.(?:jsonl|ndjson)\.[^/]*$")
HTML_SUFFIXES = (".html", ".htm", ".xhtml")
KEPT_BYTES = 4096
"""largest number of bytes kept of a rejected record"""
ROW_BYTES = 400
"""approximate size of a row beside its text (ids, hashes), in bytes"""
FIRST_LINE_BYTES = 16 << 20
"""size of the longest first line that is looked at to tell JSON lines from a text, in bytes"""
PARQUET_ROWS = 64
"""rows that are read at a time: one huge value, repeated, is small in the file but not in memory"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to read files."""

    text_field: str = "text"
    """field (JSONL; a.b for a field inside another) or column (Parquet) of the text"""
    metadata_fields: tuple[str, ...] = ()
    """fields or columns that are kept as metadata; empty: all fields of JSONL, no columns of Parquet"""
    max_document_bytes: int = 128 << 20
    """size of the longest record that is read, in bytes"""
    main_content: bool = True
    """whether to leave out menus and other boilerplate of web pages"""
    fix_encoding: bool = False
    """whether to repair wrongly decoded text (mojibake, by ftfy)"""
    skip_bad_files: bool = False
    """whether a bad file becomes one reject, instead of an error; every file is then read twice"""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Some of the documents and rejects of a source."""

    text: pa.Table
    rejects: pa.Table
    fixed: int
    """number of texts that ftfy changed"""
    broken: int
    """number of U+FFFD in the texts of web pages: bytes that are no character of the page's encoding"""
    passed_over: int
    """number of records of web archives without a page (requests, metadata)"""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One document as it was read."""

    offset: int
    """number of the record in the file, from 0"""
    text: str
    metadata: dict[str, Any]
    broken: int = 0
    """number of U+FFFD that stand for broken bytes"""


@dataclass(frozen=True, kw_only=True)
class Reject:
    """A record that is not a document."""

    offset: int
    reason: str
    detail: str
    content: bytes


def collect(source: str, files: Sequence[tuple[str, str]], options: Options, batch_bytes: int) -> Iterator[Batch]:
    """Documents and rejects of `files` (name, URI), in order, in batches of about `batch_bytes`. There is at least one.

    Raises UserError, naming the file, if a file is damaged or is not of the kind that its name says.
    """
    rows, size = _Rows(source), 0
    for name, uri in files:
        if options.skip_bad_files and (bad := _what_is_wrong(name, uri, options)):
            rows.reject(name, Reject(offset=0, reason="bad_file", detail=bad, content=b""))
            continue
        for record in read_records(name, uri, options):
            if record is None:
                rows.passed_over += 1
            elif isinstance(record, Reject):
                size += rows.reject(name, record)
            else:
                size += rows.document(name, record, options.fix_encoding)
                rows.broken += record.broken
            if size >= batch_bytes:
                yield rows.batch()
                rows, size = _Rows(source), 0
    yield rows.batch()


def read_records(name: str, uri: str, options: Options) -> Iterator[Record | Reject | None]:
    """The records of one file; None for a record that is not a document.

    Raises UserError for a bad file, and, before it says so, for a pinned file that has changed.
    """
    try:
        yield from _records(name, uri, options)
    except UserError:
        storage.check_pinned(uri)
        raise


def _records(name: str, uri: str, options: Options) -> Iterator[Record | Reject | None]:
    kind = name.lower()
    for suffix in compressed.SUFFIXES:
        kind = kind.removesuffix(suffix)
    if kind.endswith(".json") and (documents := _documents(name, uri, options)) is not None:
        for offset, line in enumerate(documents):
            yield _parse_line(line, offset, options)
    elif kind.endswith(JSONL_SUFFIXES):
        yield from _read_jsonl(name, uri, options)
    elif name.lower().endswith(".parquet"):
        yield from _read_parquet(name, uri, options)
    elif name.lower().endswith(web.SUFFIXES):
        yield from _read_archive(name, uri, options)
    elif _looks_like_json_lines(name, uri):
        yield from _read_jsonl(name, uri, options)
    else:
        whole = _read_whole(name, uri, options, kind.endswith(HTML_SUFFIXES))
        # a checksum beside x.jsonl is called x.jsonl.sha256
        yield _not_lines(whole) if isinstance(whole, Record) and _CALLED_LINES.search(kind) else whole


def _looks_like_json_lines(name: str, uri: str) -> bool:
    """Whether the first line of the file that is not blank is a JSON object."""
    if not uri.lower().endswith(compressed.SUFFIXES):
        with storage.open_input(uri) as file:
            beginning = file.read(64).removeprefix(codecs.BOM_UTF8).lstrip()
            if beginning and not beginning.startswith(b"{"):
                return False
    return json_file.begins_with_object(line for line, _ in _lines(name, uri, FIRST_LINE_BYTES))


def _documents(name: str, uri: str, options: Options) -> list[bytes] | None:
    """The documents of a file that is one JSON value, not longer than a document may be. None for other files."""
    if _looks_like_json_lines(name, uri):
        lines = (line for line, _ in _lines(name, uri, 1) if line.strip())
        if next(lines, None) is not None and next(lines, None) is not None:
            return None
    with storage.open_input(uri) as raw:
        try:
            content = compressed.open_stream(name, raw).read(options.max_document_bytes + 1)
        except compressed.BROKEN:
            return None
    return None if len(content) > options.max_document_bytes else json_file.documents(content, options.text_field)


def _what_is_wrong(name: str, uri: str, options: Options) -> str:
    try:
        for _ in read_records(name, uri, options):
            pass
    except UserError as error:
        storage.check_pinned(uri)  # a file that has changed is not one more bad file
        return str(error)
    return ""


class _Rows:
    """Columns of documents and rejects, for the next batch."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.texts: dict[str, list[Any]] = {name: [] for name in schema.TEXT.names}
        self.rejects: dict[str, list[Any]] = {name: [] for name in schema.REJECTS.names}
        self.fixed = self.broken = self.passed_over = 0

    def document(self, name: str, record: Record, fix_encoding: bool) -> int:
        """Adds a document. Returns its approximate size in memory, in bytes."""
        text = record.text
        if fix_encoding:
            text = encoding.repaired(text)
            self.fixed += text != record.text
        values: tuple[Any, ...] = (
            schema.document_id(self.source, name, record.offset),
            schema.content_hash(text),
            text,
            self.source,
            json_text({"name": name, "record": record.metadata}),
            [],
        )
        for column, value in zip(self.texts.values(), values, strict=True):
            column.append(value)
        return len(text.encode()) + len(values[4]) + ROW_BYTES

    def reject(self, name: str, reject: Reject) -> int:
        """Adds a reject. Returns its approximate size in memory, in bytes."""
        id = schema.document_id(self.source, name, reject.offset)
        values = (id, self.source, name, reject.reason, reject.detail, reject.content[:KEPT_BYTES])
        for column, value in zip(self.rejects.values(), values, strict=True):
            column.append(value)
        return len(values[5]) + len(reject.detail) + ROW_BYTES

    def batch(self) -> Batch:
        return Batch(
            text=pa.table(self.texts, schema=schema.TEXT),
            rejects=pa.table(self.rejects, schema=schema.REJECTS),
            fixed=self.fixed,
            broken=self.broken,
            passed_over=self.passed_over,
        )


def _read_whole(name: str, uri: str, options: Options, html: bool) -> Record | Reject:
    with storage.open_pinned(uri) as raw:
        try:
            data = compressed.open_stream(name, raw).read(options.max_document_bytes + 1)
        except compressed.BROKEN as error:
            raise UserError(
                f"{name} is not compressed as its name says, or breaks ({error}); fetch {uri} again"
            ) from error
    if len(data) > options.max_document_bytes:
        return _too_long(0, data, options.max_document_bytes)
    if html:
        page = web.text_of(data, "", options.main_content)
        if page.reason:
            return Reject(offset=0, reason=page.reason, detail=page.detail, content=data)
        return Record(offset=0, text=page.text, metadata=page.metadata, broken=page.broken)
    text, problem = _decode(data.removeprefix(codecs.BOM_UTF8))
    if problem:
        return Reject(offset=0, reason="invalid_utf8", detail=problem, content=data)
    if encoding.too_broken(text, "\0"):
        detail = f"{text.count(chr(0)):,} of {len(text):,} characters are null: it is binary, or UTF-16"
        return Reject(offset=0, reason="not_text", detail=detail, content=data)
    return Record(offset=0, text=text, metadata={})


def _not_lines(whole: Record) -> Reject:
    content = whole.text[:KEPT_BYTES].encode()
    return Reject(offset=0, reason="invalid_json", detail="called JSON lines; line 1: no object", content=content)


def _too_long(offset: int, start: bytes, most_bytes: int) -> Reject:
    detail = f"more than {most_bytes:,} bytes; --max-document-bytes allows more"
    return Reject(offset=offset, reason="too_long", detail=detail, content=start[:KEPT_BYTES])


def _read_jsonl(name: str, uri: str, options: Options) -> Iterator[Record | Reject]:
    """One JSON object a line. Blank lines are skipped."""
    with storage.open_input(uri) as file:
        compressed.refuse_other_kind(name, file.read(8))
    objects = 0
    bad: list[Reject] = []
    for offset, (line, length) in enumerate(_lines(name, uri, options.max_document_bytes)):
        if length > options.max_document_bytes:
            yield _too_long(offset, line, options.max_document_bytes)
            continue
        if not line.removeprefix(codecs.BOM_UTF8).strip():
            continue
        outcome = _parse_line(line, offset, options)
        if isinstance(outcome, Reject) and outcome.reason == "invalid_json" and not objects:
            # held back until a line is JSON: a file without one is not JSONL
            bad.append(replace(outcome, content=outcome.content[:KEPT_BYTES]))
            if len(bad) == 1000:
                break
            continue
        objects += 1
        yield from bad
        bad = []
        yield outcome
    if bad and not objects:
        raise UserError(
            f"{name} is not JSON lines: none of its first {len(bad)} lines is a JSON object ({bad[0].detail}); "
            "rename it to .txt to take it as one document, or leave it out with --exclude"
        )


def _lines(name: str, uri: str, most_bytes: int) -> Iterator[tuple[bytes, int]]:
    with storage.open_pinned(uri) as raw:
        try:
            yield from compressed.bounded_lines(compressed.open_stream(name, raw), most_bytes)
        except compressed.BROKEN as error:
            raise UserError(
                f"{name} ends or breaks inside its compressed stream ({error}); fetch {uri} again"
            ) from error


def _read_archive(name: str, uri: str, options: Options) -> Iterator[Record | Reject | None]:
    with storage.open_pinned(uri) as raw:
        pages = web.read_pages(name, raw, options.max_document_bytes, options.main_content)
        try:
            for offset, page in enumerate(pages):
                if page is None:
                    yield None
                elif page.reason:
                    detail = f"{page.metadata.get('url', '')}: {page.detail}"
                    yield Reject(offset=offset, reason=page.reason, detail=detail, content=page.content)
                else:
                    yield Record(offset=offset, text=page.text, metadata=page.metadata, broken=page.broken)
        except (OSError, EOFError) as error:
            raise UserError(f"{name} is no web archive, or breaks ({error}); fetch {uri} again") from error


def _parse_line(line: bytes, offset: int, options: Options) -> Record | Reject:
    decoded, problem = _decode(line.removeprefix(codecs.BOM_UTF8))  # of each of the files that were joined to one
    if problem:
        return Reject(offset=offset, reason="invalid_utf8", detail=problem, content=line)
    try:
        record = json.loads(decoded)
    except (ValueError, RecursionError) as error:  # ValueError: also for an integer of thousands of digits
        return Reject(offset=offset, reason="invalid_json", detail=f"line {offset + 1}: {error}", content=line)
    if not isinstance(record, dict):
        return Reject(offset=offset, reason="invalid_json", detail=f"line {offset + 1}: no object", content=line)
    text_field = options.text_field
    text = take_field(record, text_field)
    if not isinstance(text, str):
        fields = ", ".join(record).encode(errors="backslashreplace").decode() or "none"
        detail = f"line {offset + 1}: field {text_field!r} is {type(text).__name__}; there are {fields}"
        return Reject(offset=offset, reason="no_text", detail=detail, content=line)
    try:
        text.encode()
    except UnicodeEncodeError as error:  # "\ud800" is valid JSON, but not valid text
        return Reject(offset=offset, reason="invalid_utf8", detail=str(error), content=line)
    kept = {name: record[name] for name in options.metadata_fields if name in record}
    return Record(offset=offset, text=text, metadata=kept if options.metadata_fields else record)


def _read_parquet(name: str, uri: str, options: Options) -> Iterator[Record | Reject]:
    file = shards.open_parquet(uri)
    names, text_field = file.schema_arrow.names, options.text_field
    for wanted in (text_field, *options.metadata_fields):
        if wanted not in names:
            raise UserError(
                f"{name} has no column {wanted!r}; it has {', '.join(names)}: set --text-field or --metadata-fields"
            )
        if names.count(wanted) > 1:
            raise UserError(f"{name} has {names.count(wanted)} columns {wanted!r}; write it with names that differ")
    kind = file.schema_arrow.field(text_field).type
    dictionary = pa.types.is_dictionary(kind)
    kind = kind.value_type if dictionary else kind
    bytes_kind = {
        pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()
    }.get(kind, kind)  # fmt: skip
    if bytes_kind not in (pa.binary(), pa.large_binary(), pa.binary_view()):
        raise UserError(
            f"{name}: column {text_field!r} holds {kind}, not strings: set --text-field to a column of strings"
        )
    offset = 0
    try:
        for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=[text_field, *options.metadata_fields]):
            # as bytes: the writer may not have checked that its strings are UTF-8
            column = batch.column(text_field)
            column = column.dictionary_decode() if dictionary else column
            metadata = rows_of(batch, options.metadata_fields)
            for place, value in enumerate(column.cast(bytes_kind).to_pylist()):
                yield _parse_value(value, offset, metadata[place] if metadata else {}, options.max_document_bytes)
                offset += 1
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{name} is damaged ({error}); fetch {uri} again, or leave it out with --exclude") from error
    if offset != file.metadata.num_rows:
        raise UserError(
            f"{name} is damaged ({offset} rows where its footer says {file.metadata.num_rows}); fetch {uri} again, "
            "or leave it out with --exclude"
        )
    storage.check_pinned(uri)  # columns are read here and there, so nothing was hashed on the way


def _parse_value(value: bytes | None, offset: int, metadata: dict[str, Any], most_bytes: int) -> Record | Reject:
    if value is None:
        return Reject(offset=offset, reason="no_text", detail=f"row {offset}: null", content=b"")
    if len(value) > most_bytes:
        return _too_long(offset, value, most_bytes)
    text, problem = _decode(value)
    if problem:
        return Reject(offset=offset, reason="invalid_utf8", detail=problem, content=value)
    return Record(offset=offset, text=text, metadata=metadata)


def _decode(data: bytes) -> tuple[str, str]:
    """(text, "") or ("", the problem)."""
    try:
        return data.decode("utf-8"), ""
    except UnicodeDecodeError as error:
        return "", str(error)
