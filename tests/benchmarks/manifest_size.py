"""python -m tests.benchmarks.manifest_size write|read SHARDS FOLDER: a manifest of SHARDS shards, in this process.

Prints {"seconds", "peak_bytes", "before_bytes", "file_bytes"}: peak memory is that of the process, and before is its
memory after all imports. `manifests` runs both for several sizes.
"""

import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from data.manifest import MANIFEST_NAME, Dataset, Manifest, Shard, publish_manifest, read_manifest
from tests.benchmarks import cost
from tests.benchmarks.stage_runs import warm_session, watching
from tests.benchmarks.step_speed import Row
from tests.programs.places import REPOSITORY

SIZES = (10_000, 100_000, 1_000_000)
TASKS = (200, 4_000)


@dataclass(frozen=True, kw_only=True)
class ManifestCost:
    """Time and memory for a manifest of a number of shards."""

    shards: int
    file_bytes: int
    write_seconds: float
    write_bytes: int
    """memory over that of the process before"""
    read_seconds: float
    read_bytes: int


def rows() -> Iterator[Row]:
    """Measures manifests of 10^4 to 10^6 shards, and Ray Data over tasks that do nothing. Keeps the figures."""
    costs = []
    for entry in manifests(SIZES):
        costs.append(asdict(entry))
        yield Row(
            what=f"a manifest of {entry.shards:,} shards",
            ours=f"{entry.file_bytes / 1e6:,.1f} MB, {entry.write_seconds:.1f} s to write, "
            f"{entry.read_seconds:.1f} to read",
            rival=f"{entry.write_bytes / 1e6:,.0f} MB of memory to write, {entry.read_bytes / 1e6:,.0f} MB to read",
            ratio="",
        )
    cost.save("manifests", costs)
    tasks = task_cost()
    cost.save("tasks", tasks)
    yield Row(
        what=f"Ray Data over {tasks['tasks']:,} tasks that do nothing",
        ours=f"{tasks['seconds_a_task'] * 1e3:.1f} ms a task",
        rival=f"{tasks['driver_bytes_a_task'] / 1e3:.1f} kB of driver memory a task",
        ratio="",
    )


def task_cost() -> dict[str, float]:
    """Seconds and driver memory for each task of a phase, from the difference between many tasks and few."""
    few, many = TASKS
    with warm_session() as (session, _):
        measured = []
        for count in (few, few, many):
            with watching() as watch:
                began = time.perf_counter()
                rows = sum(1 for _ in session.map(dict.fromkeys(range(count), "shard"), nothing))
                assert rows == count
                measured.append((time.perf_counter() - began, watch.driver_bytes))
    (_, _), (few_seconds, few_bytes), (many_seconds, many_bytes) = measured
    return {
        "tasks": many,
        "seconds_a_task": (many_seconds - few_seconds) / (many - few),
        "driver_bytes_a_task": max(0, many_bytes - few_bytes) / (many - few),
    }


def nothing(number: int, task: str) -> dict[str, object]:
    return {"receipt": "{}", "error": "", "is_input": False}


def manifests(sizes: tuple[int, ...]) -> Iterator[ManifestCost]:
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            write, read = (_in_a_process(what, size, folder) for what in ("write", "read"))
        yield ManifestCost(
            shards=size,
            file_bytes=int(write["file_bytes"]),
            write_seconds=write["seconds"],
            write_bytes=int(write["peak_bytes"] - write["before_bytes"]),
            read_seconds=read["seconds"],
            read_bytes=int(read["peak_bytes"] - read["before_bytes"]),
        )


def _in_a_process(what: str, size: int, folder: str) -> dict[str, float]:
    words = [sys.executable, "-m", "tests.benchmarks.manifest_size", what, str(size), folder]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def main(what: str, shards: str, folder: str) -> None:
    before, began = _peak_bytes(), time.perf_counter()
    if what == "write":
        publish_manifest(folder, manifest_of(int(shards)))
    else:
        manifest = read_manifest(folder)
        assert manifest is not None
        assert len(manifest.datasets["tokens"].shards) == int(shards)
    print(
        json.dumps(
            {
                "seconds": time.perf_counter() - began,
                "peak_bytes": _peak_bytes(),
                "before_bytes": before,
                "file_bytes": (Path(folder) / MANIFEST_NAME).stat().st_size,
            }
        )
    )


def manifest_of(shards: int) -> Manifest:
    """A manifest as tokenize_text writes it, with realistic names, sizes and hashes."""
    made = tuple(
        Shard(
            name=f"tokens/{k:05d}.parquet",
            rows=5000 + k % 997,
            bytes=20_000_000 + k,
            tokens=20_000_000 + 3 * k,
            sha256=hashlib.sha256(k.to_bytes(8, "little")).hexdigest(),
        )
        for k in range(shards)
    )
    return Manifest(
        stage="tokenize_text",
        version=2,
        fingerprint="0" * 16,
        config={"check_one_in": 200, "seed": 0},
        inputs={"text": [{"reference": "filter_text/0123456789abcdef:text", "content": "content:0"}]},
        datasets={"tokens": Dataset(shards=made, facts={"vocab_size": 256_000, "sources": ["web"]})},
    )


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
