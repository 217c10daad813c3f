"""The figures of a recipe's run, for the report: read from manifests, `_RUN.json` and listed shards, nothing else.

    tasks -> StepFigures, ModelFigures, CacheFigures, Completion -> sentences

The same files give the same figures. Cost: a few small files for each step, and the learning curves of each model.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from data import shards
from data.manifest import Manifest, listed
from pipelines.engine.finished import Finished
from pipelines.engine.inputs import Input
from pipelines.engine.reported import CacheFigures, Evaluated, Evaluation, Report, Written
from pipelines.engine.runner import finished
from pipelines.engine.stage import declared
from pipelines.engine.task import Task
from pipelines.report.words import UNITS, count

SMOOTHED_SHARE = 25
"""number of windows in a curve: a point of a smoothed curve is the mean over one 25th of the steps"""
EQUAL_NATS = 0.0005
"""difference of losses, in nats, below which they are printed as equal: three decimals are shown"""


@dataclass(frozen=True, kw_only=True)
class StepFigures:
    """The output, input size and speed of one step."""

    name: str
    stage: str
    reference: str
    """reference `stage/fingerprint`"""
    made: str
    """rows of each dataset, in words"""
    text_bytes: int | None
    """UTF-8 bytes of the text that the step made, or read if it made no text; None: not known"""
    tokens: int | None
    """tokens in the rows of the step; for a stage that runs a model: targets, the predicted tokens"""
    stored_bytes: int
    """bytes of all files that the step made"""
    seconds: float | None
    """wall time of the finished attempt, in seconds"""
    speed: str
    """speed with its unit; empty: not known"""
    dropped: Mapping[str, int]
    """reason -> number of rows dropped"""
    device: str


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Training loss by step, in nats per target."""

    steps: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray


@dataclass(frozen=True, kw_only=True)
class ModelFigures:
    """A trained model, evaluated or not."""

    name: str
    objective: str
    """objective next_token or distill; empty: the model was not trained by the recipe"""
    shape: str
    """width and layers in words"""
    parameters: int | None
    step: int
    tokens_seen: int | None
    evaluation: Evaluation | None
    task: Task | None
    setting: str
    """config without the objective, and training rows: models with equal settings are comparable"""


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A prompt and its continuation by a model."""

    step: str
    model: str
    prompt: str
    continuation: str


@dataclass(frozen=True, kw_only=True)
class Figures:
    """All figures that the report shows."""

    recipe: str
    steps: tuple[StepFigures, ...]
    models: tuple[ModelFigures, ...]
    caches: tuple[CacheFigures, ...]
    completions: tuple[Completion, ...]
    runs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """step -> contents of `_RUN.json`"""


def read_figures(recipe: str, tasks: Mapping[str, Task]) -> Figures:
    """The figures of the finished steps."""
    runs = {name: run for name, task in tasks.items() if (run := finished(task)) is not None}
    reports = {name: declared(run.manifest.stage).report for name, run in runs.items()}
    caches = [reports[name].cache(name, run) for name, run in runs.items()]
    return Figures(
        recipe=recipe,
        steps=tuple(_step(name, tasks[name], run) for name, run in runs.items()),
        models=_models(tasks, runs, reports),
        caches=tuple(cache for cache in caches if cache is not None),
        completions=tuple(
            completion
            for name, run in runs.items()
            if (written := reports[name].written(run)) is not None
            for completion in _completions(name, tasks, written)
        ),
        runs={name: run.run for name, run in runs.items()},
    )


def _step(name: str, task: Task, run: Finished) -> StepFigures:
    manifest, seconds, report = run.manifest, run.run.get("seconds"), declared(run.manifest.stage).report
    text_bytes = _text_bytes(run)
    tokens = report.tokens(run)
    read = sum(source.data.tokens for source in _inputs(run))  # a packing drops rows over its limit
    return StepFigures(
        name=name,
        stage=manifest.stage,
        reference=f"{manifest.stage}/{manifest.fingerprint}",
        made=report.made(run) or _made(manifest, task.stage.writes, report.units),
        text_bytes=text_bytes,
        tokens=tokens,
        stored_bytes=sum(dataset.bytes for dataset in manifest.datasets.values()),
        seconds=seconds,
        speed=_speed(run.log, seconds, read or tokens, text_bytes),
        dropped=manifest.dropped,
        device=str((manifest.setup or {}).get("device", "")),
    )


def _made(manifest: Manifest, names: Sequence[str], units: Mapping[str, str]) -> str:
    """ "2,310 documents, 4 rejects": the datasets in the order of the stage's WRITES."""
    parts = []
    for name in names:
        dataset = manifest.datasets[name]
        if dataset.rows:
            parts.append(count(dataset.rows, {**UNITS, **units}.get(name, f"row of {name}")))
        elif name == "tokenizer":
            parts.append(count(dataset.facts["vocab_size"], "piece"))
    return ", ".join(parts) or "nothing"


