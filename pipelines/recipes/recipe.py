"""A recipe: named steps, each a stage with its config and with inputs from earlier steps or from outside.

This module resolves a recipe into tasks. All fingerprints follow from the configs and the inputs from outside, so every
fingerprint is known before a step has run.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from data import storage
from data.documents import parse_object
from data.sealed import seal, unsealed
from pipelines.engine import config as configs
from pipelines.engine import damage
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
    """name of the dataset of that step"""


@dataclass(frozen=True, kw_only=True)
class Place:
    """The slices that a step is planned for, which `plan` and `manifests` use. Never hashed."""

    topology: str
    """chips of one slice, such as v5p:8x24x32"""
    slices: int = 1
    """number of slices"""
    mesh: str
    """sizes of the mesh axes replica, data and model, such as data=768,model=8"""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One stage of a recipe."""

    name: str
    """name of the step, unique in the recipe; prefix of its fields on the command line"""
    stage: str
    """name of the stage"""
    config: Any
    """Config of the stage"""
    inputs: Mapping[str, tuple[Output | str, ...]] = field(default_factory=dict)
    """input name -> outputs of earlier steps, or paths from outside; (): a path that the user has to give"""
    note: str = ""
    """purpose of the step, in a sentence that `plan` prints"""
    place: Place | None = None
    """slices that the step is planned for; None: plain machines"""
    without_accelerator: str = ""
    """device of the step for `--device auto` on a machine without an accelerator; default: the fastest device"""

    def resources(self, given: Resources) -> Resources:
        """The user's resources, with the step's own device if the user leaves the device open."""
        if given.device != "auto" or not self.without_accelerator:
            return given
        from training.backends.devices import compiles_here, resolve_device  # imports torch
        from training.backends.make import abilities_of

        if compiles_here() and abilities_of(resolve_device(given.device)).accelerator is None:
            return replace(given, device=self.without_accelerator)  # type: ignore[arg-type]
        return given

    @property
    def own_input(self) -> str:
        """The input that `--input` of the recipe fills; empty if the stage declares no such input."""
        own_text = load_stage(self.stage).declares.own_text
        return own_text.input if own_text else ""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Named steps, each after the steps that it reads."""

    name: str
    summary: str
    steps: tuple[Step, ...]

    def with_input(self, paths: tuple[str, ...]) -> "Recipe":
        """The recipe with `paths` as text from outside, for every step whose stage declares `own_text`."""
        steps = [
            replace(step, inputs={**step.inputs, step.own_input: paths}) if step.own_input else step
            for step in self.steps
        ]
        return replace(self, steps=tuple(steps))

    def outside(self) -> dict[str, tuple[str, str]]:
        """Inputs from outside that are not text: `<step>_<input>`, the name on the command line -> (step, input)."""
        return {
            f"{step.name}_{name}": (step.name, name)
            for step in self.steps
            for name, sources in step.inputs.items()
            if name != step.own_input and not any(isinstance(source, Output) for source in sources)
        }

    def with_outside(self, given: Mapping[str, tuple[str, ...]]) -> "Recipe":
        """The recipe with the given paths for the inputs of `outside`."""
        wanted = {place: given[name] for name, place in self.outside().items() if name in given}
        steps = [
            replace(step, inputs={key: wanted.get((step.name, key), sources) for key, sources in step.inputs.items()})
            for step in self.steps
        ]
        return replace(self, steps=tuple(steps))

    def behind(self, names: Iterable[str]) -> set[str]:
        """The named steps and all steps that they depend on, whose inputs decide their fingerprints too."""
        needed = set(names)
        for step in reversed(self.steps):  # a step stands after the steps that it reads
            if step.name in needed:
                sources = [source for group in step.inputs.values() for source in group]
                needed |= {source.step for source in sources if isinstance(source, Output)}
        return needed

    def not_given(self, names: Iterable[str] | None = None) -> list[str]:
        """The flags of inputs that the user has not given, for the named steps (None: for all steps)."""
        needed = {step.name for step in self.steps} if names is None else self.behind(names)
        inputs = {step.name: step.inputs for step in self.steps if step.name in needed}
        missing = [flag for flag, (step, name) in self.outside().items() if step in needed and not inputs[step][name]]
        if any(step.own_input and not step.inputs[step.own_input] for step in self.steps if step.name in needed):
            missing.insert(0, "input")
        return [f"--{flag.replace('_', '-')}" for flag in missing]

    def input(self) -> tuple[str, ...]:
        """The paths from outside from which the recipe reads its text."""
        texts = (step.inputs[step.own_input] for step in self.steps if step.own_input)
        return tuple(path for path in next(texts, ()) if isinstance(path, str))


def tasks_of(recipe: Recipe, root: str) -> dict[str, Task]:
    """Step name -> task, in order. Raises UserError if an input from outside is missing."""
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
    """Writes the last run of this recipe to a file and returns its URI.

    `--config` replays the file, and `plan` compares it with the next run. For a step that still lacks an input from
    outside, only the config is stored; a later run adds the input by its flag.
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
        "order": list(tasks),
    }
    uri = storage.join(root, recipe.name, LAST_NAME)
    storage.write_bytes(uri, seal(document))
    return uri


