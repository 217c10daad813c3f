"""These start Ray (once for the session). Work is defined inside the tests, so it travels to the workers by value."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import data.errors
import model.errors
import training.errors
from data import shards, storage
from data.manifest import Manifest
from pipelines.engine.clean_up import clean_up
from pipelines.engine.errors import FailedError, UserError, exit_code
from pipelines.engine.progress import advance
from pipelines.engine.shard_map import (
    PHASES,
    Part,
    Receipt,
    ShardOutput,
    dataset_of,
    map_shards,
    total_dropped,
)
from pipelines.engine.stage import Context

NOTHING_LISTED = Manifest(stage="stage", version=1, fingerprint="0" * 16, config={}, inputs={}, datasets={})

MakeContext = Callable[..., Context]
pytestmark = pytest.mark.slow


def doubled(journal: Path) -> Callable[[int], ShardOutput]:
    """Work that makes a table and a file of each number, and writes a line to the journal each time it is called."""

    def work(number: int) -> ShardOutput:
        with open(journal, "a") as file:
            file.write(f"{number}\n")
        table = pa.table({"n": [number, 2 * number]})
        odd = {"odd": Part(table=table.slice(1))} if number % 2 else {}
        return ShardOutput(
            parts={
                "rows": Part(table=table, tokens=number),
                "names": Part(data=b"%d" % number, name=f"n{number}"),
                **odd,
            },
            dropped={"even": 1} if number % 2 == 0 else {},
            facts={"number": number},
        )

    return work


def files(directory: Path) -> dict[str, bytes]:
    """What is there, but for what an attempt notes of itself (`_phases`, for `status`)."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and PHASES not in path.parts
    }


def calls(journal: Path) -> list[int]:
    return sorted(map(int, journal.read_text().split())) if journal.exists() else []


def test_shards_come_in_the_order_of_the_tasks(make_context: MakeContext, tmp_path: Path) -> None:
    context = make_context()
    receipts = map_shards(context, "double", [3, 1, 2], doubled(tmp_path / "journal"))
    assert [receipt.facts["number"] for receipt in receipts] == [3, 1, 2]
    rows = dataset_of(receipts, "rows", note="kept")
    assert [shard.name for shard in rows.shards] == [f"rows/0000{k}.parquet" for k in range(3)]
    assert (rows.rows, rows.tokens, rows.facts) == (6, 6, {"note": "kept"})
    tables = [shards.read_table(f"{context.directory}/{shard.name}") for shard in rows.shards]
    assert pa.concat_tables(tables)["n"].to_pylist() == [3, 6, 1, 2, 2, 4]
    assert [shard.name for shard in dataset_of(receipts, "names").shards] == ["names/n3", "names/n1", "names/n2"]
    assert [shard.name for shard in dataset_of(receipts, "odd").shards] == ["odd/00000.parquet", "odd/00001.parquet"]
    assert total_dropped(receipts) == {"even": 1}
    assert context.chip_seconds == {}, "no worker opened a chip"


def test_the_number_of_workers_changes_no_byte(make_context: MakeContext, tmp_path: Path) -> None:
    made = []
    for name, whole_node in (("two", False), ("one", True)):  # a task that takes both CPUs leaves room for one worker
        context = make_context(directory=str(tmp_path / name))
        map_shards(context, "double", range(5), doubled(tmp_path / "journal"), whole_node=whole_node)
        clean_up(context.directory, NOTHING_LISTED)
        made.append(files(tmp_path / name))
    assert made[0] == made[1]
    assert len(made[0]) == 5 + 5 + 2


def test_a_rerun_redoes_only_what_is_not_whole(make_context: MakeContext, tmp_path: Path) -> None:
    context, journal = make_context(), tmp_path / "journal"
    work = doubled(journal)
    first = map_shards(context, "double", range(5), work)
    before = files(Path(context.directory))
    (Path(context.directory) / "rows/00001.parquet").unlink()
    cut = Path(context.directory) / "names/n2"
    cut.write_bytes(b"")
    (receipt,) = Path(context.directory).glob("_receipts/double-*/00003.json")
    receipt.unlink()
    modified = {path: path.stat().st_mtime_ns for path in Path(context.directory).rglob("rows/*")}

    again = map_shards(context, "double", range(5), work)
    assert calls(journal) == sorted([*range(5), 1, 2, 3])
    assert again == first
    assert files(Path(context.directory)) == before
    kept = [path.name for path, time in modified.items() if path.stat().st_mtime_ns == time]
    assert sorted(kept) == ["00000.parquet", "00004.parquet"]


def test_nothing_left_to_do_starts_nothing(make_context: MakeContext, tmp_path: Path) -> None:
    context, journal = make_context(), tmp_path / "journal"
    first = map_shards(context, "double", [1, 2], doubled(journal))

    class NoSession:
        def start(self) -> None:
            raise AssertionError

    again = map_shards(make_context(session=NoSession()), "double", [1, 2], doubled(journal))
    assert again == first
    assert calls(journal) == [1, 2]


