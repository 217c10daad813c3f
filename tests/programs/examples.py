"""Small jobs for the tests: a tiny model, made-up rows, and a feed that needs no files."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data.order import MixturePhase, Order, SequenceDataset
from data.packing import Document, pack_documents
from data.schema import sequence_hashes
from data.shards import write_table
from model import gemma2_tiny
from model.sharding import MeshShape
from training.config import OptimizerConfig, TrainingConfig
from training.feed import Feed, HostBatch
from training.job import TrainJob
from training.setup import Setup

VOCAB = 64
SETUP = {field.name for field in dataclasses.fields(Setup)} - {"mesh"}
LENGTH = 24
DATASETS = (
    SequenceDataset(name="prose", shard_rows=(20, 12), row_group_rows=8),
    SequenceDataset(name="code", shard_rows=(16,), row_group_rows=8),
)


def example_job(checkpoints: Path, *, config: dict[str, Any] | None = None, **overrides: Any) -> TrainJob:
    """A job of a few steps over two made-up datasets. `overrides` are fields of the job or its set-up, mesh as text."""
    mesh = overrides.pop("mesh", "")
    place = {"device": "cpu", "mesh": MeshShape.parse(mesh) if mesh else None}
    place |= {name: overrides.pop(name) for name in SETUP & overrides.keys()}
    settings: dict[str, Any] = {
        "model": gemma2_tiny(
            vocab_size=VOCAB, d_model=32, ffw_dim=64, heads=2, kv_heads=1, head_dim=16, query_scale=16
        ),
        "steps": 12,
        "global_batch": 4,
        "checkpoint_every_steps": 5,
        "optimizer": OptimizerConfig(learning_rate=0.01, warmup_steps=2),
    }
    job: dict[str, Any] = {
        "config": TrainingConfig(**(settings | (config or {}))),
        "checkpoints_uri": str(checkpoints),
        "sequences": tuple((dataset, ("unread",) * len(dataset.shard_rows)) for dataset in DATASETS),
        "phases": (MixturePhase(start_step=0, weights=(("prose", 0.7), ("code", 0.3))),),
        "sequence_length": LENGTH,
        "vocab_size": VOCAB,
        "input_fingerprints": {"sequences": "abc"},
        "setup": Setup(**place),
    }
    return TrainJob(**(job | overrides))


def moved(job: TrainJob, **changes: Any) -> TrainJob:
    """The job in another set-up."""
    return dataclasses.replace(job, setup=dataclasses.replace(job.setup, **changes))


def made_up_feed(job: TrainJob, rank: int = 0, world_size: int = 1) -> Feed:
    """Rows that depend only on their place, of a quarter of the vocabulary, so that a model can learn a little."""
    order = Order([dataset for dataset, _ in job.sequences], job.phases, job.config.global_batch, job.order_seed)

    def feed(start_step: int, stop_step: int) -> Iterator[tuple[int, HostBatch]]:
        for step in range(start_step, stop_step):
            refs = np.array(order.worker_rows(step, rank, world_size), np.int32)
            tokens = np.stack([np.random.default_rng(list(ref)).integers(3, 19, LENGTH, np.int32) for ref in refs])
            segment_ids = np.ones_like(tokens)
            mask = np.ones(tokens.shape, bool)
            mask[:, -1] = False
            mask[np.arange(LENGTH) >= LENGTH - 1 - refs[:, 2:] % 5] = False  # rows differ in targets
            yield (
                step,
                {
                    "tokens": tokens,
                    "segment_ids": segment_ids,
                    "positions": np.tile(np.arange(LENGTH, dtype=np.int32), (len(tokens), 1)),
                    "loss_mask": mask,
                    "sequence_hash": sequence_hashes(tokens, segment_ids, mask),
                    "refs": refs,
                },
            )

    return feed


def write_sequences(directory: Path, job: TrainJob) -> TrainJob:
    """The job with packed shards on disk for each of its datasets."""
    sequences = []
    for dataset, _ in job.sequences:
        uris = []
        for shard, rows in enumerate(dataset.shard_rows):
            rng = np.random.default_rng([shard, rows])
            lengths = [10, 30, rows * LENGTH - 40]  # a cut document, several in a row, no padding
            documents = [
                Document(id=f"{number:032x}", tokens=rng.integers(3, 19, length).astype(np.int32), text_bytes=length)
                for number, length in enumerate(lengths)
            ]
            name = f"{dataset.name}-{shard}.parquet"
            table = pack_documents(documents, LENGTH)
            assert table.num_rows == rows
            write_table(str(directory), name, table, row_group_rows=dataset.row_group_rows)
            uris.append(str(directory / name))
        sequences.append((dataset, tuple(uris)))
    return dataclasses.replace(job, sequences=tuple(sequences))


def job_named(directory: Path, name: str, **overrides: Any) -> TrainJob:
    """A job with its sequences and checkpoints in a new folder of that name. `overrides` are those of `example_job`."""
    config = {field: overrides.pop(field) for field in ("steps", "checkpoint_every_steps") if field in overrides}
    (directory / name).mkdir()
    job = example_job(directory / name / "checkpoints", config=config, **overrides)
    return write_sequences(directory / name, job)
