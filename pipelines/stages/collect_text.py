"""Files from outside -> documents with ids: JSONL, Parquet, web archives (WARC, WET), or directories of text.

One document a line, a row, a page or a file. A record that cannot be read is a counted reject; a file that cannot be
fails the stage, or is skipped and counted where that is asked for. Cost: reading the input once, in bounded memory.
"""

import fnmatch
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from data import schema, shards, sources
from data.absent import absent
from pipelines.account.costs import TextCost, core_speed
from pipelines.engine.declaration import Declaration, OwnText
from pipelines.engine.errors import UserError
from pipelines.engine.inputs import ExternalFile, Read
from pipelines.engine.shard_map import Part, ShardOutput, dataset_of, map_shards, total_dropped
from pipelines.engine.stage import Context, Outcome

VERSION = 3
WRITER = shards.WRITER
WRITES = ("text", "rejects")
DECLARES = Declaration(
    cost=TextCost(speed=core_speed(21), reads="raw", leaves="raw"),
    own_text=OwnText(input="input", config=lambda config: replace(config, source="text", exclude=())),
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which files, and how they are read."""

    source: str = "text"
    """name of the source, kept with every document"""
    include: tuple[str, ...] = (
        "*.jsonl", "*.jsonl.gz", "*.jsonl.zst", "*.parquet", "*.warc", "*.warc.gz", "*.wet", "*.wet.gz",
        "*.txt", "*.md", "*.rst", "*.py",
    )  # fmt: skip
    """patterns of the names to read, relative to what was given (* crosses folders)"""
    exclude: tuple[str, ...] = absent(())
    """patterns of the names to leave out"""
    text_field: str = "text"
    """field (JSONL, a.b for a field inside another) or column (Parquet) that holds the text"""
    metadata_fields: tuple[str, ...] = absent(())
    """fields or columns kept as metadata; empty: all fields of JSONL, no columns of Parquet"""
    main_content: bool = True
    """of web pages, leave out menus and other boilerplate"""
    fix_encoding: bool = absent(False)
    """repair mojibake (ftfy); otherwise a text is exactly what was there"""
    on_bad_file: Literal["fail", "skip"] = "fail"
    """what becomes of a file that is damaged or not what its name says: an error, or one counted reject"""
    max_document_bytes: int = 128 * 2**20
    """longest record that is read, in bytes; a longer one is a reject"""
    shard_bytes: int = 64 * 2**20
    """text that makes a shard of output, in bytes, about; small files share one"""

    def __post_init__(self) -> None:
        for name, usual in (("shard_bytes", "64 MiB"), ("max_document_bytes", "128 MiB")):
            if not 1 <= getattr(self, name) <= 1 << 30:
                raise UserError(f"{name} is {getattr(self, name)}; allowed are 1 to 2**30, usually {usual}")
        if not self.source:
            raise UserError("source is empty; give the source a name")


def selected(config: Config, name: str) -> bool:
    """Whether the file of that relative name is read."""
    included = _any_of(config.include).match(name) is not None
    return included and _any_of(config.exclude).match(name) is None


@functools.cache
def _any_of(patterns: tuple[str, ...]) -> re.Pattern[str]:
    """What matches a name as one of the shell patterns does; of none, nothing."""
    return re.compile("|".join(map(fnmatch.translate, patterns)) or r"(?!)")


READS = {"input": Read(help="files, directories or globs of text", many=True, select=selected)}


@dataclass(frozen=True)
class _Collect:
    config: Config

    def __call__(self, files: tuple[ExternalFile, ...]) -> Iterator[ShardOutput]:
        config = self.config
        options = sources.Options(
            text_field=config.text_field,
            metadata_fields=config.metadata_fields,
            max_document_bytes=config.max_document_bytes,
            main_content=config.main_content,
            fix_encoding=config.fix_encoding,
            skip_bad_files=config.on_bad_file == "skip",
        )
        named = [(file.name, file.uri) for file in files]
        for batch in sources.collect(config.source, named, options, config.shard_bytes):
            counts = batch.rejects["reason"].value_counts().to_pylist()
            yield ShardOutput(
                parts={"text": Part(table=batch.text), "rejects": Part(table=batch.rejects)},
                dropped={count["values"]: count["counts"] for count in counts},
                facts={
                    "text_bytes": schema.text_bytes(batch.text["text"]),
                    "fixed": batch.fixed,
                    "passed_over": batch.passed_over,
                },
            )


def run(context: Context, config: Config) -> Outcome:
    """Raises UserError where no document is left at all."""
    groups: list[list[ExternalFile]] = [[]]
    held = 0
    for file in context.input("input").files:
        if held >= config.shard_bytes:
            groups.append([])
            held = 0
        groups[-1].append(file)
        held += file.bytes
    receipts = map_shards(context, "collect", [tuple(group) for group in groups], _Collect(config))
    facts = {name: sum(receipt.facts[name] for receipt in receipts) for name in ("text_bytes", "fixed", "passed_over")}
    text = dataset_of(receipts, "text", **facts)
    dropped = total_dropped(receipts)
    if not text.rows:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "no records at all"
        raise UserError(f"the input is an empty corpus: 0 documents ({reasons}); give --input files that hold text")
    return Outcome(datasets={"text": text, "rejects": dataset_of(receipts, "rejects")}, dropped=dropped)
