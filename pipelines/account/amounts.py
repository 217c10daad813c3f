"""What a recipe takes: tokens, operations, chip-hours, core-hours, bytes. Reckoned before it runs, measured after.

    estimate(recipe, prices) -> Amounts -> pipelines/account/table.py         before: from configs and constants
    measured(tasks)          -> Amounts -> the same table                    after: from manifests and `_RUN.json`

Rows of training follow from steps and batch, text from rows by `text.bytes_per_token`; operations are those of
`model/flops.py`, without recomputation; chip-hours are operations over the chips' peak and `mfu`. Steps without a
place are reckoned on plain cores. Evaluation counts its held-out rows, generation nothing. Never starts Ray.

What was measured: chip-hours are those that the workers held (`training/log/chips.py` says of whom and from when), and
the cores of a host with chips come with them; a step without chips took all cores of its machine while it ran.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from data.manifest import Manifest
from infra.chips import shown_name
from infra.prices import Cost, Prices, priced_as
from infra.slices import Topology, parse_topology
from model import Gemma2Config, gemma2_27b, parameter_count
from model.flops import forward_flops_per_token, train_flops_per_token
from pipelines.engine.runner import read_run
from pipelines.engine.task import Task
from pipelines.recipes.recipe import Output, Recipe, Step

TEXT_STAGES = ("collect_text", "filter_text", "deduplicate_text", "decontaminate_text")
RAW_STAGES = ("collect_text", "filter_text")
"""that go through the text before anything is dropped"""


@dataclass(frozen=True, kw_only=True)
class Amount:
    """What one step takes."""

    step: str
    stage: str
    tokens: float = 0.0
    flops: float = 0.0
    place: Topology | None = None
    """the slices; None: plain machines"""
    chips: Mapping[str, float] = field(default_factory=dict)
    """kind of chip -> hours of one"""
    core_hours: float = 0.0
    stored: Mapping[str, float] = field(default_factory=dict)
    """kind of data -> bytes"""
    seconds: float | None = None
    """wall time, where it was measured"""

    @property
    def stored_bytes(self) -> float:
        return sum(self.stored.values())

    @property
    def chip_hours(self) -> float:
        return sum(self.chips.values())

    def work(self, prices: Prices) -> Cost:
        """Of its chips and cores."""
        costs = [prices.work(chip=priced_as(kind), chip_hours=hours) for kind, hours in self.chips.items()]
        return sum(costs, prices.work(core_hours=self.core_hours))

    def cost(self, prices: Prices) -> Cost:
        """Of its work and of keeping what it stores."""
        return self.work(prices) + prices.storage(self.stored_bytes)


@dataclass(frozen=True, kw_only=True)
class Cache:
    """A teacher's pass and what is kept of it, for the break-even with a teacher that runs beside each student."""

    step: str
    teacher_bytes: float
    """of its parameters in float32: what an online teacher takes of the student's chips"""
    work: Cost
    """of one pass"""
    stored_bytes: float
    students: int
    """of this recipe that read it"""


def estimate(recipe: Recipe, prices: Prices) -> list[Amount]:
    """One Amount a step, in order."""
    rows = {step.name: _packed_rows(step, recipe) for step in recipe.steps if step.stage == "pack_sequences"}
    lengths = {step.name: step.config.sequence_length for step in recipe.steps if step.stage == "pack_sequences"}
    total = sum(rows[name] * lengths[name] for name in rows)
    return [_amount(step, recipe, prices, total, rows, lengths) for step in recipe.steps]


def _packed_rows(pack: Step, recipe: Recipe) -> int:
    """Rows that its readers train on: the most that any of them draws."""
    drawn = [
        step.config.steps * step.config.global_batch
        for step in recipe.steps
        if step.stage == "train_model" and pack.name in _sources(step, "sequences")
    ]
    most: int | None = pack.config.max_rows
    return min([max(drawn, default=0) or most or 0, *([most] if most else [])])


