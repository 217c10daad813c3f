"""A recipe: named steps, each a stage with its config, fed by earlier steps or from outside. Resolved here into tasks.

All fingerprints follow from the configs and the outside inputs, so the whole recipe is known before any of it has run.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from data import storage
from pipelines.engine import config as configs
from pipelines.engine.errors import UserError
from pipelines.engine.inputs import Input
from pipelines.engine.resources import Resources
from pipelines.engine.stage import load_stage
from pipelines.engine.task import Task, future_input, resolve_texts

LAST_NAME = "recipe.json"


@dataclass(frozen=True, kw_only=True)
class Output:
    """A dataset of an earlier step."""

    step: str
    """name of the step"""
    dataset: str
    """which of its datasets"""


@dataclass(frozen=True, kw_only=True)
class Place:
    """The slices that a step is meant for: what `plan` and `manifests` reckon with. Never hashed."""

    topology: str
    """chips of one slice, as in v5p:8x24x32"""
    slices: int = 1
    """how many of them"""
    mesh: str
    """places along replica, data and model, as in data=768,model=8"""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One stage of a recipe."""

    name: str
    """unique in the recipe; prefix of its fields on the command line"""
    stage: str
    """name of the stage"""
    config: Any
    """the stage's Config"""
    inputs: Mapping[str, tuple[Output | str, ...]] = field(default_factory=dict)
    """input name -> outputs of earlier steps, or paths from outside; (): a path that the user has to give"""
    note: str = ""
    """what the step is for, in a sentence that `plan` tells"""
    place: Place | None = None
    """where it is meant to run; None: on plain machines"""
    without_accelerator: str = ""
    """device that `--device auto` takes for it on a machine without one; empty: the fastest there"""

    def resources(self, given: Resources) -> Resources:
        """What the step runs with: as the user says, and on the step's own device where that leaves the choice."""
        if given.device != "auto" or not self.without_accelerator:
            return given
        from training.backends.devices import compiles_here, resolve_device  # imports torch
        from training.backends.make import abilities_of

        if compiles_here() and abilities_of(resolve_device(given.device)).accelerator is None:
            return replace(given, device=self.without_accelerator)  # type: ignore[arg-type]
        return given

    @property
    def own_input(self) -> str:
        """The input that `--input` of the recipe fills; empty where its stage declares none."""
        own_text = load_stage(self.stage).declares.own_text
        return own_text.input if own_text else ""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Steps in an order that they can run in."""

    name: str
    summary: str
    steps: tuple[Step, ...]

    def with_input(self, paths: tuple[str, ...]) -> "Recipe":
        """The recipe with other text from outside: what the steps read whose stage declares `own_text`."""
        steps = [
            replace(step, inputs={**step.inputs, step.own_input: paths}) if step.own_input else step
            for step in self.steps
        ]
        return replace(self, steps=tuple(steps))

    def outside(self) -> dict[str, tuple[str, str]]:
        """What the user has to give besides text: `<step>_<input>`, its name on the command line -> (step, input)."""
        return {
            f"{step.name}_{name}": (step.name, name)
            for step in self.steps
            for name, sources in step.inputs.items()
            if name != step.own_input and not any(isinstance(source, Output) for source in sources)
        }

    def with_outside(self, given: Mapping[str, tuple[str, ...]]) -> "Recipe":
        """The recipe with paths for what `outside` names."""
        wanted = {place: given[name] for name, place in self.outside().items() if name in given}
        steps = [
            replace(step, inputs={key: wanted.get((step.name, key), sources) for key, sources in step.inputs.items()})
            for step in self.steps
        ]
        return replace(self, steps=tuple(steps))

    def behind(self, names: Iterable[str]) -> set[str]:
        """The named steps and all that they rest on, whose inputs decide their fingerprints too."""
        needed = set(names)
        for step in reversed(self.steps):  # what a step reads stands before it
            if step.name in needed:
                sources = [source for group in step.inputs.values() for source in group]
                needed |= {source.step for source in sources if isinstance(source, Output)}
        return needed

    def not_given(self, names: Iterable[str] | None = None) -> list[str]:
        """Flags of what the user has to give and did not, for the named steps (None: for all)."""
        needed = {step.name for step in self.steps} if names is None else self.behind(names)
        inputs = {step.name: step.inputs for step in self.steps if step.name in needed}
        missing = [flag for flag, (step, name) in self.outside().items() if step in needed and not inputs[step][name]]
        if any(step.own_input and not step.inputs[step.own_input] for step in self.steps if step.name in needed):
            missing.insert(0, "input")
        return [f"--{flag.replace('_', '-')}" for flag in missing]

    def input(self) -> tuple[str, ...]:
        """The paths from outside that its own text is read from."""
        texts = (step.inputs[step.own_input] for step in self.steps if step.own_input)
        return tuple(path for path in next(texts, ()) if isinstance(path, str))


def tasks_of(recipe: Recipe, root: str) -> dict[str, Task]:
    """Step name -> task, in order. Raises UserError where an input from outside is missing."""
    tasks: dict[str, Task] = {}
    for step in recipe.steps:
        stage = load_stage(step.stage)
        inputs: dict[str, tuple[Input, ...]] = {}
        for name, sources in step.inputs.items():
            texts = [source for source in sources if isinstance(source, str)]
            outputs = [source for source in sources if isinstance(source, Output)]
            assert not (texts and outputs), f"{step.name}.{name}: outputs of steps or paths, not both"
            if texts:
                inputs[name] = resolve_texts(stage.reads[name], step.config, texts, root)
            else:
                inputs[name] = tuple(future_input(tasks[output.step], output.dataset) for output in outputs)
        tasks[step.name] = Task(stage=stage, config=step.config, inputs=inputs, root=root)
    return tasks


def save_recipe(recipe: Recipe, tasks: Mapping[str, Task], root: str) -> str:
    """Writes what was last run under this name: `--config` replays it, and `plan` tells from it what changed.

    Of a step that still lacks an input from outside only the config is kept: a later run adds the input by its flag.
    Returns its URI.
    """
    known = {step.name for step in recipe.steps if not recipe.not_given([step.name])}
    document = {
        "recipe": recipe.name,
        "root": storage.absolute(root),
        "input": [storage.absolute(path) for path in recipe.input()],
        "outside": {flag: [storage.absolute(path) for path in paths] for flag, paths in _given_outside(recipe).items()},
        "steps": {
            name: {**task.hashed(), "config": configs.to_dict(task.config), "fingerprint": task.fingerprint}
            if name in known
            else {"config": configs.to_dict(task.config)}
            for name, task in tasks.items()
        },
    }
    uri = storage.join(root, recipe.name, LAST_NAME)
    storage.write_bytes(uri, (json.dumps(document, indent=1) + "\n").encode())
    return uri


def _given_outside(recipe: Recipe) -> dict[str, tuple[str, ...]]:
    inputs = {step.name: step.inputs for step in recipe.steps}
    by_flag = {flag: inputs[step][name] for flag, (step, name) in recipe.outside().items()}
    return {flag: tuple(path for path in sources if isinstance(path, str)) for flag, sources in by_flag.items()}


def last_run(recipe: Recipe, root: str) -> dict[str, Any]:
    """Step name -> what was hashed when the recipe last ran here; {} before the first time."""
    try:
        document = json.loads(storage.read_bytes(storage.join(root, recipe.name, LAST_NAME)))
        steps: dict[str, Any] = {name: record for name, record in document["steps"].items() if "fingerprint" in record}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}  # damaged: it only tells plan what changed
    return steps


def replayed(recipe: Recipe, document: Mapping[str, Any], where: str) -> Recipe:
    """The recipe with the configs and the outside input of a saved one.

    Raises UserError where the file does not fit.
    """
    if document.get("recipe") != recipe.name:
        got = document.get("recipe") or document.get("stage")
        raise UserError(f"{where} is of {got!r}, not of recipe {recipe.name!r}")
    saved = document.get("steps")
    if not isinstance(saved, dict) or not all(
        isinstance(record, dict) and "config" in record for record in saved.values()
    ):
        raise UserError(
            f"{where}: 'steps' must map each step's name to an object with its config; save it again by a run"
        )
    configs.same_names("step", saved, [step.name for step in recipe.steps], where)
    steps = tuple(
        replace(
            step,
            config=configs.from_dict(
                load_stage(step.stage).config, saved[step.name]["config"], f"{where}, step {step.name}"
            ),
        )
        for step in recipe.steps
    )
    paths = configs.texts(document.get("input", []), f"{where}: 'input'")
    outside = document.get("outside", {})
    if not isinstance(outside, dict):
        raise UserError(f"{where}: 'outside' must be an object of lists of paths, got {outside!r}")
    for name in outside:
        if name not in recipe.outside():
            raise UserError(f"{where}: {configs.no_such('outside input', name, recipe.outside())}")
    given = {name: configs.texts(texts, f"{where}: 'outside.{name}'") for name, texts in outside.items()}
    return replace(recipe, steps=steps).with_input(paths).with_outside(given)
