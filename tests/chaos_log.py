"""What `make chaos` has shown: kept in .cache/chaos/<tree> so that it can be stopped and taken up, told in a table.

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

REPOSITORY = Path(__file__).resolve().parents[1]
UNDER_TEST = ("data", "infra", "model", "pipelines", "training", "tests", "requirements.txt")


@dataclass
class Counts:
    """What one run showed; the test fills it in."""

    kills: int = 0
    """processes or nodes that were killed"""
    compared: int = 0
    """files, steps or values that were compared with the undisturbed run"""
    lost: int = 0
    """of those, how many were missing or other ones"""
    doubled: int = 0
    """what was there and is not in the undisturbed run"""
    seconds: float = 0.0


@contextmanager
def chaos_run(part: str, name: object) -> Iterator[Counts]:
    """One run of a part of `make chaos`: skipped where it passed before on this code, recorded when it passes."""
    file = record_folder() / part.replace(" ", "_") / f"{name}.json"
    if file.exists():
        pytest.skip(f"passed before on this code; remove {file} to run it again")
    counts, began = Counts(), time.monotonic()
    yield counts
    counts.seconds = time.monotonic() - began
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(asdict(counts)))


def table() -> list[str]:
    """A line for each part that has records on this code, those of earlier calls too; empty where there is none."""
    lines = []
    for folder in sorted(path for path in record_folder().glob("*") if path.is_dir()):
        found = [Counts(**json.loads(file.read_text())) for file in folder.glob("*.json")]
        sums = {name: sum(getattr(one, name) for one in found) for name in ("kills", "compared", "lost", "doubled")}
        seconds = sum(one.seconds for one in found)
        columns = "".join(f"{sums[name]:>10,}" for name in sums)
        lines.append(f"{folder.name.replace('_', ' '):<44}{len(found):>6}{columns}{seconds:>9,.0f}")
    if not lines:
        return []
    heads = "".join(f"{name:>10}" for name in ("kills", "compared", "lost", "doubled"))
    return [f"{'chaos on this code':<44}{'runs':>6}{heads}{'seconds':>9}", *lines]


def record_folder() -> Path:
    """Where records on this code lie."""
    words = ["git", "rev-parse", *(f"HEAD:{place}" for place in UNDER_TEST)]
    listed = subprocess.run(words, cwd=REPOSITORY, capture_output=True, check=True).stdout
    return REPOSITORY / ".cache" / "chaos" / hashlib.sha256(listed).hexdigest()[:16]
