import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data import loader as loader_module
from data import shards
from data.loader import LogitsReader, SequenceReader, StepLoader, direct_feed
from data.logits import CodecSpec, Ranking, encode
from data.order import MixturePhase, Order, SequenceDataset
from data.packing import Document, pack_documents
from data.padding import DENSE, SPARSE
from data.schema import LOGITS

LENGTH, ROW_GROUP_ROWS, VOCAB = 32, 4, 1000
SPEC = CodecSpec(vocab_size=VOCAB, estimator="drawn", draws=8)
RANKING = Ranking.of_tokens(np.arange(0, VOCAB, 3), VOCAB)


def packed(seed: int, rows: int) -> pa.Table:
    """About `rows` rows of packed documents, with padding in the last."""
    rng = np.random.default_rng(seed)
    lengths = [LENGTH * rows - 57, 20, 30]
    documents = [
        Document(id=f"{seed}-{k}", tokens=rng.integers(0, VOCAB, n, np.int32), text_bytes=n, masked=((1, 5),))
        for k, n in enumerate(lengths)
    ]
    return pack_documents(documents, LENGTH)


def write(directory: Path, name: str, tables: list[pa.Table]) -> tuple[SequenceDataset, list[str]]:
    made = [
        shards.write_table(str(directory / name), f"{k}.parquet", table, row_group_rows=ROW_GROUP_ROWS)
        for k, table in enumerate(tables)
    ]
    dataset = SequenceDataset(name=name, shard_rows=tuple(shard.rows for shard in made), row_group_rows=ROW_GROUP_ROWS)
    return dataset, [str(directory / name / shard.name) for shard in made]


def logits_of(table: pa.Table, seed: int = 0) -> pa.Table:
    """Made-up teacher counts for each target of the rows."""
    rng = np.random.default_rng(seed)
    rows = []
    for row in table.select(["loss_mask", "sequence_hash"]).to_pylist():
        targets = sum(row["loss_mask"])
        ids = np.stack([rng.choice(VOCAB, 3, replace=False) for _ in range(targets)])
        encoded = encode({"target_ids": ids, "target_counts": np.tile([5, 2, 1], (targets, 1))}, SPEC, RANKING)
        rows.append({"sequence_hash": row["sequence_hash"], "ranking": RANKING.to_bytes(), **encoded})
    return pa.Table.from_pylist(rows, LOGITS)


@pytest.fixture
def tables() -> list[pa.Table]:
    return [packed(1, 10), packed(2, 7)]


@pytest.fixture
def sequences(tmp_path: Path, tables: list[pa.Table]) -> tuple[SequenceDataset, list[str]]:
    return write(tmp_path, "code", tables)


def order_of(*datasets: SequenceDataset, global_batch: int = 4) -> Order:
    weights = tuple((dataset.name, 1.0) for dataset in datasets)
    return Order(datasets, [MixturePhase(start_step=0, weights=weights)], global_batch, seed=0)


def reader_of(sequences: tuple[SequenceDataset, list[str]], vocab_size: int | None = VOCAB) -> SequenceReader:
    return SequenceReader(sequences[1], ROW_GROUP_ROWS, vocab_size)


def rewrite(uri: str, column: str, change: pa.Array) -> None:
    """The file with one column replaced and sound page checksums."""
    path = Path(uri)
    table = shards.read_table(uri)
    table = table.set_column(table.schema.get_field_index(column), table.schema.field(column), change)
    shards.write_table(str(path.parent), path.name, table, row_group_rows=ROW_GROUP_ROWS)


def test_rows_are_read_in_the_order_asked_for(
    sequences: tuple[SequenceDataset, list[str]], tables: list[pa.Table]
) -> None:
    rows = [(1, 6), (0, 9), (0, 0), (1, 6), (0, 5), (0, 1)]
    columns = reader_of(sequences).read(rows)
    assert columns["tokens"].dtype == columns["segment_ids"].dtype == columns["positions"].dtype == np.int32
    assert columns["loss_mask"].dtype == bool
    assert columns["sequence_hash"].dtype == np.uint64
    for name in loader_module.ROW_COLUMNS:
        for index, (shard, row) in enumerate(rows):
            assert columns[name][index].tolist() == tables[shard][name][row].as_py()