def _text_bytes(run: Finished) -> int | None:
    """The bytes of text in its datasets, or in its inputs if no dataset records them. None: a stage runs a model."""
    if declared(run.manifest.stage).places is not None:
        return None
    own = [int(made.facts["text_bytes"]) for made in run.manifest.datasets.values() if "text_bytes" in made.facts]
    if own:
        return sum(own)
    read = [source.data.facts.get("text_bytes") for source in _inputs(run)]
    known = [int(size) for size in read if size is not None]
    return sum(known) if known else None


def _inputs(run: Finished) -> list[Input]:
    """The datasets of earlier runs that the run read."""
    return [source for sources in run.inputs.values() for source in sources if not source.external]


def _speed(log: Mapping[str, Any], seconds: float | None, tokens: int | None, text_bytes: int | None) -> str:
    """The speed in tokens a second, or without tokens in MB of text a second."""
    for name in ("row_tokens_per_second", "new_tokens_per_second"):
        if name in log:
            return f"{_round(log[name])} tokens/s" if log[name] else ""
    if not seconds:
        return ""
    if computed := log.get("row_tokens") or tokens:
        return f"{_round(computed / seconds)} tokens/s"
    return f"{text_bytes / 1e6 / seconds:.2f} MB/s" if text_bytes else ""


def _round(number: float) -> str:
    """The number with three significant digits; a speed is no more precise."""
    digits = max(0, math.floor(math.log10(number)) - 2) if number >= 1 else 0
    return f"{round(number, -digits):,.0f}" if number >= 100 else f"{number:.1f}"


def _models(
    tasks: Mapping[str, Task], runs: Mapping[str, Finished], reports: Mapping[str, Report]
) -> tuple[ModelFigures, ...]:
    """The recipe's models in the order of training, each with its evaluation; then evaluated models from elsewhere."""
    evaluations: dict[tuple[str, int], list[Evaluated]] = {}
    for name, run in runs.items():
        if (evaluated := reports[name].evaluation(run)) is not None:
            evaluations.setdefault((evaluated.checkpoint.directory, evaluated.step), []).append(evaluated)
    models = []
    for name, run in runs.items():
        if (trained := reports[name].model(run)) is None:
            continue
        last = trained.steps[-1]
        steps = sorted(step for directory, step in evaluations if directory == run.directory) or [last]
        for step in steps:
            known: list[Evaluated | None] = [*evaluations.pop((run.directory, step), [])]
            models += [
                ModelFigures(
                    name=name if step == last else f"{name}@{step}",
                    objective=trained.objective,
                    shape=trained.shape,
                    parameters=trained.parameters,
                    step=step,
                    tokens_seen=trained.tokens_seen if step == last else None,
                    evaluation=evaluated.evaluation if evaluated else None,
                    task=tasks[name],
                    setting=f"{trained.setting} @{step}",
                )
                for evaluated in known or [None]
            ]
    for (_, step), elsewhere in evaluations.items():
        models += [
            ModelFigures(
                name=evaluated.checkpoint.reference, objective="", shape="", parameters=None, step=step,
                tokens_seen=None, evaluation=evaluated.evaluation, task=None, setting=evaluated.checkpoint.reference,
            )
            for evaluated in elsewhere
        ]  # fmt: skip
    return tuple(models)


def read_curve(task: Task) -> Curve | None:
    """The loss by step, without steps whose loss is not a number; None if no step is left."""
    manifest = task.manifest()
    if manifest is None or not manifest.datasets["metrics"].shards:
        return None
    columns = ["step", "loss_sum", "targets"]
    uris = [listed(task.directory, shard) for shard in manifest.datasets["metrics"].shards]
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
    """Sum over count in a window around each step, which is no mean of means.

    At the start the window is narrower on both sides, so that a steep fall is not blurred. At the end it is cut off.
    """
    half = len(sums) // SMOOTHED_SHARE // 2
    totals, ends = np.concatenate([[0.0], np.cumsum(sums)]), np.concatenate([[0], np.cumsum(counts)])
    place = np.arange(len(sums))
    reach = np.minimum(half, place)
    first, last = place - reach, np.minimum(place + reach + 1, len(sums))
    return (totals[last] - totals[first]) / (ends[last] - ends[first])


def _completions(name: str, tasks: Mapping[str, Task], written: Written) -> list[Completion]:
    checkpoint = written.checkpoint
    model = next((step for step, task in tasks.items() if task.directory == checkpoint.directory), None)
    return [
        Completion(step=name, model=model or checkpoint.reference, prompt=prompt, continuation=continuation)
        for prompt, continuation in written.texts
    ]
