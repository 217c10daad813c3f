"""Inputs of a stage, resolved: a dataset of an earlier run, by reference or path, or files from outside, by content.

References: `stage/fingerprint`, `stage/fingerprint:dataset`, `train_model/fingerprint@step`, or the path of a run's
directory (with the same suffixes). Files from outside are fingerprinted by their sorted (relative name, size, sha256).
On gs://, generation and crc32c take the place of sha256. The location of the files is not hashed.
"""

import functools
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from data import storage
from data.manifest import MANIFEST_NAME, Dataset, Manifest, listed, read_manifest
from pipelines.engine.config import digest, no_such
from pipelines.engine.errors import UserError
from pipelines.engine.registry import stage_names


@dataclass(frozen=True, kw_only=True)
class Read:
    """One named input of a stage."""

    help: str
    """short description of the input"""
    dataset: str | None = None
    """name of the dataset that the input takes from a run; None: the input takes files from outside"""
    file_allowed: bool = False
    """whether a plain file from outside may replace the dataset (a tokenizer's .model)"""
    many: bool = False
    """whether the input takes several runs"""
    optional: bool = False
    """whether the stage can run without the input"""
    select: Callable[[Any, str], bool] | None = None
    """(config, relative name) -> whether a file from outside belongs to the input; None: every file does"""
    exclude: Callable[[Any, str], bool] | None = None
    """(config, relative name) -> whether the user leaves the file out, or, if the name ends in /, the whole folder"""

    @property
    def external(self) -> bool:
        return self.dataset is None