def test_a_batch_holds_this_workers_rows_of_the_step(tmp_path: Path, tables: list[pa.Table]) -> None:
    first, second = write(tmp_path, "code", tables), write(tmp_path, "prose", [packed(3, 9)])
    order = order_of(first[0], second[0])
    whole = StepLoader(order, [reader_of(first), reader_of(second)])
    halves = [StepLoader(order, [reader_of(first), reader_of(second)], rank=rank, world_size=2) for rank in (0, 1)]
    by_dataset = [tables, [packed(3, 9)]]
    for step in (0, 11, 3, 4, 100):  # 100: several epochs on
        batch = whole.load(step)
        assert batch["refs"].dtype == np.int32
        assert [tuple(ref) for ref in batch["refs"].tolist()] == [tuple(ref) for ref in order.rows(step)]
        for index, (dataset, shard, row) in enumerate(batch["refs"].tolist()):
            table = by_dataset[dataset][shard]
            assert batch["tokens"][index].tolist() == table["tokens"][row].as_py()
            assert batch["sequence_hash"][index] == table["sequence_hash"][row].as_py()
        parts = [half.load(step) for half in halves]
        for name, column in batch.items():
            assert (np.concatenate([part[name] for part in parts]) == column).all()


def test_more_row_groups_and_files_than_are_kept_open_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader_module, "_OPEN_FILES", 2)
    tables = [packed(seed, 9) for seed in range(5)]
    reader = reader_of(write(tmp_path, "code", tables))
    for step in range(3):
        rows = [(shard, row) for row in (8, step, 5) for shard in range(5)]
        columns = reader.read(rows)
        assert columns["tokens"].tolist() == [tables[shard]["tokens"][row].as_py() for shard, row in rows]


def test_logits_stand_at_the_targets_they_were_computed_for(tmp_path: Path, tables: list[pa.Table]) -> None:
    sequences = write(tmp_path, "code", tables)
    _, logits_uris = write(tmp_path, "logits", [logits_of(table) for table in tables])
    loader = StepLoader(order_of(sequences[0]), [reader_of(sequences)], [LogitsReader(logits_uris, SPEC, 5)])
    for step in range(5):
        batch = loader.load(step)
        assert batch["target_ids"].shape == batch["target_counts"].shape == (4, LENGTH, 5)
        assert batch["target_ids"].dtype == batch["target_counts"].dtype == np.int32
        assert (batch["target_counts"].sum(axis=2) == np.where(batch["loss_mask"], SPEC.draws, 0)).all()
        for index, (_, shard, row) in enumerate(batch["refs"].tolist()):
            (_, targets) = LogitsReader(logits_uris, SPEC, 5).read([(shard, row)])[0]
            assert (batch["target_ids"][index][batch["loss_mask"][index]] == targets.padded(5)["target_ids"]).all()


def test_every_kind_of_logits_stands_at_its_targets(tmp_path: Path, tables: list[pa.Table]) -> None:
    sequences = write(tmp_path, "code", tables)
    kinds = {
        "weighted": CodecSpec(vocab_size=VOCAB, estimator="drawn", draws=8, weighted=True),
        "best": CodecSpec(vocab_size=VOCAB, estimator="best"),
        "dense": CodecSpec(vocab_size=VOCAB, estimator="dense"),
    }
    for name, spec in kinds.items():
        kept = {
            "target_ids": np.arange(3)[None] if name != "dense" else np.arange(VOCAB)[None],
            "target_counts": np.array([[5, 2, 1]]),
            "target_log_weights": np.log([[0.5, 1.0, 2.0]]),
            "target_log_probs": np.log([[0.5, 0.25, 0.125]])
            if name != "dense"
            else np.full((1, VOCAB), -np.log(VOCAB)),
            "target_tail": np.array([0.125 if name != "dense" else 0.0]),
        }
        written = []
        for table in tables:
            rows = table.select(["loss_mask", "sequence_hash"]).to_pylist()
            encoded = [
                encode({key: values.repeat(sum(row["loss_mask"]), 0) for key, values in kept.items()}, spec, RANKING)
                for row in rows
            ]
            made = [
                {"sequence_hash": row["sequence_hash"], "ranking": RANKING.to_bytes(), **planes}
                for row, planes in zip(rows, encoded, strict=True)
            ]
            written.append(pa.Table.from_pylist(made, LOGITS))
        _, uris = write(tmp_path, name, written)
        padding = DENSE if name == "dense" else SPARSE
        reader = LogitsReader(uris, spec, 5, padding=padding)
        batch = StepLoader(order_of(sequences[0]), [reader_of(sequences)], [reader]).load(0)
        mask = batch["loss_mask"]
        if name == "weighted":
            sums = batch["target_counts"].sum(axis=2)
            assert batch["target_counts"].dtype == np.float32
            assert sums[mask] == pytest.approx(5 * 0.5 + 2 * 1.0 + 1 * 2.0, rel=1e-3)
            assert not sums[~mask].any()
        elif name == "best":
            mass = np.exp(batch["target_log_probs"]).sum(axis=2) + batch["target_tail"]
            assert mass == pytest.approx(np.ones(mask.shape), abs=1e-6)
            assert batch["target_tail"][mask] == pytest.approx(0.125, rel=1e-3)
            assert (batch["target_tail"][~mask] == 1).all()
        else:
            assert batch["target_probs"].shape == (4, LENGTH, VOCAB)
            assert batch["target_probs"][mask] == pytest.approx(1 / VOCAB, rel=1e-3)
            assert not batch["target_probs"][~mask].any()
        with pytest.raises(ValueError, match="damaged, or written with other numbers"):
            LogitsReader(uris, SPEC if name != "weighted" else kinds["best"], 5).read([(0, 0)])


