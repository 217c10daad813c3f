"""The amounts of a recipe: tokens, operations, chip-hours, core-hours, bytes; estimated before, measured after a run.

    estimate(recipe, prices) -> Amounts -> pipelines/account/table.py         before: from configs and constants
    measured(tasks)          -> Amounts -> pipelines/account/table.py         after: from manifests and `_RUN.json`

The amounts of a step follow from the cost that its stage declares (`pipelines/account/costs.py`). Estimated chip-hours
are operations / (peak of the chips x `mfu`). A step without slices is estimated on plain CPU cores. Never starts Ray.

Measured chip-hours are the hours that workers held chips (`training/log/chips.py` defines which workers and from when).
They include the cores of the chips' host. A step without chips counts all cores of its machine while it ran.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from data.manifest import RUN_NAME, Manifest
from infra.chips import shown_name
from infra.prices import Constant, Cost, Prices, priced_as
from infra.slices import Topology, parse_topology
from model import parameter_count
from pipelines.engine import damage
from pipelines.engine.cost import Planned
from pipelines.engine.finished import Finished
from pipelines.engine.runner import finished
from pipelines.engine.stage import declared, load_stages
from pipelines.engine.task import Task
from pipelines.recipes.recipe import Output, Recipe
from training.backends.make import abilities_of


@dataclass(frozen=True, kw_only=True)
class Amount:
    """The amounts of one step."""

    step: str
    stage: str
    tokens: float = 0.0
    flops: float = 0.0
    place: Topology | None = None
    """TPU slices of the step; None: plain machines"""
    chips: Mapping[str, float] = field(default_factory=dict)
    """kind of chip -> chip-hours"""
    core_hours: float = 0.0
    stored: Mapping[str, float] = field(default_factory=dict)
    """kind of data -> bytes"""
    seconds: float | None = None
    """wall time in seconds; None: not measured"""
    trains: bool = False
    """whether the stage trains weights"""

    @property
    def stored_bytes(self) -> float:
        return sum(self.stored.values())

    @property
    def chip_hours(self) -> float:
        return sum(self.chips.values())

    def work(self, prices: Prices) -> Cost:
        """The cost of the chips and cores."""
        costs = [prices.work(chip=priced_as(kind), chip_hours=hours) for kind, hours in self.chips.items()]
        return sum(costs, prices.work(core_hours=self.core_hours))

    def cost(self, prices: Prices) -> Cost:
        """The cost of the work and of the storage."""
        return self.work(prices) + prices.storage(self.stored_bytes)


@dataclass(frozen=True, kw_only=True)
class Cache:
    """A teacher's pass and its stored logits, for the break-even with a teacher that runs beside each student."""

    step: str
    teacher_bytes: float
    """bytes of the teacher's float32 parameters, which an online teacher takes on the student's chips"""
    work: Cost
    """cost of one pass"""
    stored_bytes: float
    students: int
    """number of students in this recipe that read the logits"""


def speeds() -> dict[str, Constant]:
    """`speed.<stage>` of every stage that declares a speed, for the constants of a plan."""
    return {f"speed.{stage.name}": speed for stage in load_stages() if (speed := stage.declares.cost.speed) is not None}


def estimate(recipe: Recipe, prices: Prices) -> list[Amount]:
    """One Amount for each step, in order."""
    return [_amount(step, _place(step, recipe), prices) for step in planned(recipe)]


def planned(recipe: Recipe) -> list[Planned]:
    """The steps in order, each with the steps that it reads and the steps that read it."""
    steps: dict[str, Planned] = {}
    for step in recipe.steps:
        sources = {
            name: [steps[source.step] for source in feeding if isinstance(source, Output)]
            for name, feeding in step.inputs.items()
        }
        steps[step.name] = Planned(
            name=step.name, stage=step.stage, config=step.config, cost=declared(step.stage).cost, inputs=sources
        )
        for source in {id(source): source for feeding in sources.values() for source in feeding}.values():
            source.readers.append(steps[step.name])
    return list(steps.values())


def _place(step: Planned, recipe: Recipe) -> Topology | None:
    """The slices that the recipe plans for a step that runs a model."""
    place = next(known.place for known in recipe.steps if known.name == step.name)
    if place is None or declared(step.stage).places is None:
        return None
    return parse_topology(place.topology, place.slices)


def _amount(step: Planned, place: Topology | None, prices: Prices) -> Amount:
    work = step.cost.estimate(step, prices)
    chip_hours = work.flops / (place.chip.peak_flops * prices["mfu"]) / 3600 if place else 0.0
    core_hours = 0.0 if place else work.flops / (prices["cpu.flops_per_core"] * prices["mfu"]) / 3600
    speed = prices.constants.get(f"speed.{step.stage}", step.cost.speed)
    if speed is not None:
        core_hours += work.read_bytes / 1e6 / speed.value / 3600
    return Amount(
        step=step.name,
        stage=step.stage,
        tokens=work.tokens,
        flops=work.flops,
        place=place,
        chips={place.chip.name: chip_hours} if place else {},
        core_hours=core_hours,
        stored=work.stored,
        trains=step.cost.trains,
    )


def caches(recipe: Recipe, amounts: list[Amount], prices: Prices) -> list[Cache]:
    """The teachers' passes whose logits the recipe stores."""
    return [
        Cache(
            step=step.name,
            teacher_bytes=4.0 * sum(parameter_count(teacher)),
            work=amount.work(prices),
            stored_bytes=amount.stored_bytes,
            students=sum(reader.cost.trains for reader in step.readers),
        )
        for step, amount in zip(planned(recipe), amounts, strict=True)
        if (teacher := step.cost.kept_pass(step)) is not None
    ]


def measured(tasks: Mapping[str, Task], tell: Callable[[str], None] = print) -> list[Amount]:
    """One Amount for each finished step: the chips that it held, or without chips all cores of its last attempt.

    A step with a damaged file is left out and passed to `tell`, as one line.
    """
    amounts: list[Amount] = []
    for name, task in tasks.items():
        with damage.named(task.directory, tell):
            if (run := finished(task)) is not None:
                amounts.append(_of_finished(name, task, run))
                if not run.run:
                    tell(f"no log: {task.directory} has no {RUN_NAME}, so its time, cores and chips are not known")
    return amounts


def _of_finished(name: str, task: Task, run: Finished) -> Amount:
    cost, datasets, seconds = declared(task.stage.name).cost, run.manifest.datasets, run.run.get("seconds")
    cores = re.search(r"(\d+) cores", str(run.run.get("machine", "")))
    used = run.run.get("resources", {}).get("cpus") or (int(cores[1]) if cores else 0)
    work = cost.measure(run)
    chips = {kind: seconds_held / 3600 for kind, seconds_held in _chip_seconds(run.run, run.manifest).items()}
    return Amount(
        step=name,
        stage=task.stage.name,
        tokens=work.tokens or sum(dataset.tokens for dataset in datasets.values()),
        flops=work.flops,
        chips=chips,
        core_hours=0.0 if chips else (seconds or 0.0) * used / 3600,
        stored={key: float(dataset.bytes) for key, dataset in datasets.items() if dataset.bytes},
        seconds=seconds,
        trains=cost.trains,
    )


def _chip_seconds(run: Mapping[str, Any], manifest: Manifest) -> dict[str, float]:
    """The chip-seconds of `_RUN.json`, by the names that are shown. If an earlier version wrote the file without them,
    they are estimated from slices and set-up."""
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
    kind = abilities_of(setup["device"]).accelerator if "device" in setup else None
    return {"GPU": seconds * setup.get("workers", 1)} if kind == "GPU" else {}
