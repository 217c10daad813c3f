"""A cache is a function of rows, teacher and config; it is refused for other rows, and used as it is for all else."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data import storage
from data.manifest import MANIFEST_NAME, Manifest, publish_manifest, read_manifest
from data.shards import read_table
from infra.ray_session import RaySession
from pipelines.engine.resources import Resources
from pipelines.engine.runner import run_task
from pipelines.engine.stage import Context
from pipelines.stages import train_model
from pipelines.stages.train_model import Config as TrainConfig
from tests.programs.cached_runs import (
    SHARD_ROWS,
    Runs,
    forge,
    make_runs,
    teacher_config,
    train_teacher,
    write_sequences,
)
from tests.programs.in_process import InProcess
from tests.programs.places import REPOSITORY
from training.backends.torch_backend import TorchBackend
from training.config import DistillConfig, OptimizerConfig
from training.feed import direct_feed, make_loader
from training.job import TrainJob
from training.loop import run_training
from training.setup import Setup

pytestmark = pytest.mark.slow
EVERY_KIND: tuple[dict[str, Any], ...] = (
    {},
    {"estimator": "topk", "top": 12},
    {"proposal": 0.8},
    {"estimator": "full"},
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return make_runs(tmp_path_factory.mktemp("cached"))


def shas(directory: str) -> list[str]:
    manifest = read_manifest(directory)
    assert manifest is not None
    return [shard.sha256 for shard in manifest.datasets["logits"].shards]


def cached(runs: Runs, root: Path, session: RaySession, **inputs: str) -> Manifest:
    """The manifest of a cache made anew below `root`."""
    given = {"sequences": runs.sequences, "teacher": runs.teacher, **inputs}
    task = runs.task("cache_logits", {}, root=str(root), **given)
    return run_task(task, Resources(device="cpu"), session, say=lambda _: None)


class Backwards(InProcess):
    """Runs the tasks from the last to the first."""

    def map(
        self, tasks: Mapping[int, Any], work: Callable[[int, Any], dict[str, Any]], **settings: Any
    ) -> Iterator[dict[str, Any]]:
        return super().map(dict(reversed(tasks.items())), work, **settings)


def test_neither_the_order_of_shards_nor_replicas_at_once_change_a_byte(
    runs: Runs, tmp_path: Path, ray_session: RaySession, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = cached(runs, tmp_path / "a", InProcess())
    assert first.setup == {"device": "cpu"}
    assert cached(runs, tmp_path / "b", Backwards()) == first
    ray_session.start()
    monkeypatch.setattr(
        "infra.ray_session.node_share", lambda nodes: {"num_cpus": 1}
    )  # two replicas of the teacher on this machine's two CPUs
    assert cached(runs, tmp_path / "c", ray_session) == first


def test_more_shards_leave_the_logits_of_the_others_alone(runs: Runs, tmp_path: Path) -> None:
    texts = [Path(os.__file__).read_text(), Path(subprocess.__file__).read_text()]
    few = write_sequences(tmp_path, "c", runs.tokenizer, texts, 2)
    more = write_sequences(tmp_path, "c", runs.tokenizer, texts, 4)
    last = write_sequences(tmp_path, "c", runs.tokenizer, texts, 2, first=2 * SHARD_ROWS // SHARD_ROWS)
    made = {
        name: [shard.sha256 for shard in cached(runs, tmp_path, InProcess(), sequences=of).datasets["logits"].shards]
        for name, of in (("few", few), ("more", more), ("last", last))
    }
    assert made["more"] == made["few"] + made["last"]


def test_seed_teacher_and_draws_change_every_shard(runs: Runs) -> None:
    first = shas(runs.cache())
    for config in ({"seed": 7}, {"draws": 49}, {"temperature": 1.01}, {"dtype": "bfloat16"}):
        assert not set(shas(runs.cache(**config))) & set(first)


def test_a_killed_capture_goes_on_at_the_shard_it_was_at(runs: Runs, tmp_path: Path) -> None:
    reference = cached(runs, tmp_path / "whole", InProcess())
    task = runs.task("cache_logits", {}, root=str(tmp_path / "killed"), sequences=runs.sequences, teacher=runs.teacher)
    script = f"""
