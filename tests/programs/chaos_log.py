"""Records of `make chaos`, kept in .cache/chaos/<tree> so that it can be stopped and resumed, and printed as a table.

A test keeps its record by `chaos_run`, or by a mark that names its part, `pytest.mark.chaos("lost nodes")`, and the
fixture `counts` (tests/conftest.py); a part of `python -m tests.programs.chaos` has one too.

A record belongs to the code on which it was made. After a change of any package under test, all parts run again.
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
    """The figures of one test or part, which fills them in."""

    runs: int = 1
    """number of runs of the thing under test"""
    kills: int = 0
    """processes or nodes that were killed"""
    compared: int = 0
    """files, steps or values that were compared with the undisturbed run"""
    lost: int = 0
    """number of these that were missing or different"""
    doubled: int = 0
    """files, steps or values that the undisturbed run does not have"""
    ulp: int = 0
    """largest distance between values that should be the same bits, in representable numbers"""
    seconds: float = 0.0
    lines: tuple[str, ...] = ()
    """lines to print again if the part is not run again"""

    def add(self, **figures: int) -> None:
        """Adds to the sums. `ulp` is a maximum, not a sum."""
        for name, value in figures.items():
            setattr(self, name, max(self.ulp, value) if name == "ulp" else getattr(self, name) + value)


@contextmanager
def chaos_run(part: str, name: object, counts: Counts | None = None) -> Iterator[Counts]:
    """One run of a part of `make chaos`: skipped if it passed before on this code, recorded if it passes."""
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
    """The record of a part on this code, if there is one."""
    file = record_file(part, name)
    return Counts(**json.loads(file.read_text())) if file.exists() else None


def record_file(part: str, name: object) -> Path:
    return record_folder() / part.replace(" ", "_") / f"{name}.json"


COLUMNS = ("runs", "kills", "compared", "lost", "doubled", "ulp")


def table() -> list[str]:
    """A line for each part that has records on this code, from earlier calls too. Empty if there is none."""
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
    """The folder of the records on this code."""
    words = ["git", "rev-parse", *(f"HEAD:{place}" for place in UNDER_TEST)]
    listed = subprocess.run(words, cwd=REPOSITORY, capture_output=True, check=True).stdout
    return REPOSITORY / ".cache" / "chaos" / hashlib.sha256(listed).hexdigest()[:16]
