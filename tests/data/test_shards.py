import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import schema, shards, storage


def numbers(rows: int) -> pa.Table:
    return pa.table({"n": pa.array(range(rows), pa.int32()), "text": [f"text {n}" for n in range(rows)]})


def test_the_same_table_gives_the_same_bytes() -> None:
    table = numbers(1000)
    in_chunks = pa.concat_tables([table.slice(0, 300), table.slice(300)])
    assert shards.parquet_bytes(table) == shards.parquet_bytes(numbers(1000)) == shards.parquet_bytes(in_chunks)


def test_an_entry_tells_size_hash_and_counts(tmp_path: Path) -> None:
    shard = shards.write_table(str(tmp_path), "text/00000.parquet", numbers(10), tokens=7)
    written = storage.read_bytes(str(tmp_path / "text/00000.parquet"))
    assert (shard.name, shard.rows, shard.tokens) == ("text/00000.parquet", 10, 7)
    assert (shard.bytes, shard.sha256) == (len(written), hashlib.sha256(written).hexdigest())
    plain = shards.write_file(str(tmp_path), "model", b"abc")
    assert (plain.rows, plain.bytes, plain.sha256) == (0, 3, hashlib.sha256(b"abc").hexdigest())


def test_a_table_is_read_back_as_it_was_with_its_row_groups(tmp_path: Path) -> None:
    table = schema.TOKENS.empty_table()
    shards.write_table(str(tmp_path), "empty", table)
    assert shards.read_table(str(tmp_path / "empty")).schema.equals(schema.TOKENS, check_metadata=True)
    shards.write_table(str(tmp_path), "full", numbers(10), row_group_rows=4)
    assert shards.read_table(str(tmp_path / "full")).equals(numbers(10))
    with shards.open_parquet(str(tmp_path / "full")) as file:
        assert [file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)] == [4, 4, 2]
        assert file.metadata.row_group(0).column(0).compression == "ZSTD"


def test_a_flipped_bit_is_refused_or_changes_no_row(tmp_path: Path) -> None:
    """One bit of every byte. Names and types are in the footer, without a checksum: reading by column shows those."""
    table = pa.table({"text": ["alpha", "beta"]})
    sound = shards.parquet_bytes(table)
    path = tmp_path / "shard"
    refusals = []
    for byte in range(len(sound)):
        damaged = bytearray(sound)
        damaged[byte] ^= 1 << byte % 8
        path.write_bytes(damaged)
        try:
            read = shards.read_table(str(path))
        except ValueError as error:
            refusals.append(str(error))
        else:
            assert read.equals(table) or not read.schema.equals(table.schema), f"byte {byte}"
    assert all("damaged" in refusal for refusal in refusals)
    assert len(refusals) > len(sound) / 2


def test_without_our_checks_a_flipped_bit_would_pass(tmp_path: Path) -> None:
    """What the checksum is for: the same damage, read without it."""
    table = pa.table({"n": pa.array(range(5000), pa.int64())})
    sound = shards.parquet_bytes(table)
    path = tmp_path / "shard"
    silent = 0
    for byte in range(40, len(sound) - 2000, 97):
        damaged = bytearray(sound)
        damaged[byte] ^= 1
        path.write_bytes(damaged)
        try:
            silent += not pq.ParquetFile(path).read().equals(table)
        except OSError:
            continue
        with pytest.raises(ValueError, match="is damaged"):
            shards.read_table(str(path))
    assert silent


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    sound = shards.parquet_bytes(numbers(100))
    for length in (0, 3, len(sound) // 2, len(sound) - 1):
        (tmp_path / "cut").write_bytes(sound[:length])
        with pytest.raises(ValueError, match=r"is not a Parquet file .* damaged: write it again"):
            shards.open_parquet(str(tmp_path / "cut"))


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        shards.read_table(str(tmp_path / "missing"))


def test_a_table_of_another_kind_is_refused_by_its_columns(tmp_path: Path) -> None:
    shards.write_table(str(tmp_path), "numbers", numbers(3))
    assert shards.read_table(str(tmp_path / "numbers"), ["text"]).column_names == ["text"]
    with pytest.raises(ValueError, match="has no column tokens; it has n, text"):
        shards.read_table(str(tmp_path / "numbers"), ["text", "tokens"])
