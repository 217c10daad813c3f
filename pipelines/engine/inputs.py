"""What a stage reads, resolved: a dataset of an earlier run, by reference or path, or files from outside, by content.

References: `stage/fingerprint`, `stage/fingerprint:dataset`, `train_model/fingerprint@step`, or the path of a run's
directory (with the same suffixes). Files from outside are fingerprinted by sorted (relative name, size, sha256), on
gs:// by generation and crc32c; where they lie is not hashed.
"""

import functools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from data import storage
from data.manifest import MANIFEST_NAME, Dataset, Manifest, read_manifest
from pipelines.engine.config import digest, no_such
from pipelines.engine.errors import UserError
from pipelines.engine.registry import stage_names


@dataclass(frozen=True, kw_only=True)
class Read:
    """One named input of a stage."""

    help: str
    """what it is, in a few words"""
    dataset: str | None = None
    """name of the dataset it takes from the run it refers to; None for files from outside"""
    file_allowed: bool = False
    """whether a plain file from outside may stand in for the dataset (a tokenizer's .model)"""
    many: bool = False
    """whether it takes several"""
    optional: bool = False
    """whether the stage does without"""
    select: Callable[[Any, str], bool] | None = None
    """(config, relative name) -> whether a file from outside belongs to the input"""

    @property
    def external(self) -> bool:
        return self.dataset is None