def test_phases_do_not_take_each_others_receipts(make_context: MakeContext, tmp_path: Path) -> None:
    context, journal = make_context(), tmp_path / "journal"
    map_shards(context, "one", [7], doubled(journal))
    map_shards(context, "two", [7], doubled(journal))
    assert calls(journal) == [7, 7]


@pytest.mark.parametrize("kind", [model.errors.UserError, data.errors.UserError, training.errors.UserError])
def test_a_users_mistake_comes_out_of_a_worker_in_its_own_words(make_context: MakeContext, kind: type) -> None:
    def refuse(number: int) -> ShardOutput:
        raise kind(f"shard {number} will not do; give another")

    with pytest.raises(UserError) as caught:
        map_shards(make_context(), f"refuse_{kind.__module__}", [4], refuse)
    assert (str(caught.value), exit_code(caught.value)) == ("shard 4 will not do; give another", 2)
    (note,) = caught.value.__notes__
    assert note.startswith("a worker failed:\nTraceback")
    assert "in refuse" in note


def test_a_full_disk_comes_out_of_a_worker_in_its_own_words(make_context: MakeContext) -> None:
    def fill(number: int) -> ShardOutput:
        raise storage.FullError("cannot write a; make room")

    with pytest.raises(FailedError) as caught:
        map_shards(make_context(), "fill", [4], fill)
    assert (str(caught.value), exit_code(caught.value)) == ("cannot write a; make room", 1)


def test_a_plain_value_error_of_a_worker_is_a_bug(make_context: MakeContext) -> None:
    def misuse(number: int) -> ShardOutput:
        raise ValueError("not our class")

    with pytest.raises(RuntimeError, match=r"(?s)^a worker failed:\nTraceback.*ValueError: not our class") as caught:
        map_shards(make_context(), "misuse", [4], misuse)
    assert exit_code(caught.value) is None


def test_the_sentence_comes_out_and_not_the_error_that_led_to_it(make_context: MakeContext, tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"no parquet")

    def read(path: str) -> ShardOutput:
        return ShardOutput(parts={"rows": Part(table=shards.read_table(path))})

    with pytest.raises(UserError, match=r"a\.parquet is not a Parquet file .*write it again"):
        map_shards(make_context(), "read", [str(tmp_path / "a.parquet")], read)


def test_an_error_of_a_library_is_no_wrong_input(make_context: MakeContext) -> None:
    def misuse(number: int) -> ShardOutput:
        return ShardOutput(parts={"rows": Part(table=pa.table({"n": pa.array(["x"]).cast(pa.int64())}))})

    with pytest.raises(RuntimeError, match=r"(?s)a worker failed:.*ArrowInvalid"):
        map_shards(make_context(), "misuse", [4], misuse)


def test_an_error_leaves_the_finished_shards_finished(make_context: MakeContext, tmp_path: Path) -> None:
    context, journal, flag = make_context(), tmp_path / "journal", tmp_path / "flag"
    work = doubled(journal)

    def fail_at_two(number: int) -> ShardOutput:
        if number == 2 and not flag.exists():
            flag.touch()
            raise KeyError("two")
        return work(number)

    map_shards(context, "fail", [0], fail_at_two)
    with pytest.raises(Exception, match="two"):
        map_shards(context, "fail", range(3), fail_at_two)
    assert len(map_shards(context, "fail", range(3), fail_at_two)) == 3
    assert calls(journal).count(0) == 1


def test_cleaning_up_leaves_what_a_manifest_can_list(make_context: MakeContext, tmp_path: Path) -> None:
    context = make_context()
    directory = Path(context.directory)

    def work(_: Any) -> ShardOutput:
        return ShardOutput(parts={"_between": Part(data=b"x", name="x"), "text": Part(data=b"y", name="y")})

    map_shards(context, "work", [0], work)
    (directory / "_staging/killed-driver").mkdir(parents=True)
    (directory / "_staging/killed-driver/part").write_bytes(b"")
    (directory / "_RUN.json").write_bytes(b"{}")
    clean_up(context.directory, NOTHING_LISTED)
    assert sorted(files(directory)) == ["_RUN.json", "text/y"]


def test_the_bar_hears_how_far_a_running_shard_is(make_context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[int] = []

    @contextmanager
    def progress(_: Context, total: int, unit: str, title: str, before: int) -> Iterator[Callable[[int], Any]]:
        assert (total, unit, title, before) == (12, "row", "test_stage work", 0)
        yield moved.append

    def work(rows: int) -> ShardOutput:
        for _ in range(rows):
            time.sleep(0.4)
            advance(1)
        return ShardOutput(parts={})

    monkeypatch.setattr(Context, "progress", progress)
    map_shards(make_context(quiet=False), "work", [2, 10], work, unit="row", sizes=[2, 10], whole_node=True)
    assert sum(moved) == 12
    assert len([step for step in moved if step]) > 3  # not only at the end of a shard


def test_workers_are_other_processes_on_this_machine(make_context: MakeContext) -> None:
    def where(_: Any) -> ShardOutput:
        return ShardOutput(parts={}, facts={"pid": os.getpid()})

    (receipt,) = map_shards(make_context(), "where", [0], where)
    assert isinstance(receipt, Receipt)
    assert receipt.facts["pid"] != os.getpid()
