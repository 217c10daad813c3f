"""A job trains from files on disk, next tokens and a teacher's cached draws alike."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data.logits import CodecSpec, Ranking, encode
from data.schema import LOGITS
from data.shards import read_table, write_table
from tests.programs.examples import VOCAB, example_job, write_sequences
from training.backends.torch_backend import TorchBackend
from training.distill.kinds.sample import sample_teacher
from training.feed import direct_feed, make_loader
from training.job import TrainJob
from training.loop import StepMetrics, run_training

CPU = TorchBackend("cpu")
DRAWS = 8
SPEC = CodecSpec(vocab_size=VOCAB, estimator="sample", draws=DRAWS)


def write_logits(directory: Path, job: TrainJob, peak: float) -> tuple[tuple[str, ...], ...]:
    """Draws of a teacher that puts `peak` more on id 7 than on every other id."""
    teacher = np.zeros((1, VOCAB), np.float32)
    teacher[0, 7] = peak
    ranking = Ranking.of_tokens(np.arange(VOCAB), VOCAB)
    written = []
    for number, (_, uris) in enumerate(job.sequences):
        names = []
        for shard, uri in enumerate(uris):
            table = read_table(uri)
            rows = []
            for row_hash, mask in zip(table["sequence_hash"].to_pylist(), table["loss_mask"].to_pylist(), strict=True):
                (targets,) = np.nonzero(mask)
                ids, counts = sample_teacher(
                    np.repeat(teacher, len(targets), axis=0),
                    draws=DRAWS,
                    seed=0,
                    teacher_hash="t",
                    sequence_hash=row_hash,
                    positions=targets,
                )
                encoded = encode({"target_ids": ids, "target_counts": counts}, SPEC, ranking)
                rows.append({"sequence_hash": row_hash, "ranking": ranking.to_bytes(), **encoded})
            name = f"logits-{number}-{shard}.parquet"
            write_table(str(directory), name, pa.Table.from_pylist(rows, schema=LOGITS), row_group_rows=8)
            names.append(str(directory / name))
        written.append(tuple(names))
    return tuple(written)


def test_a_job_trains_from_files(tmp_path: Path) -> None:
    job = write_sequences(tmp_path, example_job(tmp_path / "checkpoints"))
    all_metrics: list[StepMetrics] = []
    run_training(job, CPU, direct_feed(job), all_metrics.append)
    assert [metrics.step for metrics in all_metrics] == list(range(1, 13))
    assert all_metrics[-1].loss < all_metrics[0].loss


def test_a_student_learns_what_the_teacher_says_not_what_the_data_say(tmp_path: Path) -> None:
    job = write_sequences(tmp_path, example_job(tmp_path / "checkpoints", config={"steps": 40}))
    job = dataclasses.replace(
        job,
        config=dataclasses.replace(job.config, objective="distill"),
        logits=write_logits(tmp_path, job, peak=20.0),
        codec=SPEC,
        max_unique=3,
    )
    all_metrics: list[StepMetrics] = []
    run_training(job, CPU, direct_feed(job), all_metrics.append)
    assert all_metrics[0].loss == pytest.approx(np.log(VOCAB), rel=0.05)
    assert all_metrics[-1].loss < 0.3  # id 7 is drawn always; in the data it is one of sixteen


def test_workers_read_the_parts_of_one_batch(tmp_path: Path) -> None:
    job = write_sequences(tmp_path, example_job(tmp_path / "checkpoints"))
    whole = make_loader(job).load(3)
    halves = [make_loader(job, rank, 2).load(3) for rank in (0, 1)]
    for name, column in whole.items():
        np.testing.assert_array_equal(column, np.concatenate([half[name] for half in halves]))
