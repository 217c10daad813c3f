"""What `make chaos` has shown: kept in .cache/chaos/<tree> so that it can be stopped and taken up, told in a table.

A test keeps its record by `chaos_run`, or by a mark that names its part, `pytest.mark.chaos("lost nodes")`, and the
fixture `counts` (tests/conftest.py); a part of `python -m tests.programs.chaos` has one too.

A record belongs to the code it was made on: a change of any package under test asks for all of them again.
"""

import hashlib
import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from tests.programs.places import REPOSITORY

UNDER_TEST = ("data", "infra", "model", "pipelines", "training", "tests", "requirements.txt")


@dataclass
class Counts:
    """What one test or part showed; it fills it in."""

    runs: int = 1
    """of the thing under test"""
    kills: int = 0
    """processes or nodes that were killed"""
    compared: int = 0
    """files, steps or values that were compared with the undisturbed run"""
    lost: int = 0
    """of those, how many were missing or other ones"""
    doubled: int = 0
    """what was there and is not in the undisturbed run"""
    ulp: int = 0
    """the largest distance between values that are to be the same bits, in representable numbers"""
    seconds: float = 0.0
    lines: tuple[str, ...] = ()
    """lines to tell again where it is not run again"""

    def add(self, **figures: int) -> None:
        """Adds to the sums; `ulp` is the largest of all."""
        for name, value in figures.items():
            setattr(self, name, max(self.ulp, value) if name == "ulp" else getattr(self, name) + value)


@contextmanager
def chaos_run(part: str, name: object, counts: Counts | None = None) -> Iterator[Counts]:
    """One run of a part of `make chaos`: skipped where it passed before on this code, recorded when it passes."""
    skip_if_passed(part, name)
    counts, began = counts or Counts(), time.monotonic()
    yield counts
    counts.seconds = time.monotonic() - began
    keep(part, name, counts)


def skip_if_passed(part: str, name: object) -> None:
    if (file := record_file(part, name)).exists():
        pytest.skip(f"passed before on this code; remove {file} to run it again")


def keep(part: str, name: object, counts: Counts) -> None:
    file = record_file(part, name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(asdict(counts)))


def kept(part: str, name: object) -> Counts | None:
    """The record, where there is one on this code."""
    file = record_file(part, name)
    return Counts(**json.loads(file.read_text())) if file.exists() else None


def record_file(part: str, name: object) -> Path:
    return record_folder() / part.replace(" ", "_") / f"{name}.json"


COLUMNS = ("runs", "kills", "compared", "lost", "doubled", "ulp")


def table() -> list[str]:
    """A line for each part that has records on this code, those of earlier calls too; empty where there is none."""
    lines = []
    for folder in sorted(path for path in record_folder().glob("*") if path.is_dir()):
        sums = Counts(runs=0)
        for file in folder.glob("*.json"):
            counts = Counts(**json.loads(file.read_text()))
            sums.add(**{name: getattr(counts, name) for name in COLUMNS})
            sums.seconds += counts.seconds
        figures = "".join(f"{getattr(sums, name):>10,}" for name in COLUMNS)
        lines.append(f"{folder.name.replace('_', ' '):<44}{figures}{sums.seconds:>9,.0f}")
    if not lines:
        return []
    heads = "".join(f"{name:>10}" for name in COLUMNS)
    return [f"{'chaos on this code':<44}{heads}{'seconds':>9}", *lines]


def record_folder() -> Path:
    """Where records on this code lie."""
    words = ["git", "rev-parse", *(f"HEAD:{place}" for place in UNDER_TEST)]
    listed = subprocess.run(words, cwd=REPOSITORY, capture_output=True, check=True).stdout
    return REPOSITORY / ".cache" / "chaos" / hashlib.sha256(listed).hexdigest()[:16]