DEFAULT_ROOT = "./runs"
REFERENCE = re.compile(
    r"^(?P<stage>[a-z_]+)/(?P<fingerprint>[0-9a-f]{16})(?:@(?P<step>\d{1,18}))?(?::(?P<dataset>\w+))?$"
)
SUFFIXED_PATH = re.compile(r"^(?P<path>.*?)(?:@(?P<step>\d{1,18}))?(?::(?P<dataset>\w+))?$", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class ExternalFile:
    """A file from outside."""

    name: str
    """relative to what was named on the command line"""
    uri: str
    bytes: int
    content: str
    """sha256, or generation and crc32c on gs://"""


@dataclass(frozen=True, kw_only=True)
class Input:
    """One resolved input."""

    reference: str
    """what is hashed: `stage/fingerprint[@step]:dataset`, or `content:<digest>` for files from outside"""
    given: str
    """as the user wrote it, absolute: what a replay uses (of files from outside: a JSON list)"""
    directory: str = ""
    """URI of the run it refers to"""
    dataset: str = ""
    step: int | None = None
    files: tuple[ExternalFile, ...] = ()

    @property
    def external(self) -> bool:
        return not self.directory

    @functools.cached_property
    def manifest(self) -> Manifest:
        """Of the run it refers to. Raises UserError where that run has not finished."""
        manifest = read_manifest(self.directory)
        if manifest is None:
            raise UserError(f"{self.directory} has no {MANIFEST_NAME}: that run has not finished; run it (again) first")
        return manifest

    @property
    def data(self) -> Dataset:
        """The dataset it names. Raises UserError where the run has none of that name."""
        if self.dataset not in self.manifest.datasets:
            raise UserError(f"{self.directory}: {no_such('dataset', self.dataset, self.manifest.datasets)}")
        return self.manifest.datasets[self.dataset]

    def uris(self) -> list[str]:
        """Every file of it, in order."""
        if self.external:
            return [file.uri for file in self.files]
        return [storage.join(self.directory, shard.name) for shard in self.data.shards]

    def content(self) -> str:
        """A digest of the bytes themselves, whatever run they came from."""
        if self.external:
            return self.reference
        return "content:" + digest([(shard.name, shard.sha256) for shard in self.data.shards], 32)


def resolve(text: str, read: Read, root: str, select: Callable[[str], bool] | None = None) -> Input:
    """Turns what the user wrote into an Input. Raises UserError that says what is missing and what would do."""
    if read.external:
        return external_input([text], select)
    assert read.dataset is not None
    if match := REFERENCE.match(text):
        if match["stage"] not in stage_names():
            raise UserError(f"{text!r}: {no_such('stage', match['stage'], stage_names())}")
        return _run_input(storage.join(root, match["stage"], match["fingerprint"]), match, read.dataset, text)
    if read.file_allowed and storage.exists(text) and not storage.is_directory(text):
        return external_input([text], None)
    match = SUFFIXED_PATH.match(text)
    assert match is not None
    directory = storage.absolute(match["path"])
    if not storage.exists(directory):
        raise UserError(
            f"no run and no path {text!r}; give stage/fingerprint[:dataset] of a run under {root}, or the path "
            f"of a run's directory"
        )
    if not storage.is_directory(directory):
        raise UserError(
            f"{text!r} is a file, and this input takes {read.dataset!r} of a finished run; `run collect_text --input` "
            "makes one of files of text"
        )
    return _run_input(directory, match, read.dataset, text)


def run_reference(stage: str, fingerprint: str, dataset: str, step: int | None = None) -> str:
    return f"{stage}/{fingerprint}{'' if step is None else f'@{step}'}:{dataset}"


def _run_input(directory: str, match: re.Match[str], dataset: str, given: str) -> Input:
    manifest = read_manifest(directory)
    if manifest is None:
        raise UserError(
            f"{given!r}: {directory} holds no {MANIFEST_NAME}, so no finished run; `python -m pipelines list "
            f"--runs` shows those that have"
        )
    name = match["dataset"] or dataset
    if name not in manifest.datasets:
        raise UserError(f"{given!r}: {no_such('dataset', name, manifest.datasets)}")
    if name != dataset:  # held-out rows have the schema of training rows, and must never become them
        raise UserError(f"{given!r}: this input takes {dataset!r}, got {name!r}")
    step = None if match["step"] is None else int(match["step"])
    if step is not None and step not in manifest.datasets[name].facts.get("steps", []):
        steps = manifest.datasets[name].facts.get("steps", [])
        raise UserError(f"{given!r}: no checkpoint of step {step}; there are {', '.join(map(str, steps)) or 'none'}")
    return Input(
        reference=run_reference(manifest.stage, manifest.fingerprint, name, step),
        given=given if REFERENCE.match(given) else _suffixed(directory, match),
        directory=directory,
        dataset=name,
        step=step,
    )


def _suffixed(directory: str, match: re.Match[str]) -> str:
    step = f"@{match['step']}" if match["step"] else ""
    return directory + step + (f":{match['dataset']}" if match["dataset"] else "")


def external_input(paths: Sequence[str], select: Callable[[str], bool] | None) -> Input:
    """Files, directories and globs from outside, as one input.

    A file's name is relative to the directory that was given; of several directories, each puts its own name before.
    Raises UserError where one is missing or nothing is left.
    """
    files: dict[str, ExternalFile] = {}
    passed_over: list[str] = []
    for path in paths:
        several = len(paths) > 1 and storage.is_directory(path)
        folder = PurePosixPath(path.rstrip("/")).name + "/" if several else ""
        for below, uri, size in _files_of(path):
            name = folder + below
            if select is not None and not select(name):
                passed_over.append(name)
                continue
            if not _is_text(name):
                raise UserError(f"the name of the file {uri!r} is not UTF-8; rename it, or leave it out with --exclude")
            if name in files and files[name].uri != uri:
                raise UserError(
                    f"{files[name].uri} and {uri} have one name, {name!r}; give the folder above both instead"
                )
            files[name] = ExternalFile(name=name, uri=uri, bytes=size, content=storage.content(uri))
    if not files:
        problem = f"no file to read in {', '.join(paths)}"
        if not passed_over:
            raise UserError(f"{problem}: there is none")
        raise UserError(
            f"{problem}: --include and --exclude leave none of {len(passed_over):,} (one is {min(passed_over)!r}); "
            "name a pattern that it matches, as in --include '*.txt'"
        )
    ordered = tuple(files[name] for name in sorted(files))
    return Input(
        reference="content:" + digest([(file.name, file.bytes, file.content) for file in ordered], 32),
        given=json.dumps([storage.absolute(path) for path in paths]),
        files=ordered,
    )


def _is_text(name: str) -> bool:
    """Whether the name can be stored: Python gives the bytes of a name that is not UTF-8 as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _files_of(path: str) -> list[tuple[str, str, int]]:
    if files := storage.files_of(path):
        return files
    if storage.exists(path):
        return []
    raise UserError(f"no file or directory {path!r}; give an existing path, a glob in quotes, or a gs:// URI")