def _amount(
    step: Step,
    recipe: Recipe,
    prices: Prices,
    total: float,
    rows: Mapping[str, int],
    lengths: Mapping[str, int],
) -> Amount:
    text = total * prices["text.bytes_per_token"]
    if step.stage in TEXT_STAGES:
        raw = text / prices["text.kept_fraction"]
        read, left = (raw if step.stage in RAW_STAGES else text), (raw if step.stage == "collect_text" else text)
        stored = {"text": left * prices["text.stored_fraction"]}
        tokens = read / prices["text.bytes_per_token"]
        return _data(step, prices, read, tokens, stored)
    if step.stage == "tokenize_text":
        return _data(step, prices, text, total, {"tokens": total * prices["tokens.bytes_per_token"]})
    if step.stage == "pack_sequences":
        tokens = rows[step.name] * lengths[step.name]
        stored = {"sequences": tokens * prices["sequences.bytes_per_token"]}
        return _data(step, prices, tokens * prices["text.bytes_per_token"], tokens, stored)
    packs = [name for key in ("sequences", "heldout") for name in _sources(step, key) if name in lengths]
    length = lengths[packs[0]] if packs else 0
    if step.stage == "train_model":
        tokens = step.config.steps * step.config.global_batch * length
        kept = -(-step.config.steps // step.config.checkpoint_every_steps)
        parameters = sum(parameter_count(step.config.model))
        stored = {"checkpoints": kept * parameters * prices["checkpoint.bytes_per_parameter"]}
        return _model(step, prices, tokens, train_flops_per_token(step.config.model, length), stored)
    if step.stage == "cache_logits":
        tokens = sum(rows[name] for name in packs) * length
        teacher = _teacher(step, recipe)
        stored = {"logits": tokens * prices["logits.ids_per_target"] * prices["logits.bytes_per_id"]}
        return _model(step, prices, tokens, forward_flops_per_token(teacher, length), stored)
    if step.stage == "evaluate_model":
        heldout = next(one for one in recipe.steps if one.name == packs[0]).config.max_heldout_rows or 0
        (trained,) = _sources(step, "checkpoint")
        model = next(one for one in recipe.steps if one.name == trained).config.model
        return _model(step, prices, heldout * length, forward_flops_per_token(model, length), {})
    if step.stage == "import_model":
        parameters = sum(parameter_count(step.config.model or gemma2_27b()))
        return Amount(step=step.name, stage=step.stage, stored={"checkpoints": 2.0 * parameters})  # published bfloat16
    return Amount(step=step.name, stage=step.stage)


def _data(step: Step, prices: Prices, read: float, tokens: float, stored: Mapping[str, float]) -> Amount:
    hours = read / 1e6 / prices[f"speed.{step.stage}"] / 3600
    return Amount(step=step.name, stage=step.stage, tokens=tokens, core_hours=hours, stored=stored)


def _model(step: Step, prices: Prices, tokens: float, flops_per_token: float, stored: Mapping[str, float]) -> Amount:
    flops = tokens * flops_per_token
    place = parse_topology(step.place.topology, step.place.slices) if step.place else None
    chip_hours = flops / (place.chip.peak_flops * prices["mfu"]) / 3600 if place else 0.0
    core_hours = 0.0 if place else flops / (prices["cpu.flops_per_core"] * prices["mfu"]) / 3600
    return Amount(
        step=step.name, stage=step.stage, tokens=tokens, flops=flops, place=place,
        chips={place.chip.name: chip_hours} if place else {}, core_hours=core_hours, stored=stored,
    )  # fmt: skip


def caches(recipe: Recipe, amounts: list[Amount], prices: Prices) -> list[Cache]:
    """The recipe's caches of logits."""
    found = []
    for step, amount in zip(recipe.steps, amounts, strict=True):
        if step.stage == "cache_logits":
            found.append(
                Cache(
                    step=step.name,
                    teacher_bytes=4.0 * sum(parameter_count(_teacher(step, recipe))),
                    work=amount.work(prices),
                    stored_bytes=amount.stored_bytes,
                    students=sum(step.name in _sources(one, "logits") for one in recipe.steps),
                )
            )
    return found


def _teacher(step: Step, recipe: Recipe) -> Gemma2Config:
    """Its sizes; of imported weights that do not say them: the paper's teacher, the 27B."""
    (name,) = _sources(step, "teacher")
    config = next(one for one in recipe.steps if one.name == name).config
    model: Gemma2Config | None = config.model
    return model or gemma2_27b()


def _sources(step: Step, name: str) -> list[str]:
    """Names of the steps that feed the input."""
    return [source.step for source in step.inputs.get(name, ()) if isinstance(source, Output)]


def measured(tasks: Mapping[str, Task]) -> list[Amount]:
    """Of the steps that have finished: the chips they held; without any, all cores for the attempt that finished."""
    amounts = []
    for name, task in tasks.items():
        manifest = task.manifest()
        if manifest is None:
            continue
        run = read_run(task.directory)
        log, seconds = run.get("log", {}), run.get("seconds")
        cores = re.search(r"(\d+) cores", str(run.get("machine", "")))
        used = run.get("resources", {}).get("cpus") or (int(cores[1]) if cores else 0)
        tokens, flops = _work_of(task, log)
        chips = {kind: held / 3600 for kind, held in _chip_seconds(run, manifest).items()}
        amounts.append(
            Amount(
                step=name,
                stage=task.stage.name,
                tokens=tokens or sum(dataset.tokens for dataset in manifest.datasets.values()),
                flops=flops,
                chips=chips,
                core_hours=0.0 if chips else (seconds or 0.0) * used / 3600,
                stored={key: float(dataset.bytes) for key, dataset in manifest.datasets.items() if dataset.bytes},
                seconds=seconds,
            )
        )
    return amounts


def _chip_seconds(run: Mapping[str, Any], manifest: Manifest) -> dict[str, float]:
    """As `_RUN.json` has them, by the names that are shown; of an earlier version's, which did not say, reckoned from
    place and set-up."""
    if (held := run.get("chip_seconds")) is not None:
        seconds_by_name: dict[str, float] = {}
        for device_name, seconds_held in held.items():
            name = shown_name(device_name)
            seconds_by_name[name] = seconds_by_name.get(name, 0.0) + seconds_held
        return seconds_by_name
    resources, setup, seconds = run.get("resources", {}), manifest.setup or {}, run.get("seconds") or 0.0
    if resources.get("topology"):
        place = parse_topology(resources["topology"], resources.get("slices", 1))
        return {place.chip.name: seconds * place.chips}
    return {"GPU": seconds * setup.get("workers", 1)} if setup.get("device") == "cuda" else {}


def _work_of(task: Task, log: Mapping[str, Any]) -> tuple[float, float]:
    """Row tokens and operations of a step that ran a model; zeros of the others."""
    config = task.config
    if task.stage.name == "train_model":
        length = task.inputs["sequences"][0].data.facts["sequence_length"]
        tokens = float(log.get("steps", config.steps) - log.get("first_step", 0)) * config.global_batch * length
        return tokens, tokens * train_flops_per_token(config.model, length)
    if task.stage.name == "cache_logits":
        sequences, teacher = task.inputs["sequences"][0], task.inputs["teacher"][0]
        tokens = float(log.get("row_tokens", 0))
        model = teacher.manifest.config.get("model")
        if model is None:
            return tokens, 0.0
        return tokens, tokens * forward_flops_per_token(Gemma2Config(**model), sequences.data.facts["sequence_length"])
    return 0.0, 0.0
