"""The figures of a recipe's run, for the report: read from manifests, `_RUN.json` and listed shards, nothing else.

    tasks -> StepFigures, ModelFigures, CacheFigures, Completion -> sentences

The same files give the same figures. Cost: a few small files a step, and the learning curves of each model.
"""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from data import shards, storage
from data.manifest import Dataset, Manifest
from pipelines.engine.runner import read_run
from pipelines.engine.task import Task

SMOOTHED_SHARE = 25
"""a point of a smoothed curve is the mean over one 25th of the steps"""
EQUAL_NATS = 0.0005
"""losses closer than this are printed as equal: three decimals are shown"""


@dataclass(frozen=True, kw_only=True)
class StepFigures:
    """What one step made, from how much, how fast."""

    name: str
    stage: str
    reference: str
    """`stage/fingerprint`"""
    made: str
    """rows of each dataset, in words"""
    text_bytes: int | None
    """UTF-8 bytes of the text it made; where it makes none, of the text that it read"""
    tokens: int | None
    """tokens in its rows; of a stage that runs a model: targets, the tokens that were predicted"""
    stored_bytes: int
    """sizes of all files it made"""
    seconds: float | None
    """wall time of the attempt that finished it"""
    speed: str
    """with its unit; empty where it is not known"""
    dropped: Mapping[str, int]
    """rows dropped, by reason"""
    device: str


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Training loss by step, in nats a target."""

    steps: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A checkpoint on held-out rows."""

    heldout: str
    """reference of the rows"""
    targets: int
    loss: float
    """nats a target token"""
    perplexity: float
    bits_per_byte: float
    unigram: Mapping[str, float]
    """the same three of the unigram baseline; empty where none was computed"""


@dataclass(frozen=True, kw_only=True)
class ModelFigures:
    """A trained model, evaluated or not."""

    name: str
    objective: str
    """next_token or distill; empty where it was trained elsewhere"""
    shape: str
    """width and layers in words"""
    parameters: int | None
    step: int
    tokens_seen: int | None
    evaluation: Evaluation | None
    task: Task | None
    setting: str
    """config but for the objective, and training rows: models are comparable where it is the same"""


