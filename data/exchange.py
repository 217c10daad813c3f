"""Files that carry rows from the tasks of one phase to those of the next: one file a task, with a part a receiver.

    [parts] [end of each part] [part 0: Parquet] [part 1: Parquet] ...

A shuffle of N tasks to P parts writes N files, not N x P. A number is stored twice: as an int64, and as the same int64
XOR a constant that marks the format. A reader fetches two numbers and then its part. Parts are Parquet files with
verified page checksums, as everywhere; an empty part takes no bytes.
"""

import io
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data import shards, storage
from data.errors import UserError

MAGIC = 0x45584348414E4745
_NUMBER = struct.Struct("<qq")


def exchange_bytes(parts: Sequence[pa.Table]) -> bytes:
    """The bytes of a file with one table for each task of the next phase."""
    pieces = [shards.parquet_bytes(part) if part.num_rows else b"" for part in parts]
    begin = _NUMBER.size * (len(pieces) + 1)
    ends = begin + np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
    return b"".join([*(_NUMBER.pack(number, number ^ MAGIC) for number in [len(pieces), *ends.tolist()]), *pieces])


def split(table: pa.Table, part_of: np.ndarray, parts: int) -> list[pa.Table]:
    """The rows of each part, in their order. `part_of` is the part of each row, int [rows]."""
    order = np.argsort(part_of, kind="stable")
    ends = np.searchsorted(part_of[order], np.arange(parts), side="right")
    ordered = table.take(pa.array(order))
    return [ordered.slice(begin, end - begin) for begin, end in zip([0, *ends[:-1]], ends, strict=True)]


def gather(uris: Sequence[str], part: int, schema: pa.Schema) -> pa.Table:
    """The rows of one part from all files, in the order of the files. Raises UserError if a file is damaged."""
    with ThreadPoolExecutor(storage.read_threads(uris[0]) if uris else 1) as pool:
        tables = [table for table in pool.map(lambda uri: _read(uri, part), uris) if table is not None]
    return pa.concat_tables(tables).cast(schema) if tables else schema.empty_table()


def _read(uri: str, part: int) -> pa.Table | None:
    # two numbers, not the whole header, which grows with the number of parts
    place = _NUMBER.size * (part + 1)
    entries = storage.read_range(uri, place - _NUMBER.size, place + _NUMBER.size)
    numbers = _NUMBER.iter_unpack(entries) if len(entries) == 2 * _NUMBER.size else ()
    places = [number for number, check in numbers if number ^ MAGIC == check]
    if len(places) < 2:
        raise UserError(f"{uri} is damaged in its header; remove the run that wrote it and run that again")
    begin, end = places if part else (_NUMBER.size * (places[0] + 1), places[1])
    if begin == end:
        return None
    try:
        with pq.ParquetFile(io.BytesIO(storage.read_range(uri, begin, end)), page_checksum_verification=True) as file:
            table = file.read()
            if table.num_rows != file.metadata.num_rows:
                raise OSError(f"{table.num_rows} rows where its footer says {file.metadata.num_rows}")
            return table
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{uri} is damaged ({error}); remove the run that wrote it and run that again") from error
