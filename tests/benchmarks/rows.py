"""python -m tests.benchmarks.rows: 1e6 packed rows: how fast a document is traced, a row sought, a step's rows loaded.

Made-up rows of 64 tokens with 3 documents each, in 8 shards, and a training run that took every row once: 100 steps
between checkpoints, 100 rows a step. The loader is timed against the rows that a step of the demo's student takes a
second on this machine.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from data import storage
from data.loader import SequenceReader, StepLoader
from data.manifest import Dataset, Manifest, Shard, publish_manifest
from data.order import MixturePhase, Order, SequenceDataset
from data.schema import LINEAGE, METRICS, SEQUENCES, sequence_hashes
from data.shards import write_table
from model import Gemma2Config
from tests.training.examples import example_job
from training.backend import TorchBackend
from training.checkpoint import save_checkpoint
from training.feed import direct_feed
from training.loop import run_training

SHARDS, ROWS, LENGTH, DOCUMENTS, GROUP = 8, 125_000, 64, 3, 256
BATCH, BETWEEN = 100, 100
PHASES = (MixturePhase(start_step=0, weights=(("made", 1.0),)),)


def write_shard(directory: str, shard: int) -> Shard:
    rng = np.random.default_rng(shard)
    tokens = rng.integers(3, 8000, (ROWS, LENGTH), np.int32)
    segments = np.repeat(np.array([[1, 2, 3]], np.int32), [21, 21, 22], axis=1).repeat(ROWS, axis=0)
    positions = np.concatenate([np.arange(21), np.arange(21), np.arange(22)]).astype(np.int32)[None].repeat(ROWS, 0)
    mask = np.ones((ROWS, LENGTH), bool)
    # Every document lies in two rows that follow each other, as a document that was cut does.
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


def write_run(root: str) -> tuple[str, list[str]]:
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
    return trained, [storage.join(packed, shard.name) for shard in shards]


def dataset() -> SequenceDataset:
    return SequenceDataset(name="made", shard_rows=(ROWS,) * SHARDS, row_group_rows=GROUP)


def trace_seconds(*words: str) -> tuple[float, str]:
    """Of the whole command, the start of python included."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", "trace", *words], stdout=subprocess.PIPE, text=True, check=True
    )
    return time.perf_counter() - began, done.stdout


def step_rows_per_second(uris: list[str]) -> tuple[float, float]:
    """(rows a second, share of waiting for data) of training a model of the demo's student's size on those rows."""
    model = Gemma2Config(
        vocab_size=8192, d_model=96, layers=2, heads=4, kv_heads=2, head_dim=24, ffw_dim=288, window=64, query_scale=24
    )
    with tempfile.TemporaryDirectory() as directory:
        job = example_job(
            Path(directory),
            config={"model": model, "steps": 60, "global_batch": 16, "checkpoint_every_steps": 60},
            sequences=((dataset(), tuple(uris)),),
            phases=PHASES,
            sequence_length=LENGTH,
            vocab_size=8192,
        )
        summary = run_training(job, TorchBackend("cpu"), direct_feed(job))
        return 16 / summary.metrics["step_seconds_mean"], summary.metrics["data_wait_share"]


def main() -> None:
    with tempfile.TemporaryDirectory() as root:
        trained, uris = write_run(root)
        rows = SHARDS * ROWS
        document = f"{4 * ROWS * DOCUMENTS + 2000:032x}"
        for words in (["--document", document], ["--step", "7777"], ["--row", "made/5/1234"]):
            seconds, text = trace_seconds("--checkpoint", trained, *words)
            lines = text.splitlines()
            print(f"trace {words[0]} over {rows:,} rows: {seconds:.2f} s ({lines[0]}; {len(lines)} lines)", flush=True)
        order = Order([dataset()], PHASES, 16, 0)
        rng = np.random.default_rng(0)
        worst = 0.0
        for step in rng.integers(0, 3 * rows // 16, 20).tolist():  # of three epochs
            began = time.perf_counter()
            StepLoader(order, [SequenceReader(uris, GROUP)]).load(step)
            worst = max(worst, time.perf_counter() - began)
        print(f"seek to a random step of {rows:,} rows and load it, from nothing open: worst of 20 {worst:.3f} s")
        loader = StepLoader(order, [SequenceReader(uris, GROUP)])
        began, steps = time.perf_counter(), 2000
        for step in range(steps):
            loader.load(step)
        loaded = steps * 16 / (time.perf_counter() - began)
        torch.set_num_threads(1)
        consumed, share = step_rows_per_second(uris)
        print(f"loader, one thread: {loaded:,.0f} rows/s of {LENGTH} tokens")
        print(f"the demo's student, one thread: {consumed:,.0f} rows/s; the loader gives {loaded / consumed:.0f}x that")
        print(f"waiting for data, of a step, by the run's own metrics: {share:.2%}")


if __name__ == "__main__":
    main()
