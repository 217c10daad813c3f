"""Parquet files as this project writes and reads them: zstd, page checksums written and verified, fixed row groups.

`write_table` writes the same bytes for the same table (no timestamps, one thread), so the sha256 of a shard says
whether two runs agree.
"""

import hashlib
import io
from collections.abc import Callable, Sequence

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from data import storage
from data.errors import UserError
from data.manifest import ListedUri, Shard

WRITER = 1
"""Version of the bytes that `parquet_bytes` returns for a table. It is part of every data stage's fingerprint.

Raise it if these settings change, or if a new pyarrow writes other bytes: tests/golden/test_parquet.py then fails.
Otherwise one run could have shards of two writers, and would not be a pure function of its fingerprint.
"""
DEFAULT_ROW_GROUP_ROWS = 4096
ZSTD_LEVEL = 3
MAGIC = b"PAR1"
TAIL_BYTES = 1 << 16
"""bytes at the end of a file that are read at once for its footer"""

Write = Callable[[str, bytes], None]
"""writes bytes to a URI, as `storage.write_bytes` does"""


def parquet_bytes(
    table: pa.Table, row_group_rows: int = DEFAULT_ROW_GROUP_ROWS, opaque_columns: Sequence[str] = ()
) -> bytes:
    """The bytes of a Parquet file with the table.

    `opaque_columns` hold bytes that differ from row to row, so they get no dictionary and no statistics.
    """
    plain = [name for name in table.schema.names if name not in opaque_columns]
    buffer = io.BytesIO()
    pq.write_table(
        table,
        buffer,
        row_group_size=row_group_rows,
        compression="zstd",
        compression_level=ZSTD_LEVEL,
        use_dictionary=plain if opaque_columns else not _holds_ids(table.schema),
        write_statistics=plain if opaque_columns else True,
        write_page_checksum=True,  # off by default; open_parquet verifies it
    )
    return buffer.getvalue()


def _holds_ids(schema: pa.Schema) -> bool:
    """Whether rows hold token ids, which are written without dictionaries.

    A dictionary of token ids becomes full and is given up. zstd alone takes two thirds of the time, and the file is a
    sixth (TOKENS) to a quarter (SEQUENCES) smaller.
    """
    return any(pa.types.is_list(kind) and pa.types.is_int32(kind.value_type) for kind in schema.types)


def write_table(
    directory: str,
    name: str,
    table: pa.Table,
    *,
    row_group_rows: int = DEFAULT_ROW_GROUP_ROWS,
    opaque_columns: Sequence[str] = (),
    tokens: int = 0,
    write: Write = storage.write_bytes,
) -> Shard:
    """Writes `table` to `directory/name`. Returns the entry for the manifest."""
    data = parquet_bytes(table, row_group_rows, opaque_columns)
    return write_file(directory, name, data, rows=table.num_rows, tokens=tokens, write=write)


def write_file(
    directory: str, name: str, data: bytes, *, rows: int = 0, tokens: int = 0, write: Write = storage.write_bytes
) -> Shard:
    """Writes `data` to `directory/name`. Returns the entry for the manifest."""
    write(storage.join(directory, name), data)
    return Shard(
        name=name,
        rows=rows,
        bytes=len(data),
        tokens=tokens,
        sha256=hashlib.sha256(data).hexdigest(),
        footer=_digest(_footer(data)) if data.endswith(MAGIC) else None,
    )


def open_parquet(uri: str) -> pq.ParquetFile:
    """A Parquet file whose page checksums are verified as pages are read.

    Raises UserError if the file is not Parquet, or not the file that its manifest lists; FileNotFoundError if it is
    missing.
    """
    return _parquet_file(uri, _listed_metadata(uri) if isinstance(uri, ListedUri) else None)


def read_table(uri: str, columns: Sequence[str] | pa.Schema | None = None) -> pa.Table:
    """The checked rows of a file, with some columns (by name, or by a schema whose types they must have) or all.

    Raises UserError if the file is damaged, is not Parquet, lacks one of `columns` or has it with another type, or is
    not the file that its manifest lists.
    """
    names = columns.names if isinstance(columns, pa.Schema) else columns
    with _opened(uri, names) as file:
        check_columns(uri, file, names if names is not None else (), columns)
        try:
            # one thread: a task has one core, on which more threads take twice the time
            table = file.read(columns=list(names) if names is not None else None, use_threads=False)
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            raise UserError(f"{uri} is damaged ({error}); remove the run that wrote it and run that again") from error
        # Checksums cover the data of pages, but not their headers: a damaged header can silently end a column early.
        if table.num_rows != file.metadata.num_rows:
            raise UserError(
                f"{uri} is damaged ({table.num_rows} rows where its footer says {file.metadata.num_rows}); "
                "remove the run that wrote it and run that again"
            )
    return table