def _given_outside(recipe: Recipe) -> dict[str, tuple[str, ...]]:
    inputs = {step.name: step.inputs for step in recipe.steps}
    by_flag = {flag: inputs[step][name] for flag, (step, name) in recipe.outside().items()}
    return {flag: tuple(path for path in sources if isinstance(path, str)) for flag, sources in by_flag.items()}


def last_run(recipe: Recipe, root: str, tell: Callable[[str], None] = print) -> dict[str, Any]:
    """Step name -> document that was hashed when the recipe last ran below `root`; {} before its first run.

    A damaged file is passed to `tell`, as one line: only the reasons in a plan depend on it.
    """
    steps = None
    with damage.named(storage.join(root, recipe.name), tell):
        steps = saved_steps(recipe.name, root)
    return {name: record for name, record in (steps or {}).items() if "fingerprint" in record}


def saved_steps(name: str, root: str) -> dict[str, Any] | None:
    """Step name -> its record in the file of the recipe's last run below `root`, in order; None before its first run.

    Raises UserError if the file is damaged, or that of another recipe.
    """
    uri = storage.join(root, name, LAST_NAME)
    advice = f"`run {name}` writes it again"
    try:
        content = storage.read_bytes(uri)
    except FileNotFoundError:
        return None
    document = unsealed(content, parse_object(content, uri, advice), uri, advice)
    if document.get("recipe") != name:
        raise UserError(f"got {uri} of the recipe {document.get('recipe')!r}, exchanged with another file; {advice}")
    steps = document.get("steps")
    if not isinstance(steps, dict) or not all(map(_is_record, steps.values())):
        raise UserError(f"got {uri}, whose 'steps' are not records of steps; {advice}")
    order = document.get("order", list(steps))  # the names of a sealed document are sorted
    if sorted(map(str, order)) != sorted(steps):
        raise UserError(f"got {uri}, whose 'order' does not hold the names of its 'steps'; {advice}")
    return {step: steps[step] for step in order}


def _is_record(record: Any) -> bool:
    """Whether this is the record of a step: of one that lacks an input from outside, only the config is known."""
    return isinstance(record, dict) and (
        "fingerprint" not in record or {"stage", "version", "config", "inputs"} <= record.keys()
    )


def replayed(recipe: Recipe, document: Mapping[str, Any], where: str) -> Recipe:
    """The recipe with the configs and outside inputs of a saved recipe.

    Raises UserError if the file does not fit the recipe.
    """
    if document.get("recipe") != recipe.name:
        got = document.get("recipe") or document.get("stage")
        raise UserError(f"got {where}, the config of {got!r}; give the recipe.json of {recipe.name!r}")
    saved = document.get("steps")
    if not isinstance(saved, dict) or not all(
        isinstance(record, dict) and "config" in record for record in saved.values()
    ):
        raise UserError(
            f"got {where}, whose 'steps' do not map each step's name to an object with its config; a run of the recipe "
            "writes the file again"
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
        raise UserError(f"{where}: got {outside!r} for 'outside'; it must be an object of lists of paths")
    for name in outside:
        if name not in recipe.outside():
            raise UserError(f"{where}: {configs.no_such('outside input', name, recipe.outside())}")
    given = {name: configs.texts(texts, f"{where}: 'outside.{name}'") for name, texts in outside.items()}
    return replace(recipe, steps=steps).with_input(paths).with_outside(given)
