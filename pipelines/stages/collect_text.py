"""Turns files into documents with ids: JSON, JSONL, Parquet, web archives (WARC, WET), or directories of text.

A line, a row, a page or a file is one document. A record that cannot be read becomes a counted reject. A file that
cannot be read fails the stage; with `--on-bad-file skip` it is skipped and counted. Cost: one read of the input (of
Parquet two, the second to hash it), in bounded memory.
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

VERSION = 5
WRITER = shards.WRITER
WRITES = ("text", "rejects")
DECLARES = Declaration(
    cost=TextCost(speed=core_speed(21), reads="raw", leaves="raw"),
    own_text=OwnText(input="input", config=lambda config: replace(config, source="text", exclude=())),
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which files are read, and how."""

    source: str = "text"
    """Name of the source, kept with every document."""
    include: tuple[str, ...] = (
        "*.jsonl", "*.jsonl.*", "*.ndjson", "*.ndjson.*", "*.json", "*.json.gz", "*.json.zst", "*.json.bz2",
        "*.json.xz", "*.parquet", "*.warc", "*.warc.gz", "*.wet", "*.wet.gz", "*.html", "*.htm", "*.xhtml", "*.html.gz",
        "*.txt", "*.txt.gz", "*.txt.zst", "*.txt.bz2", "*.txt.xz", "*.md", "*.rst", "*.py",
    )  # fmt: skip
    """Patterns of the file names to read, relative to the given directory, in any case (* crosses
    folders)."""
    exclude: tuple[str, ...] = absent(())
    """Patterns of the file names to leave out."""
    hidden: bool = absent(False)
    """Reading of hidden files too: those whose name, or the name of a folder around them, begins with a dot."""
    text_field: str = "text"
    """Field (JSONL; a.b is field b inside field a) or column (Parquet) that holds the text."""
    metadata_fields: tuple[str, ...] = absent(())
    """Fields or columns kept as metadata; empty: all fields of JSONL, no columns of Parquet."""
    main_content: bool = True
    """Removal of menus and other boilerplate from web pages."""
    fix_encoding: bool = absent(False)
    """Repair of mojibake with ftfy; False: texts stay exactly as they are in the files."""
    on_bad_file: Literal["fail", "skip"] = "fail"
    """Treatment of a file that is damaged or has another format than its name says: `fail` ends the stage with an
    error, `skip` counts one reject."""
    max_document_bytes: int = 128 * 2**20
    """Longest record that is read, in bytes; a longer record becomes a reject."""
    shard_bytes: int = 64 * 2**20
    """Size of the text in one shard of output, in bytes, about; small files share a shard."""

    def __post_init__(self) -> None:
        for name, usual in (("shard_bytes", "64 MiB"), ("max_document_bytes", "128 MiB")):
            if not 1 <= getattr(self, name) <= 1 << 30:
                raise UserError(f"{name} is {getattr(self, name)}; allowed are 1 to 2**30 (default: {usual})")
        if not self.source:
            raise UserError("source is empty; give the source a name")


def selected(config: Config, name: str) -> bool:
    """Whether the file with this relative name is read."""
    if not config.hidden and any(part.startswith(".") for part in name.split("/")):
        return False
    return _any_of(config.include).match(name) is not None


def excluded(config: Config, name: str) -> bool:
    """Whether `--exclude` names the file with this relative name, or all files of a folder, whose name ends in /."""
    patterns = config.exclude
    if name.endswith("/"):  # a pattern that ends in * and matches a folder matches all that is below it
        patterns = tuple(pattern for pattern in patterns if pattern.endswith("*"))
    return _any_of(patterns).match(name) is not None


@functools.cache
def _any_of(patterns: tuple[str, ...]) -> re.Pattern[str]:
    """A regular expression that matches the names that any of the shell patterns matches; none without patterns."""
    return re.compile("|".join(map(fnmatch.translate, patterns)) or r"(?!)", re.IGNORECASE)


READS = {"input": Read(help="files, directories or globs of text", many=True, select=selected, exclude=excluded)}


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
        named = [(file.name, file.pinned) for file in files]
        for batch in sources.collect(config.source, named, options, config.shard_bytes):
            counts = batch.rejects["reason"].value_counts().to_pylist()
            yield ShardOutput(
                parts={"text": Part(table=batch.text), "rejects": Part(table=batch.rejects)},
                dropped={count["values"]: count["counts"] for count in counts},
                facts={
                    "text_bytes": schema.text_bytes(batch.text["text"]),
                    "fixed": batch.fixed,
                    "broken": batch.broken,
                    "passed_over": batch.passed_over,
                },
            )


def run(context: Context, config: Config) -> Outcome:
    """Raises UserError if no document is left."""
    groups: list[list[ExternalFile]] = [[]]
    held = 0
    for file in context.input("input").files:
        if held >= config.shard_bytes:
            groups.append([])
            held = 0
        groups[-1].append(file)
        held += file.bytes
    receipts = map_shards(context, "collect", [tuple(group) for group in groups], _Collect(config))
    names = ("text_bytes", "fixed", "broken", "passed_over")
    facts = {name: sum(receipt.facts[name] for receipt in receipts) for name in names}
    text = dataset_of(receipts, "text", **facts)
    dropped = total_dropped(receipts)
    if not text.rows:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "no records at all"
        raise UserError(f"got an empty corpus: 0 documents ({reasons}); give --input files that hold text")
    return Outcome(datasets={"text": text, "rejects": dataset_of(receipts, "rejects")}, dropped=dropped)
