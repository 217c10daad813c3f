"""From row references to batches: reads row groups lazily, checks them, and joins the teacher's logits by row.

    Order.worker_rows(step) -> SequenceReader (+ LogitsReader) -> StepLoader.load -> Batch -> direct_feed

Nothing unchecked reaches training. Checked are Parquet's page checksums, the sequence_hash of each row, that ids are in
the vocabulary, and that logits were computed on the row that they are used with. A UserError names the file that fails.

Cost: a row group is read, decoded and hashed once, as long as it is among the last few used. A batch is then a copy.
"""

import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.errors import UserError
from data.logits import PLANES, CodecSpec, Ragged, Ranking, decode
from data.order import Order
from data.padding import SPARSE, Padding
from data.schema import LOGITS, SEQUENCES, columns_of, sequence_hashes
from data.shards import check_columns, open_parquet

Batch = dict[str, np.ndarray]
"""tokens, segment_ids, positions int32 [b, L]; loss_mask bool [b, L]; sequence_hash uint64 [b]; refs int32 [b, 3]
(dataset, shard, row); with logits also the columns of their `Padding` (data/padding.py)"""

ROW_COLUMNS = ("tokens", "segment_ids", "positions", "loss_mask", "sequence_hash")
_OPEN_FILES = 16
_CACHED_ROW_GROUPS = 4

T = TypeVar("T")


