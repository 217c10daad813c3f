"""Shards in, shards out: a Ray Data run over shard references, with our own sink, restartable shard by shard.

`map_shards` gives each task to a Ray worker. The worker computes the tables of its shard, writes them below
`_staging/<attempt>`, moves them to their final names and writes a receipt. Output shard k is a function of task k
alone, so neither the number of workers nor the order in which they finish changes a byte. Work whose output does not
fit one shard yields several outputs: each becomes a file of its own, and only one of them is in memory. A rerun skips
every shard whose receipt and files exist. Files of a phase for the next phase (a shuffle's partitions) go to datasets
whose names begin with "_"; no manifest lists them.
"""

import json
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from data import shards, storage
from data.changes import Changes
from data.documents import parse_object
from data.manifest import Dataset, Shard, listed
from data.sealed import seal, unsealed
from infra.ray_session import in_submitted_job
from pipelines.engine.config import digest
from pipelines.engine.counters import count_shard
from pipelines.engine.errors import UserError, exit_code, raised_in_worker
from pipelines.engine.progress import Bar
from pipelines.engine.progress import shard as shard_progress
from pipelines.engine.stage import Context
from training.log.chips import chips_held

RECEIPTS = "_receipts"
PHASES = "_phases"
"""folder with the number of tasks of each phase, for `status`"""
READ_THREADS = 16
"""number of parallel requests for the receipts of an interrupted run"""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One file that a task makes: a table, or plain bytes under a name of its own."""

    table: pa.Table | None = None
    data: bytes | None = None
    name: str | None = None
    """file name; None: number of the shard"""
    tokens: int = 0
    row_group_rows: int = shards.DEFAULT_ROW_GROUP_ROWS
    opaque_columns: tuple[str, ...] = ()
    """columns that are written without dictionary and statistics"""


@dataclass(frozen=True, kw_only=True)
class ShardOutput:
    """One output of a task."""

    parts: Mapping[str, Part]
    """dataset -> file of the dataset"""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """reason -> number of rows dropped"""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """small JSON values that the stage combines; over several outputs of a task, numbers are summed, and of other
    values the last one is kept"""


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """The record of one finished task."""

    index: int
    shards: Mapping[str, tuple[Shard, ...]]
    """dataset -> files of the dataset, in order"""
    dropped: Mapping[str, int]
    facts: Mapping[str, Any]


Work = Callable[[Any], ShardOutput | Iterator[ShardOutput]]


def map_shards(
    context: Context,
    phase: str,
    tasks: Sequence[Any],
    work: Work,
    *,
    whole_node: bool = False,
    setup: Mapping[str, Any] | None = None,
    unit: str = "shard",
    sizes: Sequence[int] | None = None,
) -> list[Receipt]:
    """Runs `work` over `tasks` (both picklable) on the session's Ray; returns the receipts in the order of the tasks.

    Receipts are kept apart by `phase`, the bytes of the inputs and `setup` (other causes of the bytes, such as the
    device), so a rerun never uses shards that were made from other inputs. `whole_node`: a task takes all CPUs of its
    node, because it computes with a model. `sizes`: units of each task, if `work` calls `progress.advance`.

    An exception whose class has an `exit_code` comes out with its own message and that code, any other exception as a
    RuntimeError with its traceback.
    """
    made_of = {name: [source.content() for source in sources] for name, sources in context.inputs.items()}
    phase = f"{phase}-{digest([made_of, setup], 8)}"
    receipts = _finished(context.directory, phase, len(tasks))
    units = dict(enumerate(sizes if sizes is not None else [1] * len(tasks)))
    waiting = [k for k in range(len(tasks)) if k not in receipts]
    title, before = f"{context.stage} {phase.rpartition('-')[0]}", sum(units[k] for k in receipts)
    with context.progress(sum(units.values()), unit, title, before) as update:
        bar = Bar(update, units, receipts)
        if waiting:
            _say_phase(context, phase, len(tasks), len(receipts))
            context.session.start()
            heard = bar.prefix if not context.quiet or in_submitted_job() else None
            sink = Sink(context.changes, phase, work, heard)
            with nullcontext() if heard is None else bar.listening():
                shape = context.resources.mesh_shape
                mapped = context.session.map(
                    {k: tasks[k] for k in waiting}, sink, whole_node=whole_node, mesh=shape.text if shape else ""
                )
                for row in mapped:
                    if row["traceback"]:
                        raise raised_in_worker(row["exit_code"], row["error"], row["traceback"])
                    receipt = _receipt(json.loads(row["receipt"]))
                    receipts[receipt.index] = receipt
                    context.shards_by_node[row["node"]] += 1
                    for kind, seconds_held in json.loads(row["chip_seconds"]).items():
                        context.chip_seconds[kind] = context.chip_seconds.get(kind, 0.0) + seconds_held
                    count_shard(context.stage, receipt.shards, receipt.dropped)
                    bar.finish(receipt.index)
    return [receipts[k] for k in range(len(tasks))]


class Sink:
    """Runs in a Ray worker: computes one shard, publishes its files, then its receipt.

    An exception of the work is returned as text, because Ray Data would replace it by an exception of its own. Errors
    of I/O are raised, because Ray Data tries them again (infra/ray_session.py). Errors of I/O that would only come
    again are returned as text, too.
    """

    def __init__(self, changes: Changes, phase: str, work: Work, heard: str | None) -> None:
        self.changes, self.phase, self.work, self.heard = changes, phase, work, heard

    def __call__(self, index: int, task: Any) -> dict[str, Any]:
        began = time.monotonic()
        try:
            receipt = self.publish(index, task)
            taken = time.monotonic() - began
            seconds_held = {kind: count * taken for kind, count in chips_held().items()}
            return _row(receipt=receipt, chip_seconds=json.dumps(seconds_held))
        except Exception as error:
            if (code := exit_code(error)) is not None:
                return _row(exit_code=code, error=str(error), traceback=traceback.format_exc())
            if isinstance(error, FileNotFoundError | PermissionError):
                message = f"cannot read an input: {error}; check that it exists and that you have access to it"
                return _row(exit_code=2, error=message, traceback=traceback.format_exc())
            if isinstance(error, OSError) or storage.what_failed(error):  # a disk or an object store: tried again
                raise
            return _row(traceback=traceback.format_exc())

    def publish(self, index: int, task: Any) -> str:
        """Makes the shard; returns its receipt."""
        published: dict[str, list[dict[str, Any]]] = {}
        dropped: Counter[str] = Counter()
        facts: dict[str, Any] = {}
        with shard_progress(self.heard, index):
            made = self.work(task)
            single = isinstance(made, ShardOutput)
            for number, output in enumerate([made] if isinstance(made, ShardOutput) else made):
                for dataset, part in output.parts.items():
                    name = f"{index:05d}" if single else f"{index:05d}-{number:05d}"
                    published.setdefault(dataset, []).append(self._write(dataset, part, name))
                dropped.update(output.dropped)
                for name, value in output.facts.items():
                    summed = isinstance(value, int | float) and not isinstance(value, bool)
                    facts[name] = facts.get(name, 0) + value if summed else value
        of = {"run": self.changes.directory.rstrip("/").rpartition("/")[2], "phase": self.phase, "index": index}
        receipt = seal({**of, "shards": published, "dropped": dict(dropped), "facts": facts})
        self.changes.write(_receipt_uri(self.changes.directory, self.phase, index), receipt)
        return receipt.decode()

    def _write(self, dataset: str, part: Part, number: str) -> dict[str, Any]:
        name = f"{dataset}/{part.name or f'{number}.parquet'}"
        # a folder for this execution alone: Ray may run a task again while its first execution still runs
        place, staged = self.changes.place(), name.rpartition("/")[2]
        if part.table is not None:
            shard = shards.write_table(
                place,
                staged,
                part.table,
                row_group_rows=part.row_group_rows,
                opaque_columns=part.opaque_columns,
                tokens=part.tokens,
            )
        else:
            assert part.data is not None
            shard = shards.write_file(place, staged, part.data, tokens=part.tokens)
        self.changes.publish(storage.join(place, staged), storage.join(self.changes.directory, name))
        return {**asdict(shard), "name": name}


def _row(
    *, receipt: str = "", exit_code: int = 0, error: str = "", traceback: str = "", chip_seconds: str = "{}"
) -> dict[str, Any]:
    """A row that Ray Data carries to the driver. All rows have the same columns; a failed task's has a traceback."""
    return {
        "receipt": receipt,
        "exit_code": exit_code,
        "error": error,
        "traceback": traceback,
        "chip_seconds": chip_seconds,
    }


