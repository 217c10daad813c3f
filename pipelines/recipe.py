"""A recipe: named steps, each a stage with its config, fed by earlier steps or from outside. Resolved here into tasks.

All fingerprints follow from the configs and the outside inputs, so the whole recipe is known before any of it has run.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from data import storage
from pipelines import config as configs
from pipelines.inputs import Input
from pipelines.runner import Task, future_input, resolve_texts
from pipelines.stage import load_stage

LAST_NAME = "recipe.json"


@dataclass(frozen=True, kw_only=True)
class Output:
    """A dataset of an earlier step."""

    step: str
    """name of the step"""
    dataset: str
    """which of its datasets"""


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
    """input name -> outputs of earlier steps, or paths from outside"""
    note: str = ""
    """what the step is for, in a sentence that `plan` tells"""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Steps in an order that they can run in."""

    name: str
    summary: str
    steps: tuple[Step, ...]

    def with_input(self, paths: tuple[str, ...]) -> "Recipe":
        """The recipe with other text from outside: what `collect_text` steps read."""
        steps = [
            replace(step, inputs={"input": paths}) if step.stage == "collect_text" else step for step in self.steps
        ]
        return replace(self, steps=tuple(steps))


def tasks_of(recipe: Recipe, root: str) -> dict[str, Task]:
    """Step name -> task, in order. Raises ValueError where an input from outside is missing."""
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

    Returns its URI.
    """
    document = {
        "recipe": recipe.name,
        "input": next((list(step.inputs["input"]) for step in recipe.steps if step.stage == "collect_text"), []),
        "steps": {name: {**task.hashed(), "fingerprint": task.fingerprint} for name, task in tasks.items()},
    }
    uri = storage.join(root, recipe.name, LAST_NAME)
    storage.write_bytes(uri, (json.dumps(document, indent=1) + "\n").encode())
    return uri


def last_run(recipe: Recipe, root: str) -> dict[str, Any]:
    """Step name -> what was hashed when the recipe last ran here; {} before the first time."""
    try:
        document = json.loads(storage.read_bytes(storage.join(root, recipe.name, LAST_NAME)))
    except FileNotFoundError:
        return {}
    steps: dict[str, Any] = document["steps"]
    return steps


def replayed(recipe: Recipe, document: Mapping[str, Any], where: str) -> Recipe:
    """The recipe with the configs and the outside input of a saved one.

    Raises ValueError where the file does not fit.
    """
    if document.get("recipe") != recipe.name:
        raise ValueError(
            f"{where} is of {document.get('recipe') or document.get('stage')!r}, not of recipe {recipe.name!r}"
        )
    known = {step.name: step for step in recipe.steps}
    for name in document["steps"]:
        if name not in known:
            raise ValueError(f"{where}: {configs.no_such('step', name, known)}")
    steps = tuple(
        replace(
            step,
            config=configs.from_dict(
                load_stage(step.stage).config, document["steps"][step.name]["config"], f"{where}, step {step.name}"
            ),
        )
        if step.name in document["steps"]
        else step
        for step in recipe.steps
    )
    result = replace(recipe, steps=steps)
    return result.with_input(tuple(document["input"])) if document.get("input") else result
