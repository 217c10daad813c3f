"""Small runs of real text for tests of cached logits: packed rows, a teacher, its cache; no Ray, seconds in all.

Rows and teacher are made by the functions under the stages, and published as the stages publish them. `cache_logits`
and the stages that read its output run unchanged.
"""

import shutil
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data import shards, storage
from data.manifest import MANIFEST_NAME, Dataset, Manifest, publish_manifest, read_manifest
from data.order import MixturePhase, SequenceDataset
from data.packing import Document, pack_documents
from data.tokenizer import Tokenizer, train_tokenizer
from model import Gemma2Config, gemma2_tiny
from pipelines.checkpoints.loaded import committed_files
from pipelines.engine.resources import Resources
from pipelines.engine.runner import run_task
from pipelines.engine.stage import load_stage
from pipelines.engine.task import Task, resolve_inputs
from tests.programs.in_process import InProcess
from training.backends.torch_backend import TorchBackend
from training.config import OptimizerConfig, TrainingConfig
from training.feed import direct_feed
from training.job import TrainJob
from training.loop import run_training
from training.setup import Setup

VOCAB, LENGTH, SHARD_ROWS, SHARDS, ROW_GROUP_ROWS = 1024, 64, 24, 3, 8
STEPS = 100
EARLIER = STEPS - STEPS // 100
"""step of a checkpoint, 1 % of training before the last one"""


@dataclass(frozen=True)
class Runs:
    """A ROOT with packed rows of two sources and a teacher of two checkpoints."""

    root: Path
    tokenizer: Tokenizer
    sequences: str
    other_sequences: str
    """directory of packed rows of other documents"""
    teacher: str

    def run(self, stage: str, config: Mapping[str, Any], device: str = "cpu", **inputs: str | list[str]) -> Manifest:
        """Runs a stage in this process, and lets its exceptions pass."""
        return run_task(self.task(stage, config, **inputs), Resources(device=device), InProcess(), say=lambda _: None)

    def task(self, name: str, config: Mapping[str, Any], *, root: str | None = None, **inputs: str | list[str]) -> Task:
        stage = load_stage(name)
        made = stage.config(**config)
        given = {key: [many] if isinstance(many, str) else many for key, many in inputs.items()}
        resolved = resolve_inputs(stage, made, given, str(self.root))
        return Task(stage=stage, config=made, inputs=resolved, root=root or str(self.root))

    def cache(self, **config: Any) -> str:
        """Directory of a cache of the teacher's logits for `sequences`."""
        task = self.task("cache_logits", config, sequences=self.sequences, teacher=self.teacher)
        run_task(task, Resources(device="cpu"), InProcess(), say=lambda _: None)
        return task.directory


def make_runs(root: Path) -> Runs:
    library = Path(sysconfig.get_paths()["stdlib"])
    texts = [path.read_text(encoding="utf-8") for path in sorted(library.glob("[a-d]*.py"))]
    tokenizer = Tokenizer.from_bytes(train_tokenizer(texts[:20], VOCAB))
    half = len(texts) // 2
    sequences = write_sequences(root, "a", tokenizer, texts[:half], SHARDS)
    other = write_sequences(root, "b", tokenizer, texts[half:], SHARDS)
    return Runs(root, tokenizer, sequences, other, train_teacher(root, sequences, tokenizer.sha256))


def write_sequences(root: Path, source: str, tokenizer: Tokenizer, texts: list[str], count: int, first: int = 0) -> str:
    """Directory of a run of pack_sequences with `count` shards. Shard k has rows first + k ... of the texts."""
    documents = [
        Document(id=f"{source}{number}", tokens=np.array(tokenizer.encode_document(text), np.int32), text_bytes=1)
        for number, text in enumerate(texts)
    ]
    table = pack_documents(documents, LENGTH)
    directory = str(root / "pack_sequences" / f"{source}{count}{first}".encode().hex().ljust(16, "0"))
    made, targets = [], 0
    for number in range(count):
        part = table.slice((first + number) * SHARD_ROWS, SHARD_ROWS)
        assert part.num_rows == SHARD_ROWS
        targets += sum(map(sum, part["loss_mask"].to_pylist()))
        name = f"sequences/{number:05d}.parquet"
        made.append(shards.write_table(directory, name, part, row_group_rows=ROW_GROUP_ROWS))
    facts = {"sequence_length": LENGTH, "vocab_size": VOCAB, "row_group_rows": ROW_GROUP_ROWS, "targets": targets}
    dataset = Dataset(shards=tuple(made), facts={**facts, "source": source})
    publish_run(directory, "pack_sequences", {"sequences": dataset}, tokenizer.sha256)
    return directory


