"""The Parquet writer gives the stored bytes for a small table of each schema; other bytes need another WRITER.

`python -m tests.golden.test_parquet > tests/golden/parquet.json` remakes the file.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from data import schema, shards
from data.logits import PLANES

STORED = Path(__file__).parent / "parquet.json"
ROWS, ROW_GROUP_ROWS = 100, 64
SCHEMAS = {name: value for name, value in vars(schema).items() if isinstance(value, pa.Schema)}


def value_of(kind: pa.DataType, row: int) -> Any:
    """A value that differs from row to row, repeats now and then, and is the same in every version of everything."""
    number = row * row % 37
    if pa.types.is_list(kind):
        return [value_of(kind.value_type, row + place) for place in range(number % 4)]
    if pa.types.is_struct(kind):
        return {field.name: value_of(field.type, row + place) for place, field in enumerate(kind)}
    if pa.types.is_boolean(kind):
        return number % 2 == 0
    if pa.types.is_integer(kind):
        return number
    if pa.types.is_floating(kind):
        return number / 8
    return f"value {number} \u00e9" if pa.types.is_string(kind) else bytes([number] * number)


def sha256_of(name: str) -> str:
    rows = [{field.name: value_of(field.type, row) for field in SCHEMAS[name]} for row in range(ROWS)]
    table = pa.Table.from_pylist(rows, SCHEMAS[name])
    opaque = (*PLANES, "ranking") if name == "LOGITS" else ()
    return hashlib.sha256(shards.parquet_bytes(table, ROW_GROUP_ROWS, opaque)).hexdigest()


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_table_has_the_bytes_that_were_stored(name: str) -> None:
    stored = json.loads(STORED.read_text())
    assert name in stored["sha256"], "a new schema: remake tests/golden/parquet.json as the docstring of its test says"
    assert sha256_of(name) == stored["sha256"][name], (
        f"the Parquet writer (pyarrow {pa.__version__}, stored by {stored['pyarrow']}) gives other bytes for {name}: "
        "raise WRITER in data/shards.py, so that data stages run again instead of mixing two writers in one run, and "
        "remake tests/golden/parquet.json as the docstring of its test says"
    )


def test_the_stored_bytes_are_those_of_this_writer() -> None:
    assert json.loads(STORED.read_text())["writer"] == shards.WRITER, (
        "remake tests/golden/parquet.json: WRITER was raised"
    )


if __name__ == "__main__":
    sha256 = {name: sha256_of(name) for name in SCHEMAS}
    print(json.dumps({"pyarrow": pa.__version__, "sha256": sha256, "writer": shards.WRITER}, indent=1))