def check_columns(
    uri: str, file: pq.ParquetFile, names: Sequence[str], columns: Sequence[str] | pa.Schema | None = None
) -> None:
    """Raises UserError if the file lacks one of the columns, has it twice, or, for a schema, with another type."""
    there = file.schema_arrow
    if missing := [name for name in names if name not in there.names]:
        raise UserError(
            f"{uri} has no column {', '.join(missing)}; it has {', '.join(there.names)}: name a file of the right table"
        )
    if twice := [name for name in names if there.names.count(name) > 1]:
        raise UserError(f"{uri} has {there.names.count(twice[0])} columns {twice[0]!r}; name a file of the right table")
    for field in columns if isinstance(columns, pa.Schema) else ():
        if (actual := there.field(field.name).type) != field.type:
            raise UserError(
                f"{uri} has the column {field.name} with values of {actual}, where {field.type} is right: it is "
                "damaged, or another table; remove the run that wrote it and run that again"
            )


def _opened(uri: str, names: Sequence[str] | None) -> pq.ParquetFile:
    """The file; if it is listed, and is read whole or has no digest of its footer, its bytes, whose sha256 fits."""
    if not isinstance(uri, ListedUri):
        return open_parquet(uri)
    metadata = _listed_metadata(uri)
    whole = names is None or set(names) == set(metadata.schema.to_arrow_schema().names)
    if not whole and uri.shard.footer is not None:
        return _parquet_file(uri, metadata)
    data = pa.BufferReader(storage.read_bytes(uri))
    return pq.ParquetFile(data, metadata=metadata, page_checksum_verification=True)


def _parquet_file(uri: str, metadata: pq.FileMetaData | None) -> pq.ParquetFile:
    try:
        # Arrow itself reads a file on this disk, in half the time of a read through a Python file
        source = storage.local_path(uri) or storage.open_input(uri)
        return pq.ParquetFile(source, metadata=metadata, page_checksum_verification=True)
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:  # OSError: a footer that is not Thrift
        raise UserError(
            f"{uri} is not a Parquet file ({error}); if it was one, it is damaged: write it again"
        ) from error


def _listed_metadata(uri: ListedUri) -> pq.FileMetaData:
    """The metadata of a listed file, from its end. Raises UserError if size, footer or rows differ from the entry."""
    shard = uri.shard
    start = max(0, shard.bytes - TAIL_BYTES)
    try:
        tail = storage.read_range(str(uri), start, shard.bytes + 1) if shard.bytes else b""
    except FileNotFoundError as error:
        raise uri.refused("it is missing") from error
    except Exception as error:
        if getattr(error, "code", None) != 416:  # gs:// has no byte there
            raise
        tail = b""
    if len(tail) != shard.bytes - start or len(tail) < 12:
        raise uri.refused(f"its size is not {shard.bytes:,} bytes")
    if (length := _footer_bytes(tail)) > len(tail) and length <= shard.bytes:
        tail = storage.read_range(str(uri), shard.bytes - length, shard.bytes)
    footer = _footer(tail)
    if shard.footer is not None and (digest := _digest(footer)) != shard.footer:
        raise uri.refused(f"its footer has the digest {digest}, not {shard.footer}")
    try:
        metadata = pq.read_metadata(pa.BufferReader(MAGIC + footer))
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise uri.refused(f"it has no footer of Parquet: {error}") from error
    if metadata.num_rows != shard.rows:
        raise uri.refused(f"it has {metadata.num_rows:,} rows, not {shard.rows:,}")
    return metadata


def _footer_bytes(data: bytes) -> int:
    """The size of the footer of a file that ends with `data`, with its length and magic."""
    return int.from_bytes(data[-8:-4], "little") + 8


def _footer(data: bytes) -> bytes:
    return data[-_footer_bytes(data) :]


def _digest(footer: bytes) -> str:
    return xxhash.xxh3_64_hexdigest(footer)
