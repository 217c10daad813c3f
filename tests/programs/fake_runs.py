"""Finished runs written straight to disk, as stages would leave them, with made-up figures and without any stage."""

import dataclasses
import json
import math
import struct
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa

from data import schema, shards, storage
from data.manifest import RUN_NAME, Dataset, Manifest, Shard, publish_manifest
from pipelines.engine.inputs import Input
from pipelines.engine.stage import Context, Outcome, Stage
from pipelines.engine.task import Task, future_input
from training.config import OptimizerConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnyConfig:
    """A config that only makes fingerprints differ."""

    name: str


def _never_run(context: Context, config: Any) -> Outcome:
    raise AssertionError("a report runs no stage")


@dataclasses.dataclass(kw_only=True)
class FakeRuns:
    """A recipe's tasks under one ROOT, finished one by one."""

    root: str
    tasks: dict[str, Task] = dataclasses.field(default_factory=dict)

    def output(self, step: str, dataset: str) -> tuple[Input, ...]:
        return (future_input(self.tasks[step], dataset),)

    def finish(
        self,
        name: str,
        stage: str,
        datasets: Mapping[str, Dataset],
        *,
        inputs: Mapping[str, tuple[Input, ...]] | None = None,
        config: Mapping[str, Any] | None = None,
        seconds: float = 2.0,
        log: Mapping[str, Any] | None = None,
        dropped: Mapping[str, int] | None = None,
        setup: Mapping[str, Any] | None = None,
    ) -> Task:
        """Publishes the outputs of a step."""
        task = self.task(name, stage, tuple(datasets), inputs or {})
        recorded = {
            key: [{"reference": source.reference, "content": source.content()} for source in many]
            for key, many in task.inputs.items()
        }
        publish_manifest(
            task.directory,
            Manifest(
                stage=stage, version=1, fingerprint=task.fingerprint, config=config or {}, inputs=recorded,
                datasets=datasets, dropped=dropped or {}, setup=setup,
            ),
        )  # fmt: skip
        run = {
            "started": "2026-01-02T03:04:05+00:00",
            "seconds": seconds,
            "machine": "abacus, 2 cores",
            "log": log or {},
        }
        storage.write_bytes(storage.join(task.directory, RUN_NAME), json.dumps(run).encode())
        return task

    def task(self, name: str, stage: str, writes: tuple[str, ...], inputs: Mapping[str, tuple[Input, ...]]) -> Task:
        described = Stage(
            name=stage, module=ModuleType(stage), version=1, reads={}, writes=writes, config=AnyConfig, run=_never_run
        )
        self.tasks[name] = Task(stage=described, config=AnyConfig(name=name), inputs=inputs, root=self.root)
        return self.tasks[name]

    def directory(self, name: str, stage: str, inputs: Mapping[str, tuple[Input, ...]] | None = None) -> str:
        """The directory of a step that is not finished yet."""
        return self.task(name, stage, (), inputs or {}).directory


def listed(rows: int, size: int, tokens: int = 0, **facts: Any) -> Dataset:
    """A dataset of which a report reads no file."""
    shard = Shard(name="00000.parquet", rows=rows, bytes=size, tokens=tokens, sha256="0" * 64)
    return Dataset(shards=(shard,), facts=facts)


def add_text_path(runs: FakeRuns, dropped: Mapping[str, int]) -> None:
    """Finishes the steps collect, tokenizer, tokenize and pack."""
    text = {"text": listed(1200, 400_000, text_bytes=2_000_000), "rejects": listed(3, 900)}
    runs.finish("collect", "collect_text", text, dropped=dropped, seconds=4.0)
    runs.finish(
        "tokenizer", "train_tokenizer", {"tokenizer": listed(0, 90_000, vocab_size=2048)},
        inputs={"text": runs.output("collect", "text")},
    )  # fmt: skip
    runs.finish(
        "tokenize", "tokenize_text", {"tokens": listed(1200, 700_000, 500_000, text_bytes=2_000_000)},
        inputs={"text": runs.output("collect", "text"), "tokenizer": runs.output("tokenizer", "tokenizer")},
    )  # fmt: skip
    packed = {
        "sequences": listed(6400, 600_000, 480_000, text_bytes=1_900_000),
        "heldout": listed(64, 8_000, 8_000, text_bytes=32_000),
    }
    runs.finish("pack", "pack_sequences", packed, inputs={"tokens": runs.output("tokenize", "tokens")})