def dataset_of(receipts: Sequence[Receipt], name: str, **facts: Any) -> Dataset:
    """The dataset `name` of the receipts' shards, in order; tasks without a shard of that dataset are left out."""
    return Dataset(shards=tuple(shard for receipt in receipts for shard in receipt.shards.get(name, ())), facts=facts)


def uris_of(context: Context, receipts: Sequence[Receipt], name: str) -> list[str]:
    """The URIs of the files of the dataset `name`, in order."""
    return [listed(context.directory, shard) for receipt in receipts for shard in receipt.shards.get(name, ())]


def total_dropped(receipts: Sequence[Receipt]) -> dict[str, int]:
    """The number of dropped rows by reason, summed over the receipts."""
    total: Counter[str] = Counter()
    for receipt in receipts:
        total.update(receipt.dropped)
    return dict(sorted(total.items()))


def _say_phase(context: Context, phase: str, tasks: int, done_before: int) -> None:
    record = {"tasks": tasks, "done_before": done_before}
    context.changes.write(storage.join(context.directory, PHASES, f"{phase}.json"), json.dumps(record).encode())


def _receipt_uri(directory: str, phase: str, index: int) -> str:
    return storage.join(directory, RECEIPTS, phase, f"{index:05d}.json")


def _read_receipt(uri: str) -> Receipt:
    advice = "remove it and run the same line again, which makes its shard again"
    content = storage.read_bytes(uri)
    document = unsealed(content, parse_object(content, uri, advice), uri, advice)
    run, _, phase, name = uri.split("/")[-4:]
    of = (run, phase, name.removesuffix(".json"))
    names = (document.get("run", run), document.get("phase", phase), f"{document.get('index')!s:0>5}")
    if names != of:
        raise UserError(f"got {uri}, the receipt of {'/'.join(map(str, names))}: it was exchanged; {advice}")
    try:
        return _receipt(document)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"got {uri}, which is no receipt of a shard ({type(error).__name__}: {error}); {advice}"
        ) from error