def train_teacher(root: Path, sequences: str, tokenizer_sha256: str, seed: int = 0, vocab_size: int = VOCAB) -> str:
    """Directory of a run of train_model with checkpoints after EARLIER and after STEPS steps."""
    directory = str(root / "train_model" / f"{seed:016x}")
    manifest = read_manifest(sequences)
    assert manifest is not None
    data = manifest.datasets["sequences"]
    dataset = SequenceDataset(
        name="rows", shard_rows=tuple(shard.rows for shard in data.shards), row_group_rows=ROW_GROUP_ROWS
    )
    job = TrainJob(
        config=TrainingConfig(
            model=teacher_config(vocab_size), steps=STEPS, global_batch=8, checkpoint_every_steps=EARLIER, seed=seed,
            optimizer=OptimizerConfig(learning_rate=5e-3, warmup_steps=10),
        ),
        checkpoints_uri=storage.join(directory, "checkpoints"),
        sequences=((dataset, tuple(storage.join(sequences, shard.name) for shard in data.shards)),),
        phases=(MixturePhase(start_step=0, weights=(("rows", 1.0),)),),
        sequence_length=LENGTH,
        vocab_size=VOCAB,
        setup=Setup(device="cpu", threads=1),  # so small that a second thread would only wait
    )  # fmt: skip
    run_training(job, TorchBackend("cpu"), direct_feed(job))
    files, steps = committed_files(directory)
    checkpoints = Dataset(shards=files["checkpoints"], facts={"steps": steps, "vocab_size": VOCAB})
    publish_run(directory, "train_model", {"checkpoints": checkpoints}, tokenizer_sha256)
    return directory


def teacher_config(vocab_size: int = VOCAB) -> Gemma2Config:
    return gemma2_tiny(vocab_size=vocab_size, d_model=32, ffw_dim=64, heads=2, kv_heads=1, head_dim=16, query_scale=16)


def forge(
    cache: str,
    copy: Path,
    change: Callable[[int, pa.Table], pa.Table] = lambda _, table: table,
    facts: Mapping[str, Any] | None = None,
    **manifest: Any,
) -> str:
    """A copy of a cache with other tables, facts or fields of the manifest, but with correct sizes and hashes."""
    shutil.copytree(cache, copy, ignore=shutil.ignore_patterns("audits-*"))
    before = read_manifest(cache)
    assert before is not None
    logits = before.datasets["logits"]
    made = []
    for number, shard in enumerate(logits.shards):
        table = change(number, shards.read_table(storage.join(cache, shard.name)))
        made.append(shards.write_table(str(copy), shard.name, table, row_group_rows=64))
    dataset = replace(logits, shards=tuple(made), facts={**logits.facts, **(facts or {})})
    (copy / MANIFEST_NAME).unlink()
    publish_manifest(str(copy), replace(before, datasets={"logits": dataset}, **manifest))
    return str(copy)


def publish_run(directory: str, stage: str, datasets: Mapping[str, Dataset], tokenizer_sha256: str) -> None:
    publish_manifest(
        directory,
        Manifest(
            stage=stage,
            version=1,
            fingerprint=Path(directory).name,
            config={},
            inputs={},
            datasets=datasets,
            tokenizer_sha256=tokenizer_sha256,
        ),
    )


def described(manifest: Manifest) -> dict[str, Any]:
    """The manifest as plain values, for the message of a failed test."""
    return asdict(manifest)
