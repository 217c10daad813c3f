"""The manifest: a list of what one run of one stage made. It is a pure function of config and inputs.

It is written last and created exclusively, so a directory without `_MANIFEST.json` holds nothing that a reader may use.
A manifest lists datasets, each as a list of shards with their sizes and hashes. Readers ignore files that it does not
list. Times, hosts and versions are in `_RUN.json` beside it.

What is read is checked against the manifest: `listed(directory, shard)` is a URI that carries the manifest's entry, and
`data/shards.py` compares size, rows, schema and hashes. The manifest holds its own sha256 (`data/sealed.py`).
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from data import storage
from data.errors import UserError
from data.sealed import SEAL, seal, unseal

MANIFEST_NAME = "_MANIFEST.json"
RUN_NAME = "_RUN.json"
FORMAT = 2
BEFORE = 1
"""format of earlier manifests, without their own sha256 and without digests of footers; they are still read"""
FINGERPRINT = re.compile("[0-9a-f]{16}")
OUTSIDE = re.compile(r"(^|/)\.\.(/|$)|://|[\x00-\x1f]")
"""parts that no name of a shard has"""


Create = Callable[[str, bytes], None]
"""creates bytes at a URI or raises FileExistsError, as `storage.create_exclusive` does"""


@dataclass(frozen=True, kw_only=True, slots=True)  # a million of them are in memory at once
class Shard:
    """One file of a dataset."""

    name: str
    """path of the file below the stage's directory"""
    rows: int
    """number of rows; 0 for a file that is not a table"""
    bytes: int
    """size of the file, in bytes"""
    tokens: int = 0
    """number of tokens; 0 if rows hold no tokens"""
    sha256: str
    """sha256 of the file's bytes, hex"""
    footer: str | None = None
    """xxh3-64 of a Parquet file's footer, hex, for readers of single row groups; None for other files"""


class ListedUri(storage.Pinned):
    """The URI of a file that a manifest lists, with its entry: readers compare the file with the entry."""

    shard: Shard

    def __new__(cls, uri: str, shard: Shard) -> "ListedUri":
        new = super().__new__(cls, uri, shard.sha256)
        assert isinstance(new, ListedUri)
        new.shard = shard
        return new

    def __getnewargs__(self) -> tuple[Any, ...]:
        return str(self), self.shard

    def refused(self, difference: str) -> UserError:
        return UserError(
            f"{self} is not the file that its manifest lists ({difference}): it is damaged, or was exchanged with "
            "another; remove the run that wrote it and run that again"
        )


def listed(directory: str, shard: Shard) -> ListedUri:
    """The URI of a file of the run in `directory`."""
    return ListedUri(storage.join(directory, shard.name), shard)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A named output of a stage: its shards in order, and facts that readers need before they open one."""

    shards: tuple[Shard, ...]
    """files of the dataset, in the order that defines row numbers"""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """values that readers need: vocab_size, sequence_length, row_group_rows, ..."""

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)

    @property
    def tokens(self) -> int:
        return sum(shard.tokens for shard in self.shards)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a stage made, and from which config and inputs."""

    stage: str
    """name of the stage"""
    version: int
    """the stage's VERSION"""
    fingerprint: str
    """sha256 (hex, 16 digits) over stage, version, writer, input fingerprints and config without absent options"""
    config: Mapping[str, Any]
    """the whole resolved Config"""
    inputs: Mapping[str, Any]
    """input name -> a list of {reference, content}: the name that was given, and a digest of the bytes behind it"""
    datasets: Mapping[str, Dataset]
    """outputs by name"""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """number of rows dropped, by reason"""
    tokenizer_sha256: str | None = None
    """sha256 of the tokenizer whose ids the datasets hold"""
    writer: int | None = None
    """Parquet writer (`data/shards.py::WRITER`) of the shards, if it is part of the fingerprint"""
    setup: Mapping[str, Any] | None = None
    """device, mesh and workers, if the bytes depend on them (train_model, cache_logits)"""

    def to_json(self) -> bytes:
        document = {"format": FORMAT, **asdict(self)}
        for name, dataset in self.datasets.items():
            totals = {"rows": dataset.rows, "bytes": dataset.bytes, "tokens": dataset.tokens}
            document["datasets"][name]["totals"] = totals
        return seal(document)

    @staticmethod
    def from_json(text: bytes, uri: str = "") -> "Manifest":
        """Raises UserError if the text is not a manifest of this format."""
        try:
            document = json.loads(text)
            if (version := document.pop("format")) not in (BEFORE, FORMAT):
                raise KeyError("format")
            if version == FORMAT or SEAL in document:
                unseal(text, document)
            datasets = {
                name: Dataset(shards=tuple(Shard(**shard) for shard in dataset["shards"]), facts=dataset["facts"])
                for name, dataset in document.pop("datasets").items()
            }
            manifest = Manifest(datasets=datasets, **document)
            _check_types(manifest)
            return manifest
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise UserError(
                f"{uri or 'this file'} is not a manifest of format {FORMAT} ({type(error).__name__}: {error}); "
                f"name the directory of a finished run, the one that holds {MANIFEST_NAME}"
            ) from error