@dataclass(frozen=True, kw_only=True)
class CacheFigures:
    """A cache of a teacher's logits."""

    name: str
    draws: int
    """0 where nothing was drawn: the most likely ids were kept"""
    targets: int
    stored_ids: int
    max_unique: int
    vocab_size: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A prompt and what a model made of it."""

    step: str
    model: str
    prompt: str
    continuation: str


@dataclass(frozen=True, kw_only=True)
class Figures:
    """All that a report shows."""

    recipe: str
    steps: tuple[StepFigures, ...]
    models: tuple[ModelFigures, ...]
    caches: tuple[CacheFigures, ...]
    completions: tuple[Completion, ...]
    runs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """`_RUN.json` by step"""


def read_figures(recipe: str, tasks: Mapping[str, Task]) -> Figures:
    """Of the steps that have finished."""
    found = {name: task.manifest() for name, task in tasks.items()}
    manifests = {name: manifest for name, manifest in found.items() if manifest is not None}
    runs = {name: read_run(tasks[name].directory) for name in manifests}
    caches = [
        (name, manifest.datasets["logits"]) for name, manifest in manifests.items() if manifest.stage == "cache_logits"
    ]
    return Figures(
        recipe=recipe,
        steps=tuple(_step(name, tasks[name], manifest, runs[name]) for name, manifest in manifests.items()),
        models=_models(tasks, manifests, runs),
        caches=tuple(
            CacheFigures(
                name=name,
                bytes=logits.bytes,
                **{
                    key: int(logits.facts[key] or 0)
                    for key in ("draws", "targets", "stored_ids", "max_unique", "vocab_size")
                },
            )
            for name, logits in caches
        ),
        completions=tuple(
            completion
            for name, manifest in manifests.items()
            if manifest.stage == "generate_text"
            for completion in _completions(name, tasks, manifest)
        ),
        runs=runs,
    )


def _step(name: str, task: Task, manifest: Manifest, run: Mapping[str, Any]) -> StepFigures:
    log, seconds = run.get("log", {}), run.get("seconds")
    text_bytes = _text_bytes(task, manifest)
    tokens = _tokens(manifest, log)
    read = sum(one.data.tokens for one in _inputs(task) if not one.external)  # a packing drops rows over its limit
    return StepFigures(
        name=name,
        stage=manifest.stage,
        reference=f"{manifest.stage}/{manifest.fingerprint}",
        made=_made(manifest, task.stage.writes),
        text_bytes=text_bytes,
        tokens=tokens,
        stored_bytes=sum(dataset.bytes for dataset in manifest.datasets.values()),
        seconds=seconds,
        speed=_speed(log, seconds, read or tokens, text_bytes),
        dropped=manifest.dropped,
        device=str((manifest.setup or {}).get("device", "")),
    )


_UNITS = {
    "text": "document", "tokens": "document", "rejects": "reject", "clusters": "duplicate", "hits": "hit",
    "sequences": "row", "heldout": "held-out row", "logits": "row",
}  # fmt: skip
_MODEL_STAGES = ("train_model", "cache_logits", "evaluate_model", "generate_text")


def _made(manifest: Manifest, names: Sequence[str]) -> str:
    """ "2,310 documents, 4 rejects"; the datasets in the order that the stage names them in."""
    if manifest.stage == "train_model":
        steps = manifest.datasets["checkpoints"].facts["steps"]
        return f"{_count(steps[-1], 'step')}, {_count(len(steps), 'checkpoint')}"
    if manifest.stage == "evaluate_model":
        return "held-out figures"
    if manifest.stage == "generate_text":
        return _count(manifest.datasets["text"].rows, "text")
    parts = []
    for name in names:
        dataset = manifest.datasets[name]
        if dataset.rows:
            parts.append(_count(dataset.rows, _UNITS.get(name, f"row of {name}")))
        elif name == "tokenizer":
            parts.append(_count(dataset.facts["vocab_size"], "piece"))
    return ", ".join(parts) or "nothing"


def _count(number: int, unit: str) -> str:
    return f"{number:,} {unit}{'s' * (number != 1)}"


def _text_bytes(task: Task, manifest: Manifest) -> int | None:
    """Of its datasets; where no fact says so, of the text it read. None for a stage that runs a model."""
    if manifest.stage in _MODEL_STAGES:
        return None
    own = [int(one.facts["text_bytes"]) for one in manifest.datasets.values() if "text_bytes" in one.facts]
    if own:
        return sum(own)
    read = [one.data.facts.get("text_bytes") for one in _inputs(task) if not one.external]
    known = [int(count) for count in read if count is not None]
    return sum(known) if known else None


def _tokens(manifest: Manifest, log: Mapping[str, Any]) -> int | None:
    if manifest.stage == "train_model":
        return log.get("tokens_seen")
    facts = [dataset.facts for dataset in manifest.datasets.values()]
    if manifest.stage in ("cache_logits", "evaluate_model"):
        return next((int(fact["targets"]) for fact in facts if "targets" in fact), None)
    if manifest.stage == "generate_text":
        return next((int(fact["new_tokens"]) for fact in facts if "new_tokens" in fact), None)
    return sum(dataset.tokens for dataset in manifest.datasets.values()) or None


def _speed(log: Mapping[str, Any], seconds: float | None, tokens: int | None, text_bytes: int | None) -> str:
    """Tokens a second where there are tokens, MB of text a second elsewhere."""
    for name in ("row_tokens_per_second", "new_tokens_per_second"):
        if name in log:
            return f"{_round(log[name])} tokens/s" if log[name] else ""
    if not seconds:
        return ""
    if count := log.get("row_tokens") or tokens:
        return f"{_round(count / seconds)} tokens/s"
    return f"{text_bytes / 1e6 / seconds:.2f} MB/s" if text_bytes else ""


def _round(number: float) -> str:
    """Three digits that count: what a speed is good for."""
    digits = max(0, math.floor(math.log10(number)) - 2) if number >= 1 else 0
    return f"{round(number, -digits):,.0f}" if number >= 100 else f"{number:.1f}"


def _models(
    tasks: Mapping[str, Task], manifests: Mapping[str, Manifest], runs: Mapping[str, Mapping[str, Any]]
) -> tuple[ModelFigures, ...]:
    """The recipe's models in the order that they are trained in, each with its evaluation; then evaluated others."""
    evaluations: dict[tuple[str, int], list[tuple[str, Evaluation]]] = {}
    for name, manifest in manifests.items():
        if manifest.stage == "evaluate_model":
            facts = manifest.datasets["metrics"].facts
            (checkpoint,), (heldout,) = tasks[name].inputs["checkpoint"], tasks[name].inputs["heldout"]
            key = (checkpoint.directory, int(facts["step"]))
            evaluations.setdefault(key, []).append((checkpoint.reference, _evaluation(facts, heldout.reference)))
    models = []
    for name, manifest in manifests.items():
        if manifest.stage != "train_model":
            continue
        last = manifest.datasets["checkpoints"].facts["steps"][-1]
        steps = sorted(step for directory, step in evaluations if directory == tasks[name].directory) or [last]
        for step in steps:
            found: list[Evaluation | None] = [one for _, one in evaluations.pop((tasks[name].directory, step), [])]
            models += [
                ModelFigures(
                    name=name if step == last else f"{name}@{step}",
                    objective=str(manifest.config.get("objective", "")),
                    shape=_shape(manifest.config.get("model", {})),
                    parameters=_parameters(tasks[name].directory, manifest.datasets["checkpoints"]),
                    step=step,
                    tokens_seen=runs[name].get("log", {}).get("tokens_seen") if step == last else None,
                    evaluation=one,
                    task=tasks[name],
                    setting=_setting(manifest, step),
                )
                for one in found or [None]
            ]
    for (_, step), elsewhere in evaluations.items():
        models += [
            ModelFigures(
                name=reference, objective="", shape="", parameters=None, step=step, tokens_seen=None, evaluation=one,
                task=None, setting=reference,
            )
            for reference, one in elsewhere
        ]  # fmt: skip
    return tuple(models)


