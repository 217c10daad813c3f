"""The study's teacher: trained once by the project's own training loop, with checkpoints, and kept beside the text."""

import json
from collections.abc import Callable, Iterator

import numpy as np

from data import storage
from data.order import MixturePhase, SequenceDataset
from model import Gemma2
from pipelines.study.sizes import Sizes
from pipelines.study.text import Text
from training.backends.torch_backend import TorchBackend
from training.checkpoints.save_load import load_checkpoint
from training.config import TrainingConfig
from training.feed import HostBatch
from training.job import TrainJob
from training.loop import StepMetrics, run_training
from training.setup import Setup

CHECKPOINT_EVERY_STEPS = 100


def load_teacher(sizes: Sizes, text: Text, root: str, tell: Callable[[str], None], threads: int) -> Gemma2:
    """The trained teacher. If it is not trained yet, trains it, from its newest checkpoint if there is one."""
    directory = sizes.teacher_directory(root)
    done = storage.join(directory, "teacher.json")
    if not storage.exists(done):
        summary = run_training(
            _job(sizes, text, storage.join(directory, "checkpoints"), threads),
            TorchBackend("cpu"),
            _feed(sizes, text),
            lambda report: _tell(report, sizes, tell),
        )
        record = {"checkpoint": summary.checkpoint_uri, "loss": summary.loss, "tokens_seen": summary.tokens_seen}
        storage.write_bytes(done, json.dumps(record).encode())
    teacher = Gemma2(sizes.teacher)
    checkpoint = load_checkpoint(json.loads(storage.read_bytes(done))["checkpoint"], with_optimizer=False)
    teacher.load_state_dict(checkpoint.weights)
    return teacher.requires_grad_(False)


def _job(sizes: Sizes, text: Text, checkpoints_uri: str, threads: int) -> TrainJob:
    rows = SequenceDataset(name="stdlib", shard_rows=(len(text.teacher),), row_group_rows=len(text.teacher))
    return TrainJob(
        config=TrainingConfig(
            model=sizes.teacher,
            steps=sizes.teacher_steps,
            global_batch=sizes.batch_rows,
            seed=1000,
            checkpoint_every_steps=CHECKPOINT_EVERY_STEPS,
            optimizer=sizes.teacher_optimizer,
        ),
        checkpoints_uri=checkpoints_uri,
        sequences=((rows, ("train.parquet",)),),
        phases=(MixturePhase(start_step=0, weights=(("stdlib", 1.0),)),),
        sequence_length=sizes.sequence_length,
        vocab_size=text.vocab_size,
        setup=Setup(device="cpu", threads=threads),
    )


def _feed(sizes: Sizes, text: Text) -> Callable[[int, int], Iterator[tuple[int, HostBatch]]]:
    def feed(start_step: int, stop_step: int) -> Iterator[tuple[int, HostBatch]]:
        for step in range(start_step, stop_step):
            rows = np.arange(step * sizes.batch_rows, (step + 1) * sizes.batch_rows)
            refs = np.stack([np.zeros_like(rows), np.zeros_like(rows), rows], axis=1).astype(np.int32)
            yield step, {**text.teacher.batch(rows), "refs": refs}

    return feed


def _tell(metrics: StepMetrics, sizes: Sizes, tell: Callable[[str], None]) -> None:
    if metrics.step % 20 == 0:
        tell(f"teacher: step {metrics.step} of {sizes.teacher_steps}, loss {metrics.loss:.3f}")
