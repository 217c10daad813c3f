"""Two hops give each part the rows of one hop, in the same order."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest

from pipelines.engine import shuffle
from pipelines.engine.shard_map import ShardOutput, map_shards
from pipelines.engine.stage import Context
from tests.programs.in_process import InProcess

SCHEMA = pa.schema([("n", pa.int64())])
ROWS = 40


@dataclass(frozen=True)
class ByRemainder:
    parts: int

    def __call__(self, table: pa.Table) -> np.ndarray:
        return (table["n"].to_numpy() * 7 % self.parts).astype(np.int64)


@dataclass(frozen=True)
class Spread:
    split: shuffle.Split

    def __call__(self, number: int) -> ShardOutput:
        table = pa.table([np.arange(ROWS * number, ROWS * (number + 1))], schema=SCHEMA)
        return ShardOutput(parts={"_rows": self.split.part(table)})


@pytest.mark.parametrize(
    ("files", "parts"), [(1, 1), (1, 9), (2, 2), (3, 20), (9, 9), (10, 7), (12, 30), (30, 3), (25, 101)]
)
def test_two_hops_give_what_one_gives(
    files: int, parts: int, make_context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows_by_hops = []
    for most, hops in ((1 << 16, "one"), (0, "two")):
        monkeypatch.setattr(shuffle, "MOST_READS", most)
        monkeypatch.setattr(shuffle, "FEW_PARTS", 0)
        context = make_context(session=InProcess())
        split = shuffle.plan_split(files, parts, ByRemainder(parts))
        made = map_shards(context, f"spread-{hops}", range(files), Spread(split))
        shuffled = shuffle.finish_shuffle(context, f"spread-{hops}", split, made, "_rows", SCHEMA)
        assert (len(shuffled.files) > 1) == (hops == "two" and parts > 3)
        rows_by_hops.append([shuffled.gather(part, SCHEMA)["n"].to_pylist() for part in range(parts)])
    assert rows_by_hops[0] == rows_by_hops[1]
    assert sorted(n for rows in rows_by_hops[0] for n in rows) == list(range(files * ROWS))
    for part, rows in enumerate(rows_by_hops[0]):
        assert rows == [n for n in range(files * ROWS) if n * 7 % parts == part]