def test_a_row_without_targets_has_logits_without_targets(tmp_path: Path) -> None:
    document = Document(id="x", tokens=np.arange(LENGTH, dtype=np.int32), text_bytes=1, masked=((0, LENGTH),))
    table = pack_documents([document], LENGTH)
    none = np.zeros((0, 1), int)
    encoded = encode({"target_ids": none, "target_counts": none}, SPEC, RANKING)
    row = {"sequence_hash": table["sequence_hash"][0].as_py(), "ranking": RANKING.to_bytes(), **encoded}
    sequences = write(tmp_path, "code", [table])
    _, uris = write(tmp_path, "logits", [pa.Table.from_pylist([row], LOGITS)])
    loader = StepLoader(order_of(sequences[0]), [reader_of(sequences)], [LogitsReader(uris, SPEC)])
    assert loader.load(0)["target_counts"].shape == (4, LENGTH, SPEC.draws)
    assert not loader.load(0)["target_counts"].any()


def test_logits_of_other_sequences_are_refused_naming_both_files(tmp_path: Path, tables: list[pa.Table]) -> None:
    sequences = write(tmp_path, "code", tables)
    _, uris = write(tmp_path, "logits", [logits_of(packed(9, 10)), logits_of(tables[1])])
    loader = StepLoader(order_of(sequences[0]), [reader_of(sequences)], [LogitsReader(uris, SPEC)])
    with pytest.raises(
        ValueError, match=r"logits/0\.parquet holds logits .*code/0\.parquet is sequence .*cache_logits"
    ):
        loader.load(0)


def test_damaged_logits_are_refused_naming_file_and_row(tmp_path: Path, tables: list[pa.Table]) -> None:
    _, uris = write(tmp_path, "logits", [logits_of(tables[0])])
    damaged = [row[:-1] for row in shards.read_table(uris[0])["bits"].to_pylist()]
    rewrite(uris[0], "bits", pa.array(damaged, pa.binary()))
    with pytest.raises(ValueError, match=r"row 3 of .*logits/0\.parquet: .* bytes of bits where"):
        LogitsReader(uris, SPEC).read([(0, 3)])


def test_a_row_with_a_flipped_bit_is_refused(sequences: tuple[SequenceDataset, list[str]]) -> None:
    path = Path(sequences[1][0])
    sound = path.read_bytes()
    rows = [(0, row) for row in range(10)]
    expected = reader_of(sequences).read(rows)
    footer = int.from_bytes(sound[-8:-4], "little") + 8
    refused = 0
    for place in range(4, len(sound) - footer, 37):
        damaged = bytearray(sound)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        try:
            columns = reader_of(sequences).read(rows)
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017  (whether it raises depends on the place)
            refused += 1
        else:  # a bit that nobody reads, or one of the columns not asked for
            assert all((columns[name] == expected[name]).all() for name in expected)
    assert refused > 20


@pytest.mark.parametrize("column", ["tokens", "segment_ids", "loss_mask"])
def test_a_row_that_is_not_what_its_hash_says_is_refused(
    sequences: tuple[SequenceDataset, list[str]], column: str
) -> None:
    rows = shards.read_table(sequences[1][0])[column].to_pylist()
    rows[6][3] = not rows[6][3] if column == "loss_mask" else rows[6][3] + 1
    kind = shards.read_table(sequences[1][0]).schema.field(column).type
    rewrite(sequences[1][0], column, pa.array(rows, kind))
    reader = reader_of(sequences)
    assert reader.read([(0, 0)])["tokens"].shape == (1, LENGTH)
    with pytest.raises(
        ValueError, match=r"code/0\.parquet is damaged: in 1 of 4 rows .* do not match the sequence_hash"
    ):
        reader.read([(0, 4)])


