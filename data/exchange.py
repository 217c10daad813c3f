"""What one task leaves for each of the tasks of the next phase: one file, a part for each.

    [magic, parts] [end of each part, int64] [part 0: Parquet] [part 1: Parquet] ...

A shuffle of N tasks to P parts is N files, not N x P. A reader fetches the two numbers that it needs and its part.
Parts are Parquet as everywhere, with verified page checksums; an empty part takes no bytes.
"""

import io
import struct
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data import shards, storage

MAGIC = 0x45584348414E4745
_HEADER = struct.Struct("<qq")
_END = struct.Struct("<q")


def exchange_bytes(parts: Sequence[pa.Table]) -> bytes:
    """The file of `parts`, one table for each task of the next phase."""
    pieces = [shards.parquet_bytes(part) if part.num_rows else b"" for part in parts]
    begin = _HEADER.size + _END.size * len(pieces)
    ends = begin + np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
    return b"".join([_HEADER.pack(MAGIC, len(pieces)), ends.astype("<i8").tobytes(), *pieces])


def split(table: pa.Table, part_of: np.ndarray, parts: int) -> list[pa.Table]:
    """The rows of each part, in their order; `part_of` int [rows]."""
    order = np.argsort(part_of, kind="stable")
    ends = np.searchsorted(part_of[order], np.arange(parts), side="right")
    ordered = table.take(pa.array(order))
    return [ordered.slice(begin, end - begin) for begin, end in zip([0, *ends[:-1]], ends, strict=True)]


def gather(uris: Sequence[str], part: int, schema: pa.Schema) -> pa.Table:
    """The rows of one part in all files, in the order of the files. Raises ValueError where a file is damaged."""
    tables = [table for uri in uris if (table := _read(uri, part)) is not None]
    return pa.concat_tables(tables).cast(schema) if tables else schema.empty_table()


def _read(uri: str, part: int) -> pa.Table | None:
    first = part == 0
    place = _HEADER.size + _END.size * part
    head = storage.read_range(uri, 0, place + _END.size)
    magic, parts = _HEADER.unpack_from(head) if len(head) >= _HEADER.size else (0, 0)
    if magic != MAGIC or part >= parts or len(head) < place + _END.size:
        raise ValueError(f"{uri} is damaged; remove the run that wrote it and run that again")
    begin = _HEADER.size + _END.size * parts if first else _END.unpack_from(head, place - _END.size)[0]
    (end,) = _END.unpack_from(head, place)
    if begin == end:
        return None
    try:
        with pq.ParquetFile(io.BytesIO(storage.read_range(uri, begin, end)), page_checksum_verification=True) as file:
            table = file.read()
            if table.num_rows != file.metadata.num_rows:
                raise OSError(f"{table.num_rows} rows where its footer says {file.metadata.num_rows}")
            return table
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{uri} is damaged ({error}); remove the run that wrote it and run that again") from error