def read_manifest(directory: str) -> Manifest | None:
    """The manifest in a run's directory; None if the run has not finished, or never began.

    Raises UserError if the file is damaged, and if the directory is named after another fingerprint.
    """
    uri = storage.join(directory, MANIFEST_NAME)
    try:
        manifest = Manifest.from_json(storage.read_bytes(uri), uri)
    except FileNotFoundError:
        return None
    if is_of_another_run(directory, manifest.fingerprint):
        raise UserError(
            f"got the manifest of {manifest.stage}/{manifest.fingerprint} in the folder {directory}: the folder was "
            f"renamed, or exchanged with another; name it {manifest.fingerprint} again, or remove it"
        )
    return manifest


def is_of_another_run(directory: str, fingerprint: Any) -> bool:
    """Whether a run's directory is named after another fingerprint than the one that a file in it holds."""
    name = directory.rstrip("/").rpartition("/")[2]
    return FINGERPRINT.fullmatch(name) is not None and name != fingerprint


def _check_types(manifest: Manifest) -> None:
    """Raises TypeError, naming the field, unless each value has the type that readers rely on."""
    kinds = {"stage": str, "version": int, "fingerprint": str, "config": dict, "inputs": dict, "dropped": dict}
    for name, kind in kinds.items():
        if type(value := getattr(manifest, name)) is not kind:
            raise TypeError(f"{name} is {value!r:.100}")
    if not FINGERPRINT.fullmatch(manifest.fingerprint):
        raise TypeError(f"fingerprint is {manifest.fingerprint!r}")
    if any(type(count) is not int for count in manifest.dropped.values()):
        raise TypeError(f"dropped is {manifest.dropped!r}")
    for name, entries in manifest.inputs.items():
        if type(entries) is not list or not all(
            type(entry) is dict and type(entry.get("reference")) is type(entry.get("content")) is str
            for entry in entries
        ):
            raise TypeError(f"inputs.{name} is {entries!r:.100}")
    for dataset in manifest.datasets.values():
        if type(dataset.facts) is not dict:
            raise TypeError(f"facts is {dataset.facts!r:.100}")
        for shard in dataset.shards:
            if not type(shard.rows) is type(shard.bytes) is type(shard.tokens) is int or min(
                shard.rows, shard.bytes, shard.tokens
            ) < 0:  # fmt: skip
                raise TypeError(f"rows, bytes or tokens of {shard.name!r} are {shard.rows!r}, {shard.bytes!r}")
            if type(shard.footer) not in (str, type(None)):
                raise TypeError(f"the footer of {shard.name!r} is {shard.footer!r}")
            if type(shard.name) is not str or type(shard.sha256) is not str:
                raise TypeError(f"a shard is {shard.name!r} with sha256 {shard.sha256!r}")
            if shard.name.startswith("/") or OUTSIDE.search(shard.name):
                raise TypeError(f"a shard is named {shard.name!r}, which is not below the run's directory")


def publish_manifest(directory: str, manifest: Manifest, create: Create = storage.create_exclusive) -> bool:
    """Creates the manifest, by `create`. False if another driver has already created the same manifest.

    Raises RuntimeError if the existing manifest differs: the stage is then not the pure function that it must be.
    """
    uri = storage.join(directory, MANIFEST_NAME)
    text = manifest.to_json()
    try:
        create(uri, text)
        return True
    except FileExistsError:
        if storage.read_bytes(uri) == text:
            return False
        raise RuntimeError(
            f"{uri} was published by another driver and differs from the manifest of this run: stage "
            f"{manifest.stage!r} gave two results for one fingerprint, so it is not deterministic; keep the published "
            "manifest, and report this with both _RUN.json files"
        ) from None
