"""Peak memory and core seconds of the data stages at 1, 4 and 16 shards of 64 MB of text: flat, or not.

Each run has its own process and cluster with new workers, and begins with 2 MB to load what is loaded once. Only the
number of shards grows. Limits that bound the part of a worker are so low that 1 shard reaches them (pack_sequences: 2M
tokens a bucket; deduplicate_text: 100,000 keys a bucket), as any larger corpus does. Core seconds are CPU seconds of
driver, workers and Ray's own processes. filter_text redacts emails and addresses; its other rules would keep nothing of
some shards.
"""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines.engine.inputs import Input, external_input
from tests.benchmarks import corpus, cost
from tests.benchmarks.stage_runs import bench_folder, run_stage, warm_session
from tests.benchmarks.step_speed import Row
from tests.benchmarks.tokenize_speed import gemma_tokenizer

SIZES = (1, 4, 16)
CORES = 2
FLAT = 0.2
STAGES: dict[str, dict[str, Any]] = {
    "filter_text": {"pii_email": "redact", "pii_ip": "redact"},
    "deduplicate_text": {"part_rows": 100_000},
    "tokenize_text": {},
    "pack_sequences": {"shard_tokens": 2_000_000, "sequence_length": 1024, "require_heldout": False},
}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One stage at one size."""

    stage: str
    shards: int
    text_bytes: int
    tokens: int
    """of tokenize_text, for this text"""
    seconds: float
    cpu_seconds: float
    driver_bytes: int
    worker_bytes: int
    output_bytes: int
    manifest_bytes: int
    output_shards: int


def rows() -> Iterator[Row]:
    """A row for each stage and size, then whether memory was flat. Keeps the figures (docs/data-costs.json)."""
    model = gemma_tokenizer()
    if model is None:
        yield Row(what="memory", ours="not run", rival="no Gemma tokenizer here: make tokenizer", ratio="")
        return
    whole = corpus.corpus()
    cost.save("corpus", str(whole))
    cost.save("machine", f"{platform.machine()}, {os.cpu_count()} cores, no accelerator")
    with bench_folder() as folder:
        yield from _rows(Place(whole, model, folder))


def _rows(place: "Place") -> Iterator[Row]:
    measured: list[Measured] = []
    place.text(0)  # not in the process whose memory is measured
    for stage in STAGES:
        of_stage: list[Measured] = []
        for size in SIZES:
            run = in_a_process(stage, size, place)
            of_stage.append(run)
            measured.append(run)
            cost.save("runs", [asdict(each) for each in measured])
            yield Row(
                what=f"{stage}, {size} x 64 MB",
                ours=f"driver {run.driver_bytes / 1e6:,.0f} MB, a worker {run.worker_bytes / 1e6:,.0f} MB",
                rival=f"{run.cpu_seconds / run.text_bytes * 1e9:,.1f} core s/GB, {run.seconds:,.1f} s",
                ratio="",
            )
        parts = []
        for name in ("driver_bytes", "worker_bytes"):
            values = [getattr(run, name) for run in of_stage]
            parts.append(f"{name.split('_')[0]} {max(values) / values[0] - 1:+.0%}")
        rates = [run.cpu_seconds / run.text_bytes for run in of_stage]
        parts.append(f"core s/GB {rates[-1] / rates[0] - 1:+.0%}")
        yield Row(what=f"  {stage}, 16 against 1", ours=", ".join(parts), rival="flat is within 20%", ratio="")


@dataclass(frozen=True)
class Place:
    """Runs of text and tokens that the measurements share."""

    whole: corpus.Corpus
    model: Path
    folder: Path

    def text(self, size: int) -> Path:
        """A run of text with `size` shards; 0: of 2 MB, to warm up."""
        made = self.folder / f"text-{size}"
        if made.exists():
            return made
        if size:
            return corpus.subset(self.whole, size, made)
        return corpus.cut_run(self.whole, 1_000_000, CORES, made)

    def tokens(self, size: int) -> Path:
        """The output of tokenize_text for `text(size)`."""
        return Path((self.folder / f"tokens-{size}").read_text())

    def inputs(self, stage: str, size: int) -> dict[str, Input]:
        if stage == "pack_sequences":
            return {"tokens": corpus.input_of(self.tokens(size), "tokens")}
        inputs = {"text": corpus.input_of(self.text(size), "text")}
        return inputs | ({"tokenizer": external_input([str(self.model)], None)} if stage == "tokenize_text" else {})


def in_a_process(stage: str, size: int, place: Place) -> Measured:
    words = [sys.executable, "-m", "tests.benchmarks.memory", stage, str(size), str(place.model), str(place.folder)]
    done = subprocess.run(words, cwd=corpus.REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}: {done.stderr[-500:]}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def measure(stage: str, size: int, place: Place) -> Measured:
    """Runs the stage over `size` shards on its own cluster. pack_sequences reads the output of tokenize_text."""
    with warm_session() as (session, _):
        for shards in (0, size):
            ran = run_stage(session, stage, STAGES[stage], place.inputs(stage, shards), place.folder, watched=True)
            if stage == "tokenize_text":
                (place.folder / f"tokens-{shards}").write_text(str(ran.directory))
    outputs = ran.manifest.datasets.values()
    return Measured(
        stage=stage,
        shards=size,
        text_bytes=corpus.size_of(place.text(size)),
        tokens=sum(dataset.tokens for dataset in outputs),
        seconds=ran.seconds,
        cpu_seconds=ran.cpu_seconds,
        driver_bytes=ran.driver_bytes,
        worker_bytes=ran.worker_bytes,
        output_bytes=sum(dataset.bytes for dataset in outputs),
        manifest_bytes=(ran.directory / "_MANIFEST.json").stat().st_size,
        output_shards=sum(len(dataset.shards) for dataset in outputs),
    )


def main(stage: str, size: str, model: str, folder: str) -> None:
    print(json.dumps(asdict(measure(stage, int(size), Place(corpus.corpus(), Path(model), Path(folder))))))


if __name__ == "__main__":
    main(*sys.argv[1:])
