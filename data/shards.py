"""Parquet files as this project writes and reads them: zstd, page checksums written and verified, fixed row groups.

`write_table` writes the same bytes for the same table (no timestamps, one thread), so the sha256 of a shard says
whether two runs agree.
"""

import hashlib
import io
from collections.abc import Callable, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from data import storage
from data.errors import UserError
from data.manifest import Shard

WRITER = 1
"""Version of the bytes that `parquet_bytes` returns for a table. It is part of every data stage's fingerprint.

Raise it if these settings change, or if a new pyarrow writes other bytes: tests/golden/test_parquet.py then fails.
Otherwise one run could have shards of two writers, and would not be a pure function of its fingerprint.
"""
DEFAULT_ROW_GROUP_ROWS = 4096
ZSTD_LEVEL = 3

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
    return Shard(name=name, rows=rows, bytes=len(data), tokens=tokens, sha256=hashlib.sha256(data).hexdigest())


def open_parquet(uri: str) -> pq.ParquetFile:
    """A Parquet file whose page checksums are verified as pages are read.

    Raises UserError if the file is not Parquet, FileNotFoundError if it is missing.
    """
    try:
        # Arrow itself reads a file on this disk, in half the time of a read through a Python file
        return pq.ParquetFile(storage.local_path(uri) or storage.open_input(uri), page_checksum_verification=True)
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:  # OSError: a footer that is not Thrift
        raise UserError(
            f"{uri} is not a Parquet file ({error}); if it was one, it is damaged: write it again"
        ) from error


def read_table(uri: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The checked rows of a file. Raises UserError if it is damaged, is not Parquet, or lacks one of `columns`."""
    with open_parquet(uri) as file:
        names = file.schema_arrow.names
        if missing := [name for name in columns or () if name not in names]:
            raise UserError(
                f"{uri} has no column {', '.join(missing)}; it has {', '.join(names)}: name a file of the right table"
            )
        try:
            # one thread: a task has one core, on which more threads take twice the time
            table = file.read(columns=list(columns) if columns is not None else None, use_threads=False)
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            raise UserError(f"{uri} is damaged ({error}); remove the run that wrote it and run that again") from error
        # Checksums cover the data of pages, but not their headers: a damaged header can silently end a column early.
        if table.num_rows != file.metadata.num_rows:
            raise UserError(
                f"{uri} is damaged ({table.num_rows} rows where its footer says {file.metadata.num_rows}); "
                "remove the run that wrote it and run that again"
            )
    return table