def test_an_id_outside_the_vocabulary_is_refused(sequences: tuple[SequenceDataset, list[str]]) -> None:
    with pytest.raises(ValueError, match=r"0\.parquet holds token ids \d+ to \d+, and the vocabulary has 0 to 899"):
        reader_of(sequences, vocab_size=900).read([(0, 0)])
    assert reader_of(sequences, vocab_size=None).read([(0, 0)])


def test_files_that_are_not_what_the_manifest_says_are_refused(
    tmp_path: Path, sequences: tuple[SequenceDataset, list[str]], tables: list[pa.Table]
) -> None:
    with pytest.raises(ValueError, match=r"0\.parquet has 10 rows and no row 10"):
        reader_of(sequences).read([(0, 10)])
    with pytest.raises(ValueError, match=r"row groups of \[4\] rows and its manifest says 8"):
        SequenceReader(sequences[1], 8).read([(0, 0)])
    _, logits_uris = write(tmp_path, "logits", [logits_of(tables[0])])
    with pytest.raises(ValueError, match=r"no column tokens, .*name a file of the right table"):
        SequenceReader(logits_uris, ROW_GROUP_ROWS).read([(0, 0)])
    with pytest.raises(FileNotFoundError):
        SequenceReader([str(tmp_path / "none.parquet")], ROW_GROUP_ROWS).read([(0, 0)])


def test_readers_that_do_not_match_are_refused(
    tmp_path: Path, sequences: tuple[SequenceDataset, list[str]], tables: list[pa.Table]
) -> None:
    order = order_of(sequences[0])
    with pytest.raises(AssertionError, match="got 0 readers of sequences for 1 datasets"):
        StepLoader(order, [])
    with pytest.raises(AssertionError, match="got 2 readers of logits for 1 datasets"):
        StepLoader(order, [reader_of(sequences)], [LogitsReader([], SPEC)] * 2)
    with pytest.raises(ValueError, match="must divide the global batch"):
        StepLoader(order, [reader_of(sequences)], world_size=3)
    longer = write(
        tmp_path, "long", [pack_documents([Document(id="x", tokens=np.ones(99, np.int32), text_bytes=0)], 33)]
    )
    mixed = StepLoader(order_of(sequences[0], longer[0]), [reader_of(sequences), reader_of(longer)])
    with pytest.raises(ValueError, match=r"rows of \[32, 33\] tokens"):
        mixed.load(0)
    two = order_of(sequences[0], longer[0])
    with pytest.raises(AssertionError, match="differ in max_unique"):
        StepLoader(two, [reader_of(sequences)] * 2, [LogitsReader([], SPEC, k) for k in (3, 4)])


def feed_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("feed-")]


def test_the_direct_feed_gives_what_load_gives_and_ends_its_thread(
    sequences: tuple[SequenceDataset, list[str]],
) -> None:
    loader = StepLoader(order_of(sequences[0]), [reader_of(sequences)])
    fed = list(direct_feed(loader, 3, 12, prefetch=2))
    assert not feed_threads()
    assert [step for step, _ in fed] == list(range(3, 12))
    for step, batch in fed:
        expected = loader.load(step)
        assert batch.keys() == expected.keys()
        assert all((batch[name] == expected[name]).all() for name in expected)
    assert list(direct_feed(loader, 5, 5)) == []


def test_a_feed_left_early_ends_its_thread(sequences: tuple[SequenceDataset, list[str]]) -> None:
    loader = StepLoader(order_of(sequences[0]), [reader_of(sequences)])
    feed = direct_feed(loader, 0, 10**9, prefetch=1)
    assert next(feed)[0] == 0
    assert len(feed_threads()) == 1
    feed.close()  # what leaving a for loop does
    assert not feed_threads()


def test_a_feed_passes_on_what_the_loader_raises_at_its_step(sequences: tuple[SequenceDataset, list[str]]) -> None:
    class Failing(StepLoader):
        def load(self, step: int) -> loader_module.Batch:
            if step == 2:
                raise OSError("disk gone")
            return super().load(step)

    seen = []
    with pytest.raises(OSError, match="disk gone"):  # noqa: PT012
        for step, _ in direct_feed(Failing(order_of(sequences[0]), [reader_of(sequences)]), 0, 5):
            seen.append(step)
    assert seen == [0, 1]
    assert not feed_threads()
    with pytest.raises(AssertionError, match="prefetch=0"):
        next(direct_feed(StepLoader(order_of(sequences[0]), [reader_of(sequences)]), 0, 1, prefetch=0))
