"""One file holds a part for each task of the next phase."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data import exchange

SCHEMA = pa.schema([("n", pa.int64()), ("text", pa.string())])


def table(numbers: list[int]) -> pa.Table:
    return pa.table([numbers, [f"row {n}" for n in numbers]], schema=SCHEMA)


def test_each_part_holds_its_rows_in_order_over_all_files(tmp_path: Path) -> None:
    uris = []
    for number in range(3):
        rows = table([10 * number + k for k in range(10)])
        parts = exchange.split(rows, rows["n"].to_numpy() % 4 // 2 * 3, 5)
        uris.append(str(tmp_path / f"{number}"))
        Path(uris[-1]).write_bytes(exchange.exchange_bytes(parts))
    assert exchange.gather(uris, 0, SCHEMA)["n"].to_pylist() == [n for n in range(30) if n % 4 < 2]
    assert exchange.gather(uris, 3, SCHEMA)["n"].to_pylist() == [n for n in range(30) if n % 4 >= 2]
    for empty in (1, 2, 4):
        assert exchange.gather(uris, empty, SCHEMA).equals(SCHEMA.empty_table())


def test_splitting_nothing_gives_empty_parts() -> None:
    parts = exchange.split(SCHEMA.empty_table(), np.zeros(0, np.int64), 3)
    assert [part.num_rows for part in parts] == [0, 0, 0]


@pytest.mark.parametrize("damage", ["cut", "flip", "header", "other", "empty"])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    good = exchange.exchange_bytes([table(list(range(1000)))])
    middle = len(good) // 2
    bad = {
        "cut": good[:middle],
        "flip": good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :],
        "header": good[:20],
        "other": b"PAR1" * 10,
        "empty": b"",
    }
    file = tmp_path / "exchange"
    file.write_bytes(bad[damage])
    with pytest.raises(ValueError, match=r"exchange is damaged.*run that again"):
        exchange.gather([str(file)], 0, SCHEMA)
    with pytest.raises(ValueError, match="is damaged"):
        exchange.gather([str(file)], 7, SCHEMA)