class StepLoader:
    """The batches of one worker, by step.

    Raises UserError if the readers do not match the order's datasets, or the workers do not divide the batch.
    """

    def __init__(
        self,
        order: Order,
        readers: Sequence["SequenceReader"],
        logits_readers: Sequence["LogitsReader"] | None = None,
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        for kind, given in (("sequences", readers), ("logits", logits_readers)):
            assert given is None or len(given) == len(order.datasets), (
                f"got {len(given)} readers of {kind} for {len(order.datasets)} datasets; each dataset needs its own"
            )
        assert logits_readers is None or len({reader.max_unique for reader in logits_readers}) <= 1, (
            "readers of logits differ in max_unique; a batch has one K, so give all of them the largest"
        )
        order.worker_rows(0, rank, world_size)  # raises if the workers do not divide the batch
        self.order, self.rank, self.world_size = order, rank, world_size
        self._readers, self._logits_readers = readers, logits_readers

    def load(self, step: int) -> Batch:
        """This worker's rows of a step. Raises UserError if a file is damaged or logits belong to other rows."""
        refs = np.array(self.order.worker_rows(step, self.rank, self.world_size), np.int32)
        parts, places = [], []
        for dataset in np.unique(refs[:, 0]).tolist():
            indices = np.flatnonzero(refs[:, 0] == dataset)
            parts.append(self._read(dataset, [(shard, row) for _, shard, row in refs[indices].tolist()]))
            places.append(indices)
        if len(lengths := {part["tokens"].shape[1] for part in parts}) > 1:
            raise UserError(
                f"got rows of {sorted(lengths)} tokens in one mixture; its datasets need rows of one length: pack them "
                "with one sequence_length"
            )
        back = np.argsort(np.concatenate(places))
        batch = {name: np.concatenate([part[name] for part in parts])[back] for name in parts[0]}
        return {**batch, "refs": refs}

    def _read(self, dataset: int, rows: list[tuple[int, int]]) -> Batch:
        batch = self._readers[dataset].read(rows)
        if self._logits_readers is None:
            return batch
        sequences, logits = self._readers[dataset], self._logits_readers[dataset]
        columns = logits.empty(*batch["tokens"].shape)
        for index, (found_hash, targets) in enumerate(logits.read(rows)):
            shard, row = rows[index]
            mask, wanted_hash = batch["loss_mask"][index], int(batch["sequence_hash"][index])
            if found_hash != wanted_hash or len(targets.unique) != mask.sum():
                raise UserError(
                    f"row {row} of {logits.uris[shard]} holds logits of sequence {found_hash:016x} with "
                    f"{len(targets.unique)} targets, and row {row} of {sequences.uris[shard]} is sequence "
                    f"{wanted_hash:016x} with {mask.sum()}: the logits were computed on other sequences; run "
                    "cache_logits on these"
                )
            for name, values in logits.columns_of(targets).items():
                columns[name][index, mask] = values
        return batch | columns


def direct_feed(loader: StepLoader, start_step: int, stop_step: int, prefetch: int = 4) -> Iterator[tuple[int, Batch]]:
    """(step, batch) for each step from start_step to stop_step - 1, read ahead in a thread by up to `prefetch` batches.

    An exception of the loader is raised here, at its step. The thread ends with the iteration, even if it ends early.
    """
    assert prefetch >= 1, f"got prefetch={prefetch}; at least 1 batch has to be read ahead"
    ready: queue.Queue[tuple[int, Batch] | BaseException | None] = queue.Queue(prefetch)
    stopped = threading.Event()

    def put(item: tuple[int, Batch] | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for step in range(start_step, stop_step):
                put((step, loader.load(step)))
                if stopped.is_set():
                    return
            put(None)
        except BaseException as error:  # raised again in the thread that iterates
            put(error)

    thread = threading.Thread(target=work, name=f"feed-{start_step}", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()


class SequenceReader:
    """Random access to the packed rows of one dataset. The files must have row groups of `row_group_rows` rows."""

    def __init__(self, shard_uris: Sequence[str], row_group_rows: int, vocab_size: int | None = None) -> None:
        self.uris = tuple(shard_uris)
        self._vocab_size = vocab_size
        self._groups = _RowGroups(self.uris, columns_of(SEQUENCES, ROW_COLUMNS), self._decode, row_group_rows)

    def read(self, rows: Sequence[tuple[int, int]]) -> Batch:
        """The columns of ROW_COLUMNS for each (shard, row), in the order of `rows`."""
        picked = self._groups.read(rows, lambda group, row: [group[name][row] for name in ROW_COLUMNS])
        return {name: np.stack(column) for name, column in zip(ROW_COLUMNS, zip(*picked, strict=True), strict=True)}

    def _decode(self, table: pa.Table, uri: str) -> Batch:
        columns = {name: table[name].combine_chunks() for name in ROW_COLUMNS}
        lengths = {int(length) for name in ROW_COLUMNS[:4] for length in np.unique(np.diff(columns[name].offsets))}
        if len(lengths) != 1:
            raise UserError(f"{uri} has rows of {sorted(lengths)} tokens; packed rows have one length: pack them again")
        shape = (table.num_rows, lengths.pop())
        group = {
            name: columns[name].flatten().to_numpy(zero_copy_only=False).reshape(shape) for name in ROW_COLUMNS[:4]
        }
        group["sequence_hash"] = columns["sequence_hash"].to_numpy()
        hashes = sequence_hashes(group["tokens"], group["segment_ids"], group["loss_mask"])
        if (wrong := np.flatnonzero(hashes != group["sequence_hash"])).size:
            raise UserError(
                f"{uri} is damaged: in {wrong.size} of {len(hashes)} rows that were read together, tokens, segments or "
                "mask do not match the sequence_hash; remove the run that wrote it and run that again"
            )
        low, high = int(group["tokens"].min()), int(group["tokens"].max())
        if low < 0 or (self._vocab_size is not None and high >= self._vocab_size):
            raise UserError(
                f"{uri} holds token ids {low} to {high}, and the vocabulary has 0 to "
                f"{(self._vocab_size or 2**31) - 1}; tokenize and pack with the tokenizer that the model is trained for"
            )
        return group


MADE_AS = b"made_as"
"""key of a LOGITS file's metadata: the digest of the teacher, the estimator and the codec that made the file"""


class LogitsReader:
    """Random access to the cached teacher distributions of one dataset: row n belongs to row n of its sequences.

    `max_unique` is K, the largest number of ids at a target. It may be left out for counts: no target has more ids than
    draws.
    """

    def __init__(
        self,
        shard_uris: Sequence[str],
        spec: CodecSpec,
        max_unique: int | None = None,
        made_as: str | None = None,
        padding: Padding = SPARSE,
    ) -> None:
        """`made_as`: the manifest's digest of teacher, estimator and codec. A file with another digest is refused."""
        self.uris = tuple(shard_uris)
        self.spec = spec
        self.made_as = made_as
        self.padding = padding
        if max_unique is None and spec.draws is None:
            raise UserError(
                f"got no max_unique for logits of the estimator {spec.estimator!r}, which keep no counts; give it: the "
                "largest number of ids at a target"
            )
        self.max_unique = max_unique or min(spec.draws or 1, spec.vocab_size)
        self._groups = _RowGroups(
            self.uris,
            columns_of(LOGITS, ("sequence_hash", *PLANES)),
            lambda table, _: table,
            check=self._check_made_as,
        )
        self._rankings = _RowGroups(self.uris, columns_of(LOGITS, ("ranking",)), self._ranking)

    def read(self, rows: Sequence[tuple[int, int]]) -> list[tuple[int, Ragged]]:
        """(sequence_hash, the kept targets in order) for each (shard, row)."""
        picked = self._groups.read(rows, lambda table, row: [table[name][row] for name in table.column_names])
        rankings = self._rankings.read([(shard, 0) for shard, _ in rows], lambda ranking, _: [ranking])
        decoded = []
        for (shard, row), (ranking,), (sequence_hash, *planes) in zip(rows, rankings, picked, strict=True):
            columns = {name: memoryview(value.as_buffer()) for name, value in zip(PLANES, planes, strict=True)}
            try:
                targets = decode([columns], self.spec, ranking)
            except ValueError as error:
                raise UserError(f"row {row} of {self.uris[shard]}: {error}") from error
            decoded.append((sequence_hash.as_py(), targets))
        return decoded

    def empty(self, rows: int, length: int) -> Batch:
        """Columns of a batch without any target."""
        return self.padding.empty(self.spec, rows, length, self.max_unique)

    def columns_of(self, targets: Ragged) -> Batch:
        """The targets of a row as columns of a batch, [P, ...]."""
        return self.padding.columns(self.spec, targets, self.max_unique)

    def _check_made_as(self, file: pq.ParquetFile, uri: str) -> None:
        stored = (file.schema_arrow.metadata or {}).get(MADE_AS, b"nothing").decode()
        if self.made_as is not None and stored != self.made_as:
            raise UserError(
                f"{uri} was made as {stored} (a digest of teacher, estimator and codec), and its manifest is of "
                f"{self.made_as}: it is a shard of another run; run cache_logits again"
            )

    def _ranking(self, table: pa.Table, uri: str) -> Ranking:
        first = table["ranking"][0]
        if not first.is_valid:
            raise UserError(f"{uri} has no ranking in its first row; run cache_logits again")
        return Ranking.from_bytes(first.as_py(), self.spec.vocab_size)


class _RowGroups(Generic[T]):
    """Row groups of Parquet files, each decoded and checked once, as long as it is among the last few used."""

    def __init__(
        self,
        uris: tuple[str, ...],
        columns: pa.Schema,
        decode: Callable[[pa.Table, str], T],
        row_group_rows: int | None = None,
        check: Callable[[pq.ParquetFile, str], None] | None = None,
    ) -> None:
        self._uris, self._columns, self._decode, self._row_group_rows = uris, columns, decode, row_group_rows
        self._check = check
        self._files: OrderedDict[int, tuple[pq.ParquetFile, np.ndarray]] = OrderedDict()
        self._groups: OrderedDict[tuple[int, int], T] = OrderedDict()

    def read(self, rows: Sequence[tuple[int, int]], pick: Callable[[T, int], list]) -> list[list]:
        """pick(group, row in group) for each (shard, row), in order. Each group is visited once."""
        wanted: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for place, (shard, row) in enumerate(rows):
            group, row_in_group = self._locate(shard, row)
            wanted.setdefault((shard, group), []).append((place, row_in_group))
        results: list[list] = [[]] * len(rows)
        for (shard, group), picks in wanted.items():
            decoded = self._group(shard, group)
            for place, row_in_group in picks:
                results[place] = pick(decoded, row_in_group)
        return results

    def _locate(self, shard: int, row: int) -> tuple[int, int]:
        _, ends = self._file(shard)
        if not 0 <= row < (ends[-1] if len(ends) else 0):
            raise UserError(
                f"{self._uris[shard]} has {ends[-1] if len(ends) else 0} rows and no row {row}; its manifest is of "
                "another file: run the stage that wrote it again"
            )
        group = int(np.searchsorted(ends, row, side="right"))
        return group, row - (int(ends[group - 1]) if group else 0)

    def _file(self, shard: int) -> tuple[pq.ParquetFile, np.ndarray]:
        """The open file of a shard, and the row after the last one of each row group."""
        if shard not in self._files:
            uri = self._uris[shard]
            file = open_parquet(uri)
            metadata = file.metadata
            check_columns(uri, file, self._columns.names, self._columns)
            if self._check is not None:
                self._check(file, uri)
            rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
            if self._row_group_rows is not None and any(count != self._row_group_rows for count in rows[:-1]):
                raise UserError(
                    f"{uri} has row groups of {sorted(set(rows[:-1]))} rows and its manifest says "
                    f"{self._row_group_rows}; run the stage that wrote it again"
                )
            self._files[shard] = (file, np.cumsum(rows))
            if len(self._files) > _OPEN_FILES:
                _, (oldest, _) = self._files.popitem(last=False)
                oldest.close(force=True)
        self._files.move_to_end(shard)
        return self._files[shard]

    def _group(self, shard: int, group: int) -> T:
        key = (shard, group)
        if key not in self._groups:
            uri = self._uris[shard]
            try:
                table = self._file(shard)[0].read_row_group(group, columns=self._columns.names)
            except (OSError, pa.ArrowException) as error:
                raise UserError(
                    f"{uri} is damaged ({error}); remove the run that wrote it and run that again"
                ) from error
            self._groups[key] = self._decode(table, uri)
            if len(self._groups) > _CACHED_ROW_GROUPS:
                self._groups.popitem(last=False)
        self._groups.move_to_end(key)
        return self._groups[key]
