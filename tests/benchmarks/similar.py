"""What the comparison of candidates costs in deduplicate_text, and what it keeps: `python -m tests.benchmarks similar`.

The text is Python's standard library and, where there are some, manual pages. The stage runs over it twice, each time
in a process of its own without Ray: with the comparison and without it. Peak memory and CPU seconds are those of the
whole process, libraries and collection of the text included.
"""

import gzip
import json
import resource
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from data import minhash
from data.shards import read_table
from pipelines.engine.resources import Resources
from pipelines.engine.runner import run_task
from pipelines.engine.stage import load_stage
from pipelines.engine.task import Task, future_input, resolve_inputs
from tests.benchmarks.step_speed import Row
from tests.programs.in_process import InProcess
from tests.programs.places import REPOSITORY

MANUALS = Path("/usr/share/man")
MOST_MANUALS = 6_000
SHARD_BYTES = 8_000_000


def rows() -> Iterator[Row]:
    """A row for each run, then what both dropped."""
    with tempfile.TemporaryDirectory() as folder:
        documents, size = write_text(Path(folder) / "text")
        for similarity in (0.0, 0.75):
            words = [sys.executable, "-m", "tests.benchmarks.similar", folder, str(similarity)]
            done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=True)
            ran = json.loads(done.stdout.splitlines()[-1])
            dropped = f"{ran['near']:,} of {documents:,} documents dropped as near-duplicates"
            yield Row(
                what=f"deduplicate_text, {size / 1e6:,.0f} MB, --min-similarity {similarity:g}",
                ours=f"{ran['seconds'] / size * 1e9:,.0f} core s/GB, peak {ran['peak'] / 1e6:,.0f} MB",
                rival=f"{dropped}, {ran['unlike']:,} of them with similarity of at most 0.5 to the kept one",
                ratio="",
            )


def write_text(folder: Path) -> tuple[int, int]:
    """(number of documents, bytes) of the text that is written to `folder`."""
    folder.mkdir()
    number = size = 0
    modules = sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py"))
    manuals = sorted(MANUALS.glob("man[1-8]/*.gz"))
    every = max(1, len(manuals) // MOST_MANUALS)
    for path in [path for path in modules if "site-packages" not in path.parts] + manuals[::every]:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        (folder / f"{number:06d}.txt").write_bytes(content)
        number, size = number + 1, size + len(content)
    return number, size


def measure(folder: Path, similarity: float) -> dict[str, float]:
    """Runs the stage, and compares each near-duplicate with the document that is kept."""
    root = str(folder / "runs")
    collect, stage = load_stage("collect_text"), load_stage("deduplicate_text")
    config = collect.config(source="text", shard_bytes=SHARD_BYTES)
    given = resolve_inputs(collect, config, {"input": [str(folder / "text")]}, root)
    collected = Task(stage=collect, config=config, inputs=given, root=root)
    run_task(collected, Resources(), InProcess(), say=lambda _: None)
    inputs = {"text": (future_input(collected, "text"),)}
    task = Task(stage=stage, config=stage.config(min_similarity=similarity), inputs=inputs, root=root)
    began = resource.getrusage(resource.RUSAGE_SELF)
    manifest = run_task(task, Resources(), InProcess(), say=lambda _: None)
    ended = resource.getrusage(resource.RUSAGE_SELF)
    before = pa.concat_tables(
        read_table(f"{collected.directory}/{shard.name}", ["id", "text"])
        for shard in future_input(collected, "text").data.shards
    )
    texts = dict(zip(before["id"].to_pylist(), before["text"].to_pylist(), strict=True))
    clusters = [
        row
        for shard in manifest.datasets["clusters"].shards
        for row in read_table(f"{task.directory}/{shard.name}").to_pylist()
        if row["reason"] == "near_duplicate"
    ]
    return {
        "seconds": ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime,
        "peak": ended.ru_maxrss * 1024,
        "near": len(clusters),
        "unlike": sum(jaccard(texts[row["id"]], texts[row["kept_id"]]) <= 0.5 for row in clusters),
    }


def jaccard(text: str, other: str) -> float:
    hashes, offsets = minhash.shingle_hashes(pa.array([text, other]), 5)
    sets = [np.unique(hashes[offsets[k] : offsets[k + 1]]) for k in (0, 1)]
    shared = len(np.intersect1d(*sets, assume_unique=True))
    return shared / max(len(sets[0]) + len(sets[1]) - shared, 1)


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), float(sys.argv[2]))))
