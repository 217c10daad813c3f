"""Files from outside -> documents with ids: JSONL, Parquet, or directories of text.

One document a line, a row, or a file. What cannot be read is a counted reject. Cost: reading the input once.
"""

from dataclasses import dataclass
from fnmatch import fnmatch

import pyarrow as pa

from data import sources
from pipelines.inputs import ExternalFile
from pipelines.shard_map import Part, ShardOutput, dataset_of, map_shards, total_dropped
from pipelines.stage import Context, Outcome, Read

VERSION = 1
WRITES = ("text", "rejects")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which files, and how they are read."""

    source: str = "text"
    """name of the source, kept with every document"""
    include: tuple[str, ...] = ("*.jsonl", "*.jsonl.gz", "*.jsonl.zst", "*.parquet", "*.txt", "*.md", "*.rst", "*.py")
    """patterns of the names to read, relative to what was given (* crosses folders)"""
    exclude: tuple[str, ...] = ()
    """patterns of the names to leave out"""
    text_field: str = "text"
    """field (JSONL) or column (Parquet) that holds the text"""
    shard_bytes: int = 64 * 2**20
    """input bytes that go to one shard of output, at least (whole files)"""

    def __post_init__(self) -> None:
        if self.shard_bytes < 1:
            raise ValueError(f"shard_bytes is {self.shard_bytes}; at least 1, usually some 64 MiB")
        if not self.source:
            raise ValueError("source is empty; give the source a name")


def selected(config: Config, name: str) -> bool:
    """Whether the file of that relative name is read."""
    included = any(fnmatch(name, pattern) for pattern in config.include)
    return included and not any(fnmatch(name, pattern) for pattern in config.exclude)


READS = {"input": Read(help="files, directories or globs of text", many=True, select=selected)}


@dataclass(frozen=True)
class _Collect:
    source: str
    text_field: str

    def __call__(self, files: tuple[ExternalFile, ...]) -> ShardOutput:
        tables = [sources.collect_file(self.source, file.name, file.uri, self.text_field) for file in files]
        text = pa.concat_tables([table for table, _ in tables])
        rejects = pa.concat_tables([table for _, table in tables])
        counts = rejects["reason"].value_counts().to_pylist()
        return ShardOutput(
            parts={"text": Part(table=text), "rejects": Part(table=rejects)},
            dropped={count["values"]: count["counts"] for count in counts},
            facts={"text_bytes": sum(len(value.encode()) for value in text["text"].to_pylist())},
        )


def run(context: Context, config: Config) -> Outcome:
    """Raises ValueError where no document is left at all."""
    groups: list[list[ExternalFile]] = [[]]
    for file in context.input("input").files:
        if sum(one.bytes for one in groups[-1]) >= config.shard_bytes:
            groups.append([])
        groups[-1].append(file)
    receipts = map_shards(
        context, "collect", [tuple(group) for group in groups], _Collect(config.source, config.text_field)
    )
    text = dataset_of(receipts, "text", text_bytes=sum(receipt.facts["text_bytes"] for receipt in receipts))
    dropped = total_dropped(receipts)
    if not text.rows:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "no records at all"
        raise ValueError(f"the input is an empty corpus: 0 documents ({reasons}); give --input files that hold text")
    return Outcome(datasets={"text": text, "rejects": dataset_of(receipts, "rejects")}, dropped=dropped)