import os, signal
from data import storage
from pipelines.engine.runner import run_task
from pipelines.engine.stage import Resources
from tests.programs.cached_runs import Runs
from tests.programs.in_process import InProcess
import pathlib
runs = Runs(pathlib.Path({str(runs.root)!r}), None, {runs.sequences!r}, "", {runs.teacher!r})
move, moved = storage.move, []
def dying(source, target, **how):
    if "/logits/" in target:
        if len(moved) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        moved.append(target)
    move(source, target, **how)
storage.move = dying
root = {str(tmp_path / "killed")!r}
task = runs.task("cache_logits", {{}}, root=root, sequences=runs.sequences, teacher=runs.teacher)
run_task(task, Resources(device="cpu"), InProcess(), say=lambda _: None)
"""
    died = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert read_manifest(task.directory) is None
    done = {path: path.stat().st_mtime_ns for path in Path(task.directory).glob("logits/*.parquet")}
    assert len(done) == 2
    assert cached(runs, tmp_path / "killed", InProcess()) == reference
    assert {path: path.stat().st_mtime_ns for path in done} == done


def job_of(runs: Runs, make_context: Callable[..., Context], logits: list[str], **changes: Any) -> TrainJob:
    """What `train_model` makes of these inputs."""
    optimizer = OptimizerConfig(learning_rate=5e-3)
    fields = {"model": teacher_config(), "objective": "distill", "steps": 30, "global_batch": 4, "optimizer": optimizer}
    config = TrainConfig(**(fields | changes))
    sequences = [runs.sequences, runs.other_sequences][: len(logits)]
    task = runs.task("train_model", fields | changes, sequences=sequences, logits=logits)
    inputs = {name: list(many) for name, many in task.inputs.items()}
    return train_model.job_of(make_context(inputs=inputs), config, Setup(device="cpu"))


@pytest.mark.parametrize(
    ("kind", "tail"),
    [*((kind, "bucket") for kind in EVERY_KIND), *((EVERY_KIND[1], tail) for tail in ("renormalize", "ground_truth"))],
    ids=str,
)
def test_a_student_learns_from_every_kind_of_cache(
    runs: Runs, make_context: Callable[..., Context], tmp_path: Path, kind: dict[str, Any], tail: Any
) -> None:
    job = replace(
        job_of(runs, make_context, [runs.cache(**kind)], distill=DistillConfig(tail=tail)),
        checkpoints_uri=str(tmp_path),
        setup=Setup(device="cpu", threads=1),
        sequence_length=64,
    )
    losses = []
    run_training(job, TorchBackend("cpu"), direct_feed(job), lambda report: losses.append(report.loss))
    assert np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


def test_a_tail_for_a_cache_that_has_none_is_refused(runs: Runs, make_context: Callable[..., Context]) -> None:
    with pytest.raises(
        ValueError, match=r"got --distill.tail ground_truth, which is for the mass outside of a top-k.*'sample'"
    ):
        job_of(runs, make_context, [runs.cache()], distill=DistillConfig(tail="ground_truth"))


def test_one_cache_serves_any_mixture_workers_epoch_and_student(
    runs: Runs, make_context: Callable[..., Context]
) -> None:
    caches = [runs.cache()]
    other = runs.task("cache_logits", {}, sequences=runs.other_sequences, teacher=runs.teacher)
    run_task(other, Resources(device="cpu"), InProcess(), say=lambda _: None)
    caches.append(other.directory)
    targets: dict[int, bytes] = {}
    seen = 0
    students = (teacher_config(), replace(teacher_config(), layers=4, d_model=32))
    for mixture, workers, seed, student in (("0:a=1,b=1", 1, 0, students[0]), ("0:a=1,b=9", 2, 5, students[1])):
        job = job_of(runs, make_context, caches, mixture=(mixture,), order_seed=seed, model=student)
        for rank in range(workers):
            loader = make_loader(job, rank, workers)
            for step in range(0, 200, 9):  # 72 rows each: several epochs
                batch = loader.load(step)
                for row, sequence_hash in enumerate(batch["sequence_hash"].tolist()):
                    mine = batch["target_ids"][row].tobytes() + batch["target_counts"][row].tobytes()
                    seen += sequence_hash in targets
                    assert targets.setdefault(sequence_hash, mine) == mine
    assert seen > len(targets) / 2


def test_logits_of_other_rows_tokenizer_or_vocabulary_are_refused_by_both_names(
    runs: Runs, make_context: Callable[..., Context], tmp_path: Path
) -> None:
    cache = runs.cache()
    mistakes = {
        "a": (
            {"facts": {"sequences_content": "content:0"}},
            "was computed on .*pack_sequences/.* not on pack_sequences/",
        ),
        "b": (
            {"tokenizer_sha256": "f" * 64},
            "pack_sequences/.* has tokenizer .*, and cache_logits/.* has tokenizer ffff",
        ),
        "c": (
            {"facts": {"codec": {"vocab_size": 1152, "estimator": "sample", "draws": 50}}},
            "cache_logits/.* of 1152 ids, and pack_sequences/.* 1024",
        ),
        "d": ({"facts": {"codec": None}}, "earlier version wrote it; run cache_logits again"),
    }
    for name, (change, message) in mistakes.items():
        forgery = forge(cache, tmp_path / name, **change)
        with pytest.raises(ValueError, match=message):
            job_of(runs, make_context, [forgery])
    other = runs.task("cache_logits", {"draws": 9}, sequences=runs.other_sequences, teacher=runs.teacher)
    run_task(other, Resources(device="cpu"), InProcess(), say=lambda _: None)
    with pytest.raises(ValueError, match="got logits of different kinds"):
        job_of(runs, make_context, [cache, other.directory])


def test_a_row_of_another_hash_and_a_shard_of_another_run_are_refused_while_reading(
    runs: Runs, make_context: Callable[..., Context], tmp_path: Path
) -> None:
    cache = runs.cache()

    def flipped(_: int, table: Any) -> Any:
        hashes = table["sequence_hash"].to_numpy() ^ np.uint64(1)
        return table.set_column(0, table.schema.field(0), [hashes])

    others = runs.run("cache_logits", {"seed": 0}, sequences=runs.other_sequences, teacher=runs.teacher)
    where = storage.join(str(runs.root), "cache_logits", others.fingerprint, "logits/00001.parquet")
    foreign = forge(cache, tmp_path / "b", lambda number, table: read_table(where) if number == 1 else table)
    for forgery in (forge(cache, tmp_path / "a", flipped), foreign):
        loader = make_loader(job_of(runs, make_context, [forgery]))
        message = r"row \d+ of .*logits/0000.*, and row \d+ of .*sequences/0000.*run cache_logits"
        with pytest.raises(ValueError, match=message):
            list(map(loader.load, range(18)))  # every row


def test_a_shard_of_another_run_over_the_same_rows_is_refused(
    runs: Runs, make_context: Callable[..., Context], tmp_path: Path
) -> None:
    cache = runs.cache()
    where = storage.join(runs.cache(seed=9), "logits/00001.parquet")
    mixed = forge(cache, tmp_path / "mixed", lambda number, table: read_table(where) if number == 1 else table)
    loader = make_loader(job_of(runs, make_context, [mixed]))
    with pytest.raises(ValueError, match=r"00001.parquet was made as .*, and its manifest is of .*a shard of another"):
        list(map(loader.load, range(18)))  # every row


def test_a_student_of_another_vocabulary_is_refused(runs: Runs, make_context: Callable[..., Context]) -> None:
    larger = replace(teacher_config(), vocab_size=1152)
    with pytest.raises(ValueError, match="the logits are for 1024 ids, and the student's vocabulary has 1152"):
        job_of(runs, make_context, [runs.cache()], model=larger)


def test_a_teacher_of_another_vocabulary_or_tokenizer_is_refused(runs: Runs, tmp_path: Path) -> None:
    padded = train_teacher(tmp_path / "padded", runs.sequences, runs.tokenizer.sha256, vocab_size=1152)
    with pytest.raises(ValueError, match="vocabulary has 1152 ids and the sequences' vocabulary has 1024"):
        cached(runs, tmp_path, InProcess(), teacher=padded)
    manifest = read_manifest(padded)
    assert manifest is not None
    Path(padded, MANIFEST_NAME).unlink()
    publish_manifest(padded, replace(manifest, tokenizer_sha256="f" * 64))
    with pytest.raises(ValueError, match=r"pack_sequences/.* has tokenizer .*, and train_model/.* has tokenizer ffff"):
        cached(runs, tmp_path, InProcess(), teacher=padded)
