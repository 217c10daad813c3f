"""What it costs to check what is read: `python -m tests.benchmarks checks`. The goal is 2 % of a stage at most.

The text is Python's standard library. Each row is the work of one task of a stage, with the write of its output, on
input that is pinned (external files) or listed (shards), against the same work on plain URIs. The two take turns; CPU
seconds are compared, because other work on the machine does not count in them, and the least of several turns is taken.
"""

import functools
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from data import storage
from data.loader import SequenceReader, StepLoader
from data.manifest import listed
from data.order import Order
from data.shards import parquet_bytes, read_table, write_table
from data.tokenizer import train_tokenizer
from pipelines.engine.inputs import ExternalFile
from pipelines.engine.shard_map import ShardOutput
from pipelines.stages import collect_text, filter_text, tokenize_text
from tests.benchmarks import million_rows
from tests.benchmarks.step_speed import Row
from training.checkpoints import digests, save_load

TURNS = 5
TEXT_BYTES = 24_000_000
STEPS = 1000
GOAL = 0.02


def rows() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        paths = write_files(Path(folder) / "files")
        contents = {path: storage.content(str(path)) for path in paths}
        collect = collect_text._Collect(collect_text.Config(include=("*",), shard_bytes=1 << 30))

        def collected(pin: bool) -> list[ShardOutput]:
            files = tuple(
                Unpinned(name=path.name, uri=str(path), bytes=0, content=contents[path])
                if not pin
                else ExternalFile(name=path.name, uri=str(path), bytes=0, content=contents[path])
                for path in paths
            )
            return [written(output) for output in collect(files)]

        yield compared("collect_text, files hashed while read", lambda: collected(True), lambda: collected(False))
        table = collected(True)[0].parts["text"].table
        assert table is not None
        shard = write_table(folder, "text/00000.parquet", table)
        uri = listed(folder, shard)
        filtered = filter_text._Filter(filter_text.Config())
        yield compared_reads("filter_text without rules", filtered, uri)
        (Path(folder) / "tokenizer.model").write_bytes(train_tokenizer(table["text"].to_pylist()[::20], 8192))
        model = str(Path(folder) / "tokenizer.model")
        tokenize = tokenize_text._Tokenize(tokenize_text.Config(), model, storage.content(model))
        yield compared_reads("tokenize_text", tokenize, uri)
        yield from reads_of_row_groups(folder)
        yield from saves(Path(folder))


class Unpinned(ExternalFile):
    """A file of whose bytes nothing is checked."""

    @property
    def pinned(self) -> Any:
        return self.uri


def write_files(folder: Path) -> list[Path]:
    """Some files of text: one module in each, of the standard library."""
    folder.mkdir()
    size = 0
    for number, path in enumerate(sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py"))):
        content = path.read_bytes()
        size += len(content)
        if size > TEXT_BYTES:
            break
        (folder / f"{number:05d}.txt").write_bytes(content)
    return sorted(folder.iterdir())


def written(output: ShardOutput) -> ShardOutput:
    """The output, after its tables were turned into bytes, as the sink of a stage does."""
    for part in output.parts.values():
        if part.table is not None:
            parquet_bytes(part.table, part.row_group_rows, part.opaque_columns)
    return output


def compared_reads(what: str, work: Callable[[str], ShardOutput], uri: str) -> Row:
    plain = str(uri)
    return compared(f"{what}, a listed shard", lambda: written(work(uri)), lambda: written(work(plain)))


def reads_of_row_groups(folder: str) -> Iterator[Row]:
    """The loader over row groups of the shards of "A million packed rows"."""
    shards = [million_rows.write_shard(folder, number) for number in range(million_rows.SHARDS)]
    uris = [listed(folder, shard) for shard in shards]

    def load(chosen: Sequence[str]) -> None:
        order = Order([million_rows.dataset()], million_rows.PHASES, 16, 0)
        loader = StepLoader(order, [SequenceReader(chosen, million_rows.GROUP)])
        for step in range(STEPS):
            loader.load(step)

    plain = [str(uri) for uri in uris]
    what = f"{STEPS:,} steps of 16 rows by row groups"
    yield compared(f"{what}, footers compared", lambda: load(uris), lambda: load(plain))
    read = functools.partial(read_table, columns=["documents"])
    yield compared("one column of a shard, footer compared", lambda: read(uris[0]), lambda: read(plain[0]))
    yield compared("all columns of a shard, sha256 compared", lambda: read_table(uris[0]), lambda: read_table(plain[0]))


def saves(folder: Path) -> Iterator[Row]:
    """A checkpoint with digests of its tensors, against one without."""
    weights = {f"layer.{number}": torch.randn(1024, 2048) for number in range(16)}
    numbers = iter(range(1 << 20))

    def save(digest: Callable[[torch.Tensor], dict[str, Any]]) -> None:
        with mock.patch.object(save_load, "tensor_digest", digest):
            save_load.save_checkpoint(
                str(folder / "saved"), step=next(numbers), weights=weights, optimizer=None, state={}, tables={}
            )

    what = "save 134 MB of weights, digests in pieces"
    yield compared(what, lambda: save(digests.tensor_digest), lambda: save(lambda _: {}))


def compared(what: str, checked: Callable[[], Any], plain: Callable[[], Any]) -> Row:
    times: dict[str, list[float]] = {"checked": [], "plain": []}
    for _ in range(TURNS):
        for name, call in (("plain", plain), ("checked", checked)):
            began = time.process_time()
            call()
            times[name].append(time.process_time() - began)
    best = {name: min(taken) for name, taken in times.items()}
    more = best["checked"] / best["plain"] - 1
    return Row(
        what=what,
        ours=f"{best['checked']:.3f} CPU s",
        rival=f"unchecked: {best['plain']:.3f} CPU s",
        ratio=f"{100 * more:+.1f} % (goal: {100 * GOAL:.0f} %)",
    )