DEFAULT_ROOT = "./runs"
AGAIN = "file given twice"
"""kind of a file that two of the given paths name"""
REFERENCE = re.compile(
    r"^(?P<stage>[a-z_]+)/(?P<fingerprint>[0-9a-f]{16})(?:@(?P<step>\d{1,18}))?(?::(?P<dataset>\w+))?$"
)
SUFFIXED_PATH = re.compile(r"^(?P<path>.*?)(?:@(?P<step>\d{1,18}))?(?::(?P<dataset>\w+))?$", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class ExternalFile:
    """A file from outside."""

    name: str
    """name relative to the directory or glob of the command line"""
    uri: str
    bytes: int
    content: str
    """sha256 of the file; on gs:// its generation and crc32c"""

    @property
    def pinned(self) -> storage.Pinned:
        """The URI, which whoever reads it finds only these bytes under."""
        return storage.Pinned(self.uri, self.content)


@dataclass(frozen=True, kw_only=True)
class Input:
    """One resolved input."""

    reference: str
    """reference that is hashed: `stage/fingerprint[@step]:dataset`, or `content:<digest>` for files from outside"""
    given: str
    """text of the user with absolute paths, which `--config` uses again; for files from outside a JSON list"""
    directory: str = ""
    """URI of the run that the input refers to; empty for files from outside"""
    dataset: str = ""
    step: int | None = None
    files: tuple[ExternalFile, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    """(kind, path) of what the given paths name besides regular files; not hashed"""

    @property
    def external(self) -> bool:
        return not self.directory

    @functools.cached_property
    def manifest(self) -> Manifest:
        """The manifest of the run that the input refers to. Raises UserError if that run has not finished."""
        manifest = read_manifest(self.directory)
        if manifest is None:
            raise UserError(
                f"got {self.directory} without {MANIFEST_NAME}, so that run has not finished; run it to its end first"
            )
        return manifest

    @property
    def data(self) -> Dataset:
        """The dataset that the input names. Raises UserError if the run has no dataset of that name."""
        if self.dataset not in self.manifest.datasets:
            raise UserError(f"{self.directory}: {no_such('dataset', self.dataset, self.manifest.datasets)}")
        return self.manifest.datasets[self.dataset]

    def uris(self) -> list[str]:
        """The URIs of all files of the input, in order, pinned to the bytes that were fingerprinted or listed."""
        if self.external:
            return [file.pinned for file in self.files]
        return [listed(self.directory, shard) for shard in self.data.shards]

    def content(self) -> str:
        """A digest of the bytes themselves, independent of the run that wrote them."""
        if self.external:
            return self.reference
        return "content:" + digest([(shard.name, shard.sha256) for shard in self.data.shards], 32)


def resolve(text: str, read: Read, root: str, select: Callable[[str], bool] | None = None) -> Input:
    """Turns the text of the user into an Input. Raises UserError if there is no such run, dataset, step or file."""
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
            f"got {text!r}, which is no run and no path; give stage/fingerprint[:dataset] of a run under {root}, or "
            f"the path of a run's directory"
        )
    if not storage.is_directory(directory):
        raise UserError(
            f"got the file {text!r}; this input takes the dataset {read.dataset!r} of a finished run, and `run "
            "collect_text --input` makes a run from text files"
        )
    return _run_input(directory, match, read.dataset, text)


def run_reference(stage: str, fingerprint: str, dataset: str, step: int | None = None) -> str:
    return f"{stage}/{fingerprint}{'' if step is None else f'@{step}'}:{dataset}"


def refuse_other_stage(manifest: Manifest, stage: str, directory: str) -> None:
    """Raises UserError for a manifest of another stage than the one that its folder stands for."""
    if manifest.stage != stage:
        raise UserError(
            f"got a manifest of the stage {manifest.stage!r} in {directory}, the folder of a run of {stage!r}; remove "
            f"the folder, and run {stage} again"
        )


def _run_input(directory: str, match: re.Match[str], dataset: str, given: str) -> Input:
    manifest = read_manifest(directory)
    if manifest is None:
        raise UserError(
            f"got {given!r}, but {directory} has no {MANIFEST_NAME} and is no finished run; `python -m pipelines list "
            f"--runs` lists the runs"
        )
    if "stage" in match.groupdict():
        refuse_other_stage(manifest, match["stage"], directory)
    name = match["dataset"] or dataset
    if name not in manifest.datasets:
        raise UserError(f"{given!r}: {no_such('dataset', name, manifest.datasets)}")
    if name != dataset:  # held-out rows have the schema of training rows, and must never become them
        raise UserError(
            f"got {given!r}, the dataset {name!r}; this input takes the dataset {dataset!r}, so give :{dataset}"
        )
    step = None if match["step"] is None else int(match["step"])
    if step is not None and step not in manifest.datasets[name].facts.get("steps", []):
        steps = manifest.datasets[name].facts.get("steps", [])
        raise UserError(
            f"got {given!r}, but there is no checkpoint of step {step}; the checkpoints are of steps: "
            f"{', '.join(map(str, steps)) or 'none'}"
        )
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


def external_input(
    paths: Sequence[str], select: Callable[[str], bool] | None, exclude: Callable[[str], bool] | None = None
) -> Input:
    """Files, directories and globs from outside, as one input.

    A file's name is relative to the given directory. With several paths, each directory's own name stands before it.
    Paths that end alike have the fewest folders above before their names that tell them apart.
    What is not selected is listed as left out. What is excluded is not: somebody has asked for that. A folder is asked
    about by its name with a / behind it.
    Raises UserError if a path is missing or no file is left.
    """
    by_place: dict[str, tuple[str, str, int]] = {}  # place -> name, URI, bytes: a file that is given twice counts once
    passed_over: list[str] = []
    left_out: list[tuple[str, str]] = []
    names = _told_apart(paths)
    for path in paths:
        is_folder = storage.is_directory(path)
        folder = names[path] + "/" if is_folder and len(paths) > 1 else ""
        listing = _find(path, _entered(exclude, folder))
        left_out += listing.left_out
        for below, uri, size in listing.files:
            name = folder + below if is_folder or storage.is_glob(path) else names[path]
            if exclude is not None and exclude(name):
                passed_over.append(name)
                continue
            # what is given is read, hidden or not
            asked = _shown(folder) + below if is_folder or storage.is_glob(path) else _shown(name)
            if select is not None and not select(asked):
                passed_over.append(name)
                left_out.append((f"{os.path.splitext(name)[1] or 'other'} file", uri))
                continue
            if not _is_text(name):
                raise UserError(
                    f"got the file {uri!r}, whose name is not UTF-8; rename it, or leave it out with --exclude"
                )
            entry, place = (name, uri, size), _place(uri)
            if (before := by_place.setdefault(place, entry)) is not entry:
                left_out.append((AGAIN, uri))
                by_place[place] = min(before, entry, key=_longest_name)  # the same in whatever order they are given
    files: dict[str, ExternalFile] = {}
    for name, uri, size in by_place.values():
        if name in files:
            raise UserError(
                f"got {files[name].uri} and {uri} with the same name {name!r}; give the folder above both instead"
            )
        files[name] = ExternalFile(name=name, uri=uri, bytes=size, content=storage.content(uri))
    if not files:
        problem = f"no file to read in {', '.join(paths)}"
        if not passed_over and left_out:
            raise UserError(f"{problem}: {left_out_line(left_out)}; give regular files, or the target of a link")
        if not passed_over:
            raise UserError(f"{problem}: no file is there; give files, directories or globs that match files")
        raise UserError(
            f"{problem}: the stage does not read any of the {len(passed_over):,} files there, such as "
            f"{min(passed_over)!r}; `show` of the stage says which it reads, and patterns of --include and --exclude, "
            "where it has them, choose others"
        )
    ordered = tuple(files[name] for name in sorted(files))
    return Input(
        reference="content:" + digest([(file.name, file.bytes, file.content) for file in ordered], 32),
        given=json.dumps([storage.absolute(path) for path in paths]),
        files=ordered,
        left_out=tuple(sorted(set(left_out))),
    )


def _shown(name: str) -> str:
    """The name without the dots that hide it."""
    return "/".join(part.lstrip(".") or part for part in name.split("/"))


def _longest_name(entry: tuple[str, str, int]) -> tuple[int, str]:
    return -entry[0].count("/"), entry[0]


MOST_KINDS = 3
"""kinds of files that a line names; a folder of programs has a hundred"""


def left_out_line(left_out: Sequence[tuple[str, str]]) -> str:
    """What is no file to read, counted by kind, with an example of each kind.

    Of files that the stage does not choose, the most frequent kinds are named and the others are counted together.
    """
    kinds: dict[str, list[str]] = {}
    for kind, path in left_out:
        kinds.setdefault(kind, []).append(path)
    files = sorted((kind for kind in kinds if kind.endswith(" file")), key=lambda kind: (-len(kinds[kind]), kind))
    shown = [*sorted(kinds.keys() - files), *files[:MOST_KINDS]]
    counts = [f"{len(kinds[kind]):,} {_plural(kind, len(kinds[kind]))} ({kinds[kind][0]})" for kind in shown]
    if rest := files[MOST_KINDS:]:
        number = sum(len(kinds[kind]) for kind in rest)
        counts.append(f"{number:,} file{'s' * (number > 1)} of {len(rest)} other kind{'s' * (len(rest) > 1)}")
    return f"left out {', '.join(counts)}"


def _plural(kind: str, number: int) -> str:
    if number == 1:
        return kind
    return kind.replace("file", "files") if kind == AGAIN else f"{kind}s"


def left_out_lines(inputs: Mapping[str, Sequence[Input]]) -> list[str]:
    """A line for each input with something left out."""
    lines = ((name, source.left_out) for name, sources in inputs.items() for source in sources)
    return [f"--{name}: {left_out_line(left_out)}" for name, left_out in lines if left_out]


def _told_apart(paths: Sequence[str]) -> dict[str, str]:
    """Path -> its last name, after as many of the folders above as tell it from other paths that end alike."""
    parts = {path: PurePosixPath(storage.absolute(path)).parts for path in paths}
    depths = dict.fromkeys(paths, 1)
    while True:
        names = {path: "/".join(parts[path][-depths[path] :]) for path in paths}
        ends: dict[str, set[tuple[str, ...]]] = {}
        for path, name in names.items():
            ends.setdefault(name, set()).add(parts[path])
        alike = [path for path, name in names.items() if len(ends[name]) > 1 and depths[path] < len(parts[path]) - 1]
        if not alike:
            return names
        for path in alike:
            depths[path] += 1


def _place(uri: str) -> str:
    """The same text for the same file, however it is spelled or linked."""
    path = storage.local_path(uri)
    return uri if path is None else os.path.realpath(path)


def _is_text(name: str) -> bool:
    """Whether the name can be stored. Python represents the bytes of a name that is not UTF-8 as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _entered(exclude: Callable[[str], bool] | None, folder: str) -> Callable[[str], bool]:
    """Whether a folder is looked into, by its name below a given path: unless the stage excludes it."""
    return lambda below: exclude is None or not exclude(folder + below)


def _find(path: str, enter: Callable[[str], bool]) -> storage.Found:
    listing = storage.find_files(path, enter)
    if listing.files or listing.left_out or storage.exists(path):
        return listing
    raise UserError(f"no file or directory {path!r}; give an existing path, a glob in quotes, or a gs:// URI")