def _receipt(document: dict[str, Any]) -> Receipt:
    made = {name: tuple(Shard(**shard) for shard in documents) for name, documents in document["shards"].items()}
    return Receipt(index=document["index"], shards=made, dropped=document["dropped"], facts=document["facts"])


def _finished(directory: str, phase: str, tasks: int) -> dict[int, Receipt]:
    """The valid receipts of an interrupted run, by task: every file that a receipt names exists at its size.

    It lists the receipts once and each dataset of the receipts once, and makes no request per task, so that a new run
    of a million shards starts at once.
    """
    folder = storage.join(directory, RECEIPTS, phase)
    # files of a killed write have another ending
    uris = [storage.join(folder, name) for name, _ in storage.list_files(folder) if name.endswith(".json")]
    with ThreadPoolExecutor(READ_THREADS) as pool:
        receipts = list(pool.map(_read_receipt, uris))
    datasets = {dataset for receipt in receipts for dataset in receipt.shards}
    sizes = {
        f"{dataset}/{name}": size
        for dataset in datasets
        for name, size in storage.list_files(storage.join(directory, dataset))
    }
    return {
        receipt.index: receipt
        for receipt in receipts
        if receipt.index < tasks
        and all(sizes.get(shard.name) == shard.bytes for listed in receipt.shards.values() for shard in listed)
    }
