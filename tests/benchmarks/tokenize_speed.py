"""tokenize_text end to end against gigatoken alone, with Gemma's own tokenizer, and datatrove's DocumentTokenizer.

    16 shards of 64 MB -> tokenize_text (Parquet in, Parquet out, Ray Data, warm) : seconds
    the same texts, in memory -> gigatoken, a process for each core              : seconds
    16 MB a process, Parquet in -> datatrove, two processes                       : seconds, start-up taken off

Each side sees each text once, since both keep the words that they have seen. tokenize_parts.py divides the time of the
stage into parts.
"""

import json
import multiprocessing
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from data import hf_tokenizer, shards
from data.tokenizer import Tokenizer
from pipelines.engine.inputs import external_input
from pipelines.stages import tokenize_text
from tests.benchmarks import corpus, tokenize_parts
from tests.benchmarks.stage_runs import run_stage, warm_session
from tests.benchmarks.step_speed import Row
from tests.programs.places import REPOSITORY, RIVAL_PYTHON

SHARDS, CORES = 16, 2
RIVAL_BYTES = 16_000_000
"""bytes of text for each process of the rival"""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Time for an amount of text."""

    text_bytes: int
    seconds: float
    cpu_seconds: float

    @property
    def rate(self) -> float:
        """Bytes a second."""
        return self.text_bytes / self.seconds

    @property
    def core_rate(self) -> float:
        """Bytes a CPU second."""
        return self.text_bytes / self.cpu_seconds


def gemma_tokenizer() -> Path | None:
    """Path of Gemma's own model: GEMMA_TOKENIZER, or the file of `make tokenizer`."""
    path = Path(os.environ.get("GEMMA_TOKENIZER", REPOSITORY / ".cache" / "gemma_tokenizer.model"))
    return path if path.exists() else None


def rows() -> Iterator[Row]:
    model = gemma_tokenizer()
    if model is None:
        yield Row(what="tokenize_text", ours="not run", rival="no Gemma tokenizer here: make tokenizer", ratio="")
        return
    whole = corpus.corpus()
    with warm_session() as (session, folder):
        text = corpus.subset(whole, SHARDS, folder / "text")
        size = corpus.size_of(text)
        inputs = {"text": corpus.input_of(text, "text"), "tokenizer": external_input([str(model)], None)}
        small = corpus.cut_run(whole, 1_000_000, CORES, folder / "small")
        first = run_stage(session, "tokenize_text", {}, {**inputs, "text": corpus.input_of(small, "text")}, folder)
        yield Row(
            what="tokenize_text: start of two workers on 2 MB, tokenizer proven",
            ours=f"{first.seconds:.1f} s after Ray's {session.started_seconds or 0:.1f} s",
            rival="",
            ratio="",
        )
        ran = run_stage(session, "tokenize_text", {}, inputs, folder)
        ours = Speed(text_bytes=size, seconds=ran.seconds, cpu_seconds=ran.cpu_seconds)
        tokens = ran.manifest.datasets["tokens"].tokens / 1e6
        what = f"tokenize_text, {size / 1e6:,.0f} MB, {tokens:,.0f}M tokens"
        yield from compared(what, ours, "gigatoken alone", raw_gigatoken(model, text))
        rival_text = corpus.cut_run(whole, RIVAL_BYTES, CORES, folder / "rival")
        files = dict(hf_tokenizer.tokenizer_files(model.read_bytes()))
        (folder / "tokenizer.json").write_bytes(files["tokenizer.json"])
        theirs = datatrove("tokenize", rival_text, folder, str(folder / "tokenizer.json"))
        what = f"tokenize_text; the rival on {theirs.text_bytes / 1e6:.0f} MB"
        yield from compared(what, ours, "datatrove DocumentTokenizer", theirs)
    yield from tokenize_parts.rows(model)


def raw_gigatoken(model: Path, text: Path) -> Speed:
    """Seconds of the slowest of CORES processes that encode the texts, which are in memory before the clock starts."""
    uris = corpus.uris_of(text)
    context = multiprocessing.get_context("spawn")
    barrier, times = context.Barrier(CORES), context.Queue()
    processes = [
        context.Process(target=_encode, args=(str(model), uris[k::CORES], barrier, times)) for k in range(CORES)
    ]
    for process in processes:
        process.start()
    elapsed = [times.get() for _ in processes]
    for process in processes:
        process.join()
    return Speed(
        text_bytes=corpus.size_of(text),
        seconds=max(seconds for seconds, _ in elapsed),
        cpu_seconds=sum(cpu for _, cpu in elapsed),
    )


def _encode(model: str, uris: list[str], barrier: Any, times: Any) -> None:
    tokenizer = Tokenizer.load(model)
    assert not tokenizer.fast_encoder
    backend = tokenizer._fast._backend  # type: ignore[union-attr]
    batches, batch, held = [], [], 0
    for uri in uris:
        for document in shards.read_table(uri, ["text"])["text"].cast(pa.binary()).to_pylist():
            batch.append(document)
            held += len(document)
            if held > tokenize_text.BATCH_BYTES:
                batches.append(batch)
                batch, held = [], 0
    batches.append(batch)
    barrier.wait()
    began, cpu_began = time.perf_counter(), time.process_time()
    for batch in batches:
        backend.encode_batch(batch, parallel=False)
    times.put((time.perf_counter() - began, time.process_time() - cpu_began))


def datatrove(work: str, text: Path, folder: Path, *more: str) -> Speed:
    """Time of datatrove's pipeline over the run's text, without its start."""
    if not RIVAL_PYTHON.exists():
        raise corpus.MissingError("datatrove is not here: make rival-env")
    words = [str(RIVAL_PYTHON), "-m", "tests.benchmarks.datatrove_pipelines", work, str(text / "text")]
    done = subprocess.run(
        [*words, str(folder / f"datatrove-{work}"), *more], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"datatrove {work} ended with {done.returncode}: {done.stderr[-500:]}")
    figures = json.loads(done.stdout.splitlines()[-1])
    return Speed(text_bytes=corpus.size_of(text), seconds=figures["seconds"], cpu_seconds=figures["cpu_seconds"])


def compared(what: str, ours: Speed, name: str, theirs: Speed) -> Iterator[Row]:
    """Two rows: by wall clock, and by CPU seconds, which other work on the machine changes less."""
    for unit, left, right in (
        ("MB/s", ours.rate, theirs.rate),
        ("MB/core s", ours.core_rate, theirs.core_rate),
    ):
        yield Row(
            what=what if unit == "MB/s" else "  by CPU seconds, driver and Ray included",
            ours=f"{left / 1e6:,.1f} {unit}",
            rival=f"{name}: {right / 1e6:,.2f} {unit}",
            ratio=f"{left / right:,.2f}x",
        )
