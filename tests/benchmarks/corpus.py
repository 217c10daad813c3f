"""A corpus of at least 1 GB of distinct real text: python -m tests.benchmarks.corpus

    apt packages -> .cache/corpus/files -> collect_text (64 MiB shards) -> .cache/corpus/runs

The newest Linux source package and documentation packages are fetched by name through apt (as root or not; nothing is
installed), unpacked and collected once, 3 minutes on two cores. Copies of other files are left out: the kernel's
headers that tools/ repeats, and the sources beside the pages of a manual. Files over 1 MB (mostly generated register
tables) and files that are not UTF-8 are rejects, which are counted. A second call finds the existing corpus.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data.manifest import Dataset, Manifest, publish_manifest, read_manifest
from data.schema import text_bytes
from data.shards import read_table, write_table
from infra.ray_session import RaySession
from pipelines.engine.inputs import Input
from pipelines.engine.resources import Resources
from pipelines.engine.runner import run_task
from pipelines.engine.stage import load_stage
from pipelines.engine.task import Task, resolve_inputs
from tests.programs.places import REPOSITORY

FOLDER = REPOSITORY / ".cache" / "corpus"
ABOUT = FOLDER / "about.json"
SOURCES = r"^linux-source-[0-9.]+$"
DOCUMENTATION = ("perl-doc", "python3.11-doc", "postgresql-doc-15", "libboost1.74-doc", "debian-reference-en")
COPIES = ("*/_sources/*", "*/tools/include/*", "*/tools/arch/*", "*/man3/*")
MOST_FILE_BYTES = 1_000_000
LEAST_BYTES = 1_000_000_000
FULL_BYTES = 55_000_000
"""bytes of text in a shard of about 64 MB"""


class MissingError(Exception):
    """The corpus cannot be made on this machine. The message says what is missing."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The collected corpus."""

    directory: Path
    """of the run of collect_text"""
    about: dict[str, Any]
    """packages with versions, counts and bytes"""

    def __str__(self) -> str:
        packages = ", ".join(f"{name} {version}" for name, version in self.about["packages"].items())
        left_out = ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.about["rejects"].items()))
        return (
            f"{self.about['text_bytes']:,} bytes of text in {self.about['documents']:,} documents of {packages}; "
            f"left out: {left_out}"
        )


def corpus() -> Corpus:
    """The corpus, which the first call makes. Raises MissingError if apt or a package is missing."""
    if ABOUT.exists():
        about = json.loads(ABOUT.read_text())
        return Corpus(directory=FOLDER / about["directory"], about=about)
    for tool in ("apt-get", "apt-cache", "dpkg-deb", "tar"):
        if shutil.which(tool) is None:
            raise MissingError(f"no {tool}: the corpus is made of Debian packages, on Debian, Ubuntu and the like")
    packages = {path.name.split("_")[0]: path.name.split("_")[1] for path in map(_unpacked, _names())}
    stage = load_stage("collect_text")
    config = stage.config(
        source="packages", include=("*",), exclude=COPIES, max_document_bytes=MOST_FILE_BYTES, on_bad_file="skip"
    )
    given = resolve_inputs(stage, config, {"input": [str(FOLDER / "files")]}, str(FOLDER / "runs"))
    task = Task(stage=stage, config=config, inputs=given, root=str(FOLDER / "runs"))
    session = RaySession()
    manifest = run_task(task, Resources(), session)
    session.close()
    text = manifest.datasets["text"]
    if text.facts["text_bytes"] < LEAST_BYTES:
        raise MissingError(f"{text.facts['text_bytes']:,} bytes of text in {packages}; at least {LEAST_BYTES:,}")
    about = {
        "directory": str(Path(task.directory).relative_to(FOLDER)),
        "packages": dict(sorted(packages.items())),
        "text_bytes": text.facts["text_bytes"],
        "documents": text.rows,
        "rejects": dict(manifest.dropped),
        "shard_text_bytes": {
            shard.name: text_bytes(read_table(f"{task.directory}/{shard.name}", ["text"])["text"])
            for shard in text.shards
        },
    }
    ABOUT.write_text(json.dumps(about, indent=1) + "\n")
    shutil.rmtree(FOLDER / "files")
    return Corpus(directory=Path(task.directory), about=about)