def _evaluation(facts: Mapping[str, Any], heldout: str) -> Evaluation:
    names = ("loss_per_token", "perplexity", "bits_per_byte")
    return Evaluation(
        heldout=heldout,
        targets=int(facts["targets"]),
        loss=facts["loss_per_token"],
        perplexity=facts["perplexity"],
        bits_per_byte=facts["bits_per_byte"],
        unigram={name: facts[f"unigram_{name}"] for name in names if f"unigram_{name}" in facts},
    )


def _shape(model: Mapping[str, Any]) -> str:
    return f"{model['layers']} layers, {model['d_model']} wide" if {"layers", "d_model"} <= model.keys() else ""


def _setting(manifest: Manifest, step: int) -> str:
    config = {name: value for name, value in manifest.config.items() if name != "objective"}
    return json.dumps([config, manifest.inputs.get("sequences"), step], sort_keys=True)


def _parameters(directory: str, checkpoints: Dataset) -> int | None:
    """Of the last checkpoint, from the headers of its files alone (safetensors: 8 bytes of length, then JSON)."""
    names = [shard.name for shard in checkpoints.shards]
    folders = [name.rpartition("/")[0] for name in names]
    weights = [
        name for name in names if folders and name.startswith(f"{max(folders)}/model") and name.endswith(".safetensors")
    ]
    total = 0
    for name in weights:
        with storage.open_input(storage.join(directory, name)) as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        total += sum(math.prod(tensor["shape"]) for key, tensor in header.items() if key != "__metadata__")
    return total or None


def read_curve(task: Task) -> Curve | None:
    """Loss by step, with steps whose loss is not a number left out; None where nothing is left."""
    manifest = task.manifest()
    if manifest is None or not manifest.datasets["metrics"].shards:
        return None
    columns = ["step", "loss_sum", "targets"]
    uris = [storage.join(task.directory, shard.name) for shard in manifest.datasets["metrics"].shards]
    table = pa.concat_tables([shards.read_table(uri, columns) for uri in uris]).sort_by("step")
    steps, loss_sums, targets = (table[name].to_numpy() for name in columns)
    usable = np.isfinite(loss_sums) & (targets > 0)
    if not usable.any():
        return None
    return Curve(
        steps=steps[usable],
        losses=loss_sums[usable] / targets[usable],
        smoothed=_smoothed(loss_sums[usable], targets[usable]),
    )


def _smoothed(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Sums over counts in a window around each step: no mean of means.

    At the start the window is narrower on both sides, so that a steep fall is not blurred; at the end it is cut off.
    """
    half = len(sums) // SMOOTHED_SHARE // 2
    totals, ends = np.concatenate([[0.0], np.cumsum(sums)]), np.concatenate([[0], np.cumsum(counts)])
    place = np.arange(len(sums))
    reach = np.minimum(half, place)
    first, last = place - reach, np.minimum(place + reach + 1, len(sums))
    return (totals[last] - totals[first]) / (ends[last] - ends[first])


def _completions(name: str, tasks: Mapping[str, Task], manifest: Manifest) -> list[Completion]:
    (checkpoint,) = tasks[name].inputs["checkpoint"]
    model = next((other for other, task in tasks.items() if task.directory == checkpoint.directory), None)
    found = []
    for shard in manifest.datasets["text"].shards:
        for row in shards.read_table(storage.join(tasks[name].directory, shard.name), ["text", "metadata"]).to_pylist():
            prompt = str(json.loads(row["metadata"]).get("prompt", ""))
            found.append(
                Completion(
                    step=name,
                    model=model or checkpoint.reference,
                    prompt=prompt,
                    continuation=row["text"].removeprefix(prompt),
                )
            )
    return found


def _inputs(task: Task) -> Sequence[Any]:
    return [one for many in task.inputs.values() for one in many]
