"""A million packed rows: time to trace a document, find a row and feed a step, and the wait of a step for rows.

Made-up rows of 64 tokens with 3 documents each, in 8 shards, and a training run that took every row once: 100 steps
between checkpoints, 100 rows a step. The loader is compared with the rows a second that a step of the demo's student
takes on this machine, and the student is fed by both feeds.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from data import storage
from data.loader import SequenceReader, StepLoader
from data.manifest import Dataset, Manifest, Shard, listed, publish_manifest
from data.order import MixturePhase, Order, SequenceDataset
from data.schema import LINEAGE, METRICS, SEQUENCES, sequence_hashes
from data.shards import write_table
from infra.ray_session import RaySession
from model import Gemma2Config
from tests.benchmarks.step_speed import Row
from tests.programs.examples import example_job
from training.backends.torch_backend import TorchBackend
from training.checkpoints.save_load import save_checkpoint
from training.feed import Feed, direct_feed
from training.job import TrainJob
from training.loop import run_training

SHARDS, ROWS, LENGTH, DOCUMENTS, GROUP = 8, 125_000, 64, 3, 256
BATCH, BETWEEN = 100, 100
TURNS = 3
"""in which the feeds are timed, one after the other: other work on the machine is more than their difference"""
PHASES = (MixturePhase(start_step=0, weights=(("made", 1.0),)),)


def write_shard(directory: str, shard: int) -> Shard:
    rng = np.random.default_rng(shard)
    tokens = rng.integers(3, 8000, (ROWS, LENGTH), np.int32)
    segments = np.repeat(np.array([[1, 2, 3]], np.int32), [21, 21, 22], axis=1).repeat(ROWS, axis=0)
    positions = np.concatenate([np.arange(21), np.arange(21), np.arange(22)]).astype(np.int32)[None].repeat(ROWS, 0)
    mask = np.ones((ROWS, LENGTH), bool)
    # Every document is in two consecutive rows, as a document that was cut.
    numbers = shard * ROWS * DOCUMENTS + np.arange(ROWS * DOCUMENTS) // 2 * 2
    ids = pa.array([f"{number:032x}" for number in numbers.tolist()])
    spans = pa.StructArray.from_arrays(
        [ids, pa.array(np.zeros(len(ids), np.int32)), pa.array(np.full(len(ids), 21, np.int32))],
        fields=list(SEQUENCES.field("documents").type.value_type),
    )

    def lists(values: pa.Array, each: int, name: str) -> pa.Array:
        offsets = pa.array(np.arange(0, len(values) + 1, each, dtype=np.int32))
        return pa.ListArray.from_arrays(offsets, values, type=SEQUENCES.field(name).type)

    columns = {name: pa.array(part.reshape(-1)) for name, part in (("tokens", tokens), ("segment_ids", segments))}
    columns |= {"positions": pa.array(positions.reshape(-1)), "loss_mask": pa.array(mask.reshape(-1))}
    arrays = [lists(column, LENGTH, name) for name, column in columns.items()]
    arrays += [lists(spans, DOCUMENTS, "documents"), pa.array(np.full(ROWS, 300))]
    arrays.append(pa.array(sequence_hashes(tokens, segments, mask)))
    table = pa.Table.from_arrays(arrays, schema=SEQUENCES)
    return write_table(directory, f"sequences/{shard:05d}.parquet", table, row_group_rows=GROUP)


def write_run(root: str) -> tuple[str, Sequence[str]]:
    """A finished pack_sequences and a train_model with a lineage of all rows; its reference, and the shards' URIs."""
    packed = storage.join(root, "pack_sequences", "0" * 16)
    shards = tuple(write_shard(packed, shard) for shard in range(SHARDS))
    facts = {"source": "made", "sequence_length": LENGTH, "vocab_size": 8192, "row_group_rows": GROUP}
    publish_manifest(
        packed,
        Manifest(
            stage="pack_sequences",
            version=1,
            fingerprint="0" * 16,
            config={},
            inputs={},
            datasets={"sequences": Dataset(shards=shards, facts=facts)},
        ),
    )
    trained = storage.join(root, "train_model", "1" * 16)
    config = json.loads(json.dumps(example_job(Path("x")).identity()["config"]))
    document = {"stage": "train_model", "config": config, "inputs": {"sequences": [packed]}}
    storage.write_bytes(storage.join(trained, "_CONFIG.json"), json.dumps(document).encode())
    order = Order([dataset()], PHASES, BATCH, 0)
    for first in range(0, SHARDS * ROWS // BATCH, BETWEEN):
        refs = np.concatenate([order.row_array(step) for step in range(first, first + BETWEEN)])
        columns = [
            pa.array(np.repeat(np.arange(first, first + BETWEEN) + 1, BATCH)),
            pa.array(np.tile(np.arange(BATCH, dtype=np.int32), BETWEEN)),
            pa.array(["made"] * len(refs)),
            pa.array(refs[:, 1]),
            pa.array(refs[:, 2]),
            pa.array(np.zeros(len(refs), np.uint64)),
        ]
        save_checkpoint(
            storage.join(trained, "checkpoints"),
            step=first + BETWEEN,
            weights={"a": torch.zeros(1)},
            optimizer=None,
            state={},
            tables={"lineage": pa.Table.from_arrays(columns, schema=LINEAGE), "metrics": METRICS.empty_table()},
        )
    return trained, [listed(packed, shard) for shard in shards]


def dataset() -> SequenceDataset:
    return SequenceDataset(name="made", shard_rows=(ROWS,) * SHARDS, row_group_rows=GROUP)


def trace_seconds(*words: str) -> tuple[float, str]:
    """Seconds of the whole command, the start of python included."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", "trace", *words], stdout=subprocess.PIPE, text=True, check=True
    )
    return time.perf_counter() - began, done.stdout


def student_job(uris: Sequence[str], directory: str) -> TrainJob:
    """The demo's student on those rows, 60 steps."""
    model = Gemma2Config(
        vocab_size=8192, d_model=96, layers=2, heads=4, kv_heads=2, head_dim=24, ffw_dim=288, window=64, query_scale=24
    )
    return example_job(
        Path(directory),
        config={"model": model, "steps": 60, "global_batch": 16, "checkpoint_every_steps": 60},
        sequences=((dataset(), tuple(uris)),),
        phases=PHASES,
        sequence_length=LENGTH,
        vocab_size=8192,
        threads=1,
    )


def trained(uris: Sequence[str], feed: Callable[[TrainJob], Feed]) -> dict[str, float]:
    """The metrics of training the student."""
    with tempfile.TemporaryDirectory() as directory:
        job = student_job(uris, directory)
        return run_training(job, TorchBackend("cpu"), feed(job)).metrics


def within(what: str, value: float, unit: str, most: float, note: str = "") -> Row:
    """A figure, and the goal that it must stay below."""
    return Row(
        what=what,
        ours=f"{value:.2f} {unit}{note}",
        rival=f"goal: under {most:g} {unit}",
        ratio=f"{value / most:.2f}x",
    )


def rows() -> Iterator[Row]:
    count = SHARDS * ROWS
    with tempfile.TemporaryDirectory() as root:
        trained_uri, uris = write_run(root)
        document = f"{4 * ROWS * DOCUMENTS + 2000:032x}"
        for words in (["--document", document], ["--step", "7777"], ["--row", "made/5/1234"]):
            seconds, text = trace_seconds("--checkpoint", trained_uri, *words)
            lines = f", {len(text.splitlines())} lines"
            yield within(f"trace {words[0]}, of {count:,} rows", seconds, "s", 5, lines)
        yield within(f"seek a random step of {count:,} rows, worst of 20", seek_seconds(uris), "s", 1)
        yield from feed_rows(uris)


def seek_seconds(uris: Sequence[str]) -> float:
    """The slowest of 20 steps of three epochs, each found and loaded without any open file."""
    order = Order([dataset()], PHASES, 16, 0)
    worst = 0.0
    for step in np.random.default_rng(0).integers(0, 3 * SHARDS * ROWS // 16, 20).tolist():
        began = time.perf_counter()
        StepLoader(order, [SequenceReader(uris, GROUP)]).load(step)
        worst = max(worst, time.perf_counter() - began)
    return worst


def feed_rows(uris: Sequence[str]) -> Iterator[Row]:
    loader = StepLoader(Order([dataset()], PHASES, 16, 0), [SequenceReader(uris, GROUP)])
    began, steps = time.perf_counter(), 2000
    for step in range(steps):
        loader.load(step)
    loaded = steps * 16 / (time.perf_counter() - began)
    session = RaySession()
    session.start()
    from training.worker.on_worker import ray_feed  # imports ray, which only then has its token

    turns = [(trained(uris, direct_feed), trained(uris, lambda job: ray_feed(job, 0, 1))) for _ in range(TURNS)]
    session.close()
    taken = 16 / statistics.median(direct["step_seconds_mean"] for direct, _ in turns)
    yield Row(
        what=f"loader, rows of {LENGTH}, goal: 20x",
        ours=f"{loaded:,.0f} rows/s",
        rival=f"the demo's student takes {taken:,.0f} rows/s",
        ratio=f"{loaded / taken:.0f}x",
    )
    for name, metrics_of_turns in zip(("direct", "Ray Data"), zip(*turns, strict=True), strict=True):
        waited = statistics.median(metrics["data_wait_share"] for metrics in metrics_of_turns)
        yield within(f"share of a step that waits, {name} feed, median of {TURNS}", 100 * waited, "%", 1)
