"""Losses of 100 steps of a very small Gemma 2, through the product's own loop: two devices, two objectives.

    python -m tests.programs.golden_losses > tests/golden/losses.json     remakes the file (half a minute on two cores)
    python -m tests.programs.golden_losses 20 cpu distill                 prints the first 20 losses of a curve

`tests/golden/test_losses.py` compares the curves with the file. A pure refactor leaves the file alone. A change of the
numbers remakes it, and its commit explains the difference.

    made-up documents -> packed rows (several documents in a row, some tokens masked, padding) -> next_token
                         packed rows -> teacher of drawn weights -> draws -> coded as cache_logits does -> distill

Devices have processes of their own, with one thread: PJRT_DEVICE is read when torch_xla is imported. On xla most of
the time is tracing, step by step, so each objective has its process. A draw of the teacher that falls on a boundary may
be rounded to another id on another kind of CPU. There are too few draws for that to be likely.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa

from data.loader import SequenceReader
from data.logits import Ranking, encode
from data.order import MixturePhase, SequenceDataset
from data.packing import Document, pack_documents
from data.schema import LOGITS
from data.shards import write_table
from model import Gemma2, gemma2_tiny
from tests.programs.places import REPOSITORY
from tests.programs.xla_flags import QUICK_COMPILES
from training.backends.make import make_backend
from training.backends.torch_backend import TorchBackend
from training.checkpoints.records import read_rows
from training.config import DistillConfig, Objective, OptimizerConfig, TrainingConfig
from training.distill.kinds.sample import Sample
from training.distill.teacher import capture
from training.feed import direct_feed
from training.job import TrainJob
from training.loop import StepMetrics, run_training
from training.setup import Setup

DEVICES = ("cpu", "xla")
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
STEPS, GLOBAL_BATCH = 100, 4
VOCAB, LENGTH = 64, 32
KIND = Sample(draws=8)
SHARD_ROWS, ROW_GROUP_ROWS = (24, 16), 8
SIZES = {"d_model": 32, "ffw_dim": 64, "heads": 2, "kv_heads": 1, "head_dim": 16, "query_scale": 16, "window": 9}

PROCESSES: tuple[tuple[str, ...], ...] = (("xla", "next_token"), ("xla", "distill"), ("cpu", *OBJECTIVES))
"""device and objectives of each process"""

Curves = dict[str, list[float]]
"""objective -> loss of each step, in nats a target"""


def curves_of(steps: Mapping[str, int]) -> dict[str, Curves]:
    """The first losses of each device in `steps`, from processes that run at the same time.

    Raises RuntimeError if a process fails.
    """
    environment = {
        **{name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ},
        "PJRT_DEVICE": "CPU",
        "CPU_NUM_DEVICES": "1",
        "OMP_NUM_THREADS": "1",
        "XLA_FLAGS": QUICK_COMPILES,
        "TF_CPP_MIN_LOG_LEVEL": "2",  # errors
        "PYTHONPATH": str(REPOSITORY),
    }
    curves: dict[str, Curves] = {device: {} for device in steps}
    running = []
    for device, *objectives in PROCESSES:
        if device in curves:
            words = [sys.executable, "-m", "tests.programs.golden_losses", str(steps[device]), device, *objectives]
            running.append((device, subprocess.Popen(words, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE)))
    printed = [(device, process.communicate()[0], process.returncode) for device, process in running]
    for device, output, code in printed:
        if code:
            raise RuntimeError(f"training on {device} failed with exit code {code}; its errors are above")
        curves[device] |= json.loads(output.splitlines()[-1])
    return curves


class Enough(Exception):
    """Ends a run of the loop."""


def trained(device: str, objective: str, directory: Path, steps: int) -> list[float]:
    """The loss of each of the first steps. That of all steps is from the metrics beside the checkpoint of the loop."""
    job = golden_job(device, objective, directory)
    losses: list[float] = []

    def keep(metrics: StepMetrics) -> None:
        losses.append(metrics.loss)
        if len(losses) == steps < STEPS:
            raise Enough

    with contextlib.suppress(Enough):
        run_training(job, make_backend(job.setup), direct_feed(job), keep)
    if steps < STEPS:
        return losses
    metrics = read_rows(job.checkpoints_uri, "metrics")
    assert metrics is not None
    assert metrics["step"].to_pylist() == list(range(1, STEPS + 1))
    return [row["loss_sum"] / row["targets"] for row in metrics.to_pylist()]


def golden_job(device: Any, objective: Any, directory: Path) -> TrainJob:
    """The job, after its rows and, for `distill`, its cached logits are written."""
    sequences = write_rows(directory)
    distill: dict[str, Any] = {}
    if objective == "distill":
        distill = {"logits": (write_logits(directory, sequences),), "codec": KIND.codec(VOCAB)}
    return TrainJob(
        config=TrainingConfig(
            model=gemma2_tiny(vocab_size=VOCAB, **SIZES),
            objective=objective,
            distill=DistillConfig(alpha=0.25 if objective == "distill" else 0.0),
            steps=STEPS,
            global_batch=GLOBAL_BATCH,
            checkpoint_every_steps=STEPS,
            optimizer=OptimizerConfig(learning_rate=0.003, warmup_steps=10),
        ),
        checkpoints_uri=str(directory / objective),
        sequences=((SequenceDataset(name="rows", shard_rows=SHARD_ROWS, row_group_rows=ROW_GROUP_ROWS), sequences),),
        phases=(MixturePhase(start_step=0, weights=(("rows", 1.0),)),),
        sequence_length=LENGTH,
        vocab_size=VOCAB,
        setup=Setup(device=device, threads=1),
        **distill,
    )


def write_rows(directory: Path) -> tuple[str, ...]:
    """The packed shards. Each token has four equally likely successors, so that a little can be learned."""
    rng = np.random.default_rng(11)
    documents = []
    for number in range(140):
        tokens = [1]
        for successor in rng.integers(0, 4, rng.integers(2, 25)).tolist():
            tokens.append(3 + (5 * tokens[-1] + 7 * successor) % (VOCAB - 3))
        masked = [(2, 2 + int(rng.integers(1, len(tokens))))] if number % 3 == 0 and len(tokens) > 3 else []
        spans = [(start, min(stop, len(tokens))) for start, stop in masked]
        documents.append(
            Document(id=f"{number:032x}", tokens=np.array([*tokens, 2], np.int32), text_bytes=len(tokens), masked=spans)
        )
    table = pack_documents(documents, LENGTH, "best_fit")
    assert table.num_rows >= sum(SHARD_ROWS), table.num_rows
    starts = np.cumsum((0, *SHARD_ROWS[:-1])).tolist()
    names = [f"sequences-{shard}.parquet" for shard in range(len(SHARD_ROWS))]
    for name, start, rows in zip(names, starts, SHARD_ROWS, strict=True):
        write_table(str(directory), name, table.slice(start, rows), row_group_rows=ROW_GROUP_ROWS)
    return tuple(str(directory / name) for name in names)


def write_logits(directory: Path, sequences: tuple[str, ...]) -> tuple[str, ...]:
    """A cache of draws at each target of the rows, from a teacher whose weights are drawn wide enough to be sure."""
    model = Gemma2(gemma2_tiny(vocab_size=VOCAB, init_std=0.3, **SIZES), seed=1).requires_grad_(False)
    spec = KIND.codec(VOCAB)
    reader, backend = SequenceReader(sequences, ROW_GROUP_ROWS, VOCAB), TorchBackend("cpu")
    uris = []
    for shard, rows in enumerate(SHARD_ROWS):
        batch = reader.read([(shard, row) for row in range(rows)])
        ranking = Ranking.of_tokens(batch["tokens"], VOCAB)
        # not weights_hash: the last bits of drawn weights depend on the CPU, and with its hash every draw would
        (kept,) = capture(model, backend, [batch], KIND, seed=0, teacher_hash="golden")
        coded: list[dict[str, Any]] = [
            {"sequence_hash": sequence_hash, **encode(row, spec, ranking)}
            for row, sequence_hash in zip(kept, batch["sequence_hash"].tolist(), strict=True)
        ]
        coded[0]["ranking"] = ranking.to_bytes()
        name = f"logits-{shard}.parquet"
        write_table(str(directory), name, pa.Table.from_pylist(coded, LOGITS), row_group_rows=ROW_GROUP_ROWS)
        uris.append(str(directory / name))
    return tuple(uris)


def main(*words: str) -> None:
    if not words:
        print(json.dumps(curves_of(dict.fromkeys(DEVICES, STEPS)), indent=1, sort_keys=True))
        return
    steps, device, *objectives = words
    with tempfile.TemporaryDirectory() as folder:
        curves = {objective: trained(device, objective, Path(folder), int(steps)) for objective in objectives}
    print(json.dumps(curves))


if __name__ == "__main__":
    main(*sys.argv[1:])
