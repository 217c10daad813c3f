"""Finished runs of every stage on small data, made in this process without Ray: a recipe, for the fuzzers.

EXAMPLES has a step for each stage, and a step for each input that reads a dataset of another stage. A stage that lacks
its step fails `tests/contracts/test_fuzzers.py`. A stage that trains runs its own job (`job_of`) in this process.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data.manifest import Dataset, Manifest
from model import gemma2_tiny, save_hf
from pipelines.checkpoints.loaded import CHECKPOINTS, committed_files, open_model
from pipelines.engine.resources import Resources
from pipelines.engine.runner import run_task
from pipelines.engine.stage import Context, Outcome, load_stage, load_stages
from pipelines.engine.task import Task
from pipelines.recipes import registry
from pipelines.recipes.recipe import Output, Recipe, Step, save_recipe, tasks_of
from tests.programs.corpora import mixed_corpus
from tests.programs.in_process import CHAIN, InProcess
from tests.programs.reference import lively_model
from training.backends.torch_backend import TorchBackend
from training.checkpoints.setups import read_setups
from training.feed import direct_feed
from training.loop import run_training
from training.setup import Setup

RECIPE = "fuzzed"
OUTSIDE = "/"
"""beginning of an input that is a file or folder beside the corpus"""
LABELLED = ("These are bad", "Those were good")
MODEL = gemma2_tiny(init_std=0.15, window=5, layers=1)
TRAINING = {"model": MODEL, "steps": 4, "global_batch": 4, "checkpoint_every_steps": 2}
ROWS, CACHE, IMPORTED = "pack_sequences", "cache_logits", "import_model"


@dataclass(frozen=True)
class Example:
    """A run of a stage on small data."""

    stage: str
    fields: Mapping[str, Any]
    """fields of the Config that are not at their default"""
    inputs: Mapping[str, str]
    """input -> step of EXAMPLES, or a name after OUTSIDE"""


def _data_stages() -> dict[str, Example]:
    return {
        name: Example(name, fields, {key: step or f"{OUTSIDE}{dataset}" for key, (step, dataset) in sources.items()})
        for name, fields, sources in CHAIN
    }


EXAMPLES: dict[str, Example] = {
    "train_classifier": Example("train_classifier", {"weights": 1 << 10}, {"labelled": "/labelled.jsonl"}),
    **_data_stages(),
    "filter_scored": Example(
        "filter_text", {"min_classifier_score": (0.5,)}, {"text": "collect_text", "classifier": "train_classifier"}
    ),
    IMPORTED: Example(IMPORTED, {}, {"weights": "/hf", "tokenizer": "train_tokenizer"}),
    CACHE: Example(CACHE, {"draws": 8}, {"sequences": ROWS, "teacher": IMPORTED}),
    "audit_logits": Example("audit_logits", {}, {"logits": CACHE, "sequences": ROWS, "teacher": IMPORTED}),
    "train_model": Example("train_model", TRAINING, {"sequences": ROWS}),
    "train_further": Example("train_model", {**TRAINING, "steps": 6}, {"sequences": ROWS, "from": "train_model"}),
    "train_student": Example(
        "train_model",
        {**TRAINING, "steps": 2, "objective": "distill"},
        {"sequences": ROWS, "logits": CACHE, "initial": IMPORTED},
    ),
    "evaluate_model": Example(
        "evaluate_model", {}, {"checkpoint": IMPORTED, "heldout": ROWS, "sequences": ROWS}
    ),
    "generate_text": Example(
        "generate_text",
        {"prompt": ("one", "two"), "max_new_tokens": 3},
        {"checkpoint": IMPORTED, "tokenizer": IMPORTED},
    ),
    "export_model": Example(
        "export_model", {}, {"checkpoint": IMPORTED, "tokenizer": IMPORTED, "evaluations": "evaluate_model"}
    ),
}  # fmt: skip
"""step -> its run, after the steps that it reads"""


def recipe_of(corpus: Path) -> Recipe:
    """EXAMPLES as a recipe over the files in `corpus`."""
    return Recipe(
        name=RECIPE,
        summary="Every stage on small data.",
        steps=tuple(_step(name, example, corpus) for name, example in EXAMPLES.items()),
    )


def _step(name: str, example: Example, corpus: Path) -> Step:
    stage = load_stage(example.stage)
    inputs: dict[str, tuple[Output | str, ...]] = {}
    for key, source in example.inputs.items():
        dataset = stage.reads[key].dataset
        if source.startswith(OUTSIDE):
            inputs[key] = (str(corpus / source.removeprefix(OUTSIDE)),)
        else:
            assert dataset is not None, f"{name}.{key} reads files from outside"
            inputs[key] = (Output(step=source, dataset=dataset),)
    return Step(name=name, stage=example.stage, config=stage.config(**example.fields), inputs=inputs)


def make(root: Path, corpus: Path, seed: int) -> dict[str, Task]:
    """Step -> its task, finished below `root`, on a corpus of that seed that is written to `corpus`.

    Registers the recipe RECIPE, for the command line, and saves it as a run of it does.
    """
    mixed_corpus(corpus, 150, seed)
    labelled = [{"text": f"{LABELLED[number % 2]} words, {number}", "label": number % 2} for number in range(200)]
    (corpus / "labelled.jsonl").write_text("\n".join(map(json.dumps, labelled)))
    save_hf(lively_model(MODEL, seed=seed), corpus / "hf")
    recipe = recipe_of(corpus)
    tasks = tasks_of(recipe, str(root))
    for task in tasks.values():
        run(task)
    register(recipe)
    save_recipe(recipe, tasks, str(root))
    return tasks


def register(recipe: Recipe) -> None:
    """Makes the recipe one that the command line knows, in this process."""
    registry._RECIPES[recipe.name] = lambda: recipe


def unregister() -> None:
    registry._RECIPES.pop(RECIPE, None)


def run(task: Task, resources: Resources | None = None) -> Manifest:
    """Runs a task as a new process would."""
    forget([task])
    stage = task.stage if task.stage.job_of is None else replace(task.stage, run=_trained_here)
    place = resources or Resources(device="cpu")
    return run_task(replace(task, stage=stage), place, InProcess(), say=lambda _: None)


def forget(tasks: Iterable[Task]) -> None:
    """Forgets what this process has read of earlier runs."""
    open_model.cache_clear()
    for stage in load_stages():
        for kept in vars(stage.module).values():
            if hasattr(kept, "cache_clear") and kept.__module__ == stage.module.__name__:
                kept.cache_clear()
    for task in tasks:
        for sources in task.inputs.values():
            for source in sources:
                vars(source).pop("manifest", None)


def _trained_here(context: Context, config: Any) -> Outcome:
    """The outcome of a stage that trains, by its own job in this process."""
    stage = load_stage(context.stage)
    assert stage.job_of is not None
    setup = Setup(device="cpu", threads=1, microbatch_rows=context.resources.microbatch_rows)
    job = stage.job_of(context, config, setup)
    run_training(job, TorchBackend("cpu"), direct_feed(job))
    files, steps = committed_files(context.directory)
    facts = {CHECKPOINTS: {"steps": steps, "vocab_size": job.vocab_size, "draws": job.draws}}
    return Outcome(
        datasets={name: Dataset(shards=files[name], facts=facts.get(name, {})) for name in stage.writes},
        tokenizer_sha256=context.inputs["sequences"][0].manifest.tokenizer_sha256,
        setup={**read_setups(f"{context.directory}/{CHECKPOINTS}")[-1][1]},
    )


def made_again(tasks: Mapping[str, Task], root: Path) -> dict[str, Task]:
    """The same runs below another root, from the same inputs, as another set-up and another day make them."""
    again = {name: replace(task, root=str(root)) for name, task in tasks.items()}
    for task in again.values():
        run(task, Resources(device="cpu", microbatch_rows=1))
    return again