def add_training(
    runs: FakeRuns, name: str, *, objective: str, width: int, losses: np.ndarray, seed: int = 0, sequences: str = "pack"
) -> None:
    """Finishes a run of train_model with two checkpoints and a learning curve, 100 targets a step."""
    inputs = {"sequences": runs.output(sequences, "sequences")}
    if objective == "distill":
        inputs["logits"] = runs.output("cache", "logits")
    directory = runs.directory(name, "train_model", inputs)
    steps, targets = len(losses), 100
    metrics, checkpoints = [], []
    for start, stop in ((0, steps // 2), (steps // 2, steps)):
        folder = f"checkpoints/step-{stop:08d}"
        rows = [
            {
                "step": step + 1, "loss_sum": float(losses[step]) * targets, "targets": targets, "learning_rate": 1e-3,
                "grad_norm": 1.0, "tokens_seen": (step + 1) * targets,
            }
            for step in range(start, stop)
        ]  # fmt: skip
        table = pa.Table.from_pylist(rows, schema.METRICS)
        metrics.append(shards.write_table(directory, f"{folder}/metrics.parquet", table))
        checkpoints.append(shards.write_file(directory, f"{folder}/model.safetensors", safetensors(width)))
    made = {
        "checkpoints": Dataset(shards=tuple(checkpoints), facts={"steps": [steps // 2, steps]}),
        "metrics": Dataset(shards=tuple(reversed(metrics))),  # a report sorts by step
        "lineage": Dataset(shards=()),
    }
    config = {
        "objective": objective, "seed": seed, "steps": steps, "model": {"layers": 2, "d_model": width},
        "global_batch": 16, "optimizer": dataclasses.asdict(OptimizerConfig(warmup_steps=4)),
    }  # fmt: skip
    log = {"tokens_seen": steps * targets, "row_tokens_per_second": 12_345.6}
    runs.finish(
        name, "train_model", made, inputs=inputs, config=config, seconds=30.0, log=log,
        setup={"device": "cpu", "workers": 1},
    )  # fmt: skip


def safetensors(width: int) -> bytes:
    """The file of one 2048 x width matrix, without its values: a report reads the header."""
    header = {
        "__metadata__": {"format": "pt"},
        "embedder": {"dtype": "F32", "shape": [2048, width], "data_offsets": [0, 8192 * width]},
    }
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text


def add_cache(runs: FakeRuns, teacher: str) -> None:
    logits = listed(6400, 900_000, draws=50, targets=10_000, stored_ids=300_000, max_unique=44, vocab_size=2048)
    inputs = {"sequences": runs.output("pack", "sequences"), "teacher": runs.output(teacher, "checkpoints")}
    runs.finish("cache", "cache_logits", {"logits": logits}, inputs=inputs, log={"row_tokens": 480_000}, seconds=10.0)


def add_evaluation(runs: FakeRuns, model: str, loss: float, step: int, unigram: float | None = 6.25) -> None:
    figures: dict[str, float] = {"targets": 4000, "text_bytes": 16_000, "step": step}
    for prefix, value in (("", loss), ("unigram_", unigram)):
        if value is not None:
            figures |= {f"{prefix}loss_per_token": value, f"{prefix}perplexity": math.exp(value)}
            figures[f"{prefix}bits_per_byte"] = value / 4 / math.log(2)
    runs.finish(
        f"evaluate_{model}",
        "evaluate_model",
        {"metrics": listed(6, 900, **figures)},
        inputs={"checkpoint": runs.output(model, "checkpoints"), "heldout": runs.output("pack", "heldout")},
        log={"row_tokens": 8_000},
    )


def add_texts(runs: FakeRuns, model: str, texts: Mapping[str, str]) -> None:
    """Finishes a run of generate_text. `texts` is prompt -> continuation."""
    inputs = {"checkpoint": runs.output(model, "checkpoints"), "tokenizer": runs.output("tokenizer", "tokenizer")}
    directory = runs.directory("generate", "generate_text", inputs)
    rows = [
        {
            "id": f"{number:032x}", "content_hash": "0" * 32, "text": prompt + more, "source": "generate_text",
            "metadata": json.dumps({"prompt": prompt}), "masked_spans": [],
        }
        for number, (prompt, more) in enumerate(texts.items())
    ]  # fmt: skip
    shard = shards.write_table(directory, "text/00000.parquet", pa.Table.from_pylist(rows, schema.TEXT))
    made = {"text": Dataset(shards=(shard,), facts={"new_tokens": 24})}
    log = {"new_tokens": 24, "new_tokens_per_second": 48.0}
    runs.finish("generate", "generate_text", made, inputs=inputs, log=log, setup={"device": "cpu"})


def falling(steps: int, first: float, last: float, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    """A loss that falls with noise."""
    place = np.arange(steps) / max(1, steps - 1)
    wobble = np.random.Generator(np.random.Philox(seed)).normal(0, noise, steps) if noise else 0.0
    return last + (first - last) * np.exp(-7 * place) + wobble


def whole_path(
    root: str, *, distilled: float = 4.5, scratch: float = 4.75, steps: int = 40, noise: float = 0.0
) -> FakeRuns:
    """The runs of `demo`: a teacher, its cache, two students, their evaluations, texts."""
    runs = FakeRuns(root=root)
    add_text_path(runs, dropped={"not_utf8": 2, "<b>bad</b>": 1})
    add_training(runs, "teacher", objective="next_token", width=64, losses=falling(steps, 7.6, 4.2, noise, 1))
    add_cache(runs, "teacher")
    add_training(runs, "distilled", objective="distill", width=32, losses=falling(steps, 7.6, 4.9, noise / 2, 2))
    add_training(runs, "scratch", objective="next_token", width=32, losses=falling(steps, 7.6, 4.7, noise, 3))
    for name, loss in (("teacher", 4.25), ("distilled", distilled), ("scratch", scratch)):
        add_evaluation(runs, name, loss, steps)
    add_texts(
        runs,
        "distilled",
        {"def f(": "self):\n    return <script>alert(1)</script>\x1b[31m & so on", "import os\n": "os"},
    )
    return runs