def subset(whole: Corpus, count: int, folder: Path) -> Path:
    """A run directory in `folder` with `count` of the full shards, evenly spaced. Files are linked."""
    manifest = read_manifest(str(whole.directory))
    assert manifest is not None
    sizes = whole.about["shard_text_bytes"]
    full = [shard for shard in manifest.datasets["text"].shards if sizes[shard.name] >= FULL_BYTES]
    if len(full) < count:
        raise MissingError(f"{len(full)} full shards, {count} are needed")
    chosen = [full[(2 * k + 1) * len(full) // (2 * count)] for k in range(count)]
    return linked_run(folder, manifest, "text", whole.directory, chosen)


def cut_run(whole: Corpus, shard_bytes: int, shards: int, folder: Path) -> Path:
    """A run directory of `shards` shards of about `shard_bytes` of text: the documents of evenly spaced shards of the
    corpus, every n-th of each, so a small one is as mixed as the whole."""
    manifest = read_manifest(str(subset(whole, shards, folder / "whole")))
    assert manifest is not None
    made = []
    for number, shard in enumerate(manifest.datasets["text"].shards):
        table = read_table(str(whole.directory / shard.name))
        step = max(1, whole.about["shard_text_bytes"][shard.name] // shard_bytes)
        part = table.take(np.arange(0, table.num_rows, step))
        made.append(write_table(str(folder), f"text/{number:05d}.parquet", part))
    publish_manifest(str(folder), replace(manifest, datasets={"text": Dataset(shards=tuple(made))}))
    return folder


def linked_run(folder: Path, manifest: Manifest, name: str, directory: Path, chosen: Sequence[Any]) -> Path:
    """A run directory whose dataset `name` has the chosen shards of the dataset in `directory`."""
    for shard in chosen:
        (folder / shard.name).parent.mkdir(parents=True, exist_ok=True)
        os.link(directory / shard.name, folder / shard.name)
    dataset = Dataset(shards=tuple(chosen), facts=manifest.datasets[name].facts)
    publish_manifest(str(folder), replace(manifest, datasets={name: dataset}))
    return folder


def size_of(run: Path) -> int:
    """Bytes of text in a run directory."""
    manifest = read_manifest(str(run))
    assert manifest is not None
    sizes = [
        text_bytes(read_table(str(run / shard.name), ["text"])["text"]) for shard in manifest.datasets["text"].shards
    ]
    return sum(sizes)


def uris_of(run: Path) -> list[str]:
    """Files of the text of a run directory."""
    manifest = read_manifest(str(run))
    assert manifest is not None
    return [str(run / shard.name) for shard in manifest.datasets["text"].shards]


def input_of(directory: Path, dataset: str) -> Input:
    """The dataset of a run directory, as a stage takes it."""
    return Input(
        reference=f"{directory.name}:{dataset}", given=str(directory), directory=str(directory), dataset=dataset
    )


def _names() -> list[str]:
    listed = _output("apt-cache", "search", "--names-only", SOURCES).split()
    names = [word for word in listed if re.match(SOURCES, word)]
    if not names:
        raise MissingError("apt knows no linux-source-*: run `apt-get update`, with deb lines that have main")
    newest = max(names, key=lambda name: [int(part) for part in re.findall(r"\d+", name)])
    return [newest, *DOCUMENTATION]


def _unpacked(name: str) -> Path:
    """Fetches the package and unpacks it to files/NAME. Returns the package's file."""
    packages, target = FOLDER / "packages", FOLDER / "files" / name
    packages.mkdir(parents=True, exist_ok=True)
    if not (archives := sorted(packages.glob(f"{name}_*.deb"))):
        print(f"fetching {name}", flush=True)
        _output("apt-get", "download", name, folder=packages)
        archives = sorted(packages.glob(f"{name}_*.deb"))
    if not target.exists():
        staged = FOLDER / "staged"
        shutil.rmtree(staged, ignore_errors=True)
        _output("dpkg-deb", "-x", str(archives[-1]), str(staged))
        for archive in staged.glob("usr/src/*.tar.*"):
            _output("tar", "-xf", str(archive), "-C", str(archive.parent))
            archive.unlink()
        target.parent.mkdir(exist_ok=True)
        staged.rename(target)
    return archives[-1]


def _output(*command: str, folder: Path | None = None) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MissingError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout


if __name__ == "__main__":
    try:
        print(corpus())
    except MissingError as missing:
        sys.exit(f"no corpus: {missing}")
