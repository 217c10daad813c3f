"""Reads the words after `run NAME` and `plan NAME` into configs: tyro over dataclasses of the stage or recipe.

For a stage, every input, every field of Config (`--max-characters 1000`, nested fields with a dot) and every field of
Resources is a flag. For a recipe, the step's name stands before a Config field (`--teacher.steps 300`). `--config FILE`
sets the defaults.
"""

import dataclasses
import json
import keyword
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, make_dataclass, replace
from typing import Annotated, Any

import tyro

import model
from data import storage
from data.manifest import is_of_another_run
from data.sealed import SEAL, unsealed
from infra.ray_session import in_submitted_job
from pipelines.cli.words import refuse_loose, refuse_memory, take
from pipelines.engine import config as configs
from pipelines.engine.errors import UserError
from pipelines.engine.flags import parse, refuse_unknown
from pipelines.engine.inputs import DEFAULT_ROOT
from pipelines.engine.resources import Resources
from pipelines.engine.stage import Stage, load_stage
from pipelines.recipes.recipe import Recipe, Step, replayed

MODEL_PRESETS: dict[str, Callable[[], model.Gemma2Config]] = {
    "gemma2_2b": model.gemma2_2b,
    "gemma2_9b": model.gemma2_9b,
    "gemma2_27b": model.gemma2_27b,
    "gemma2_tiny": model.gemma2_tiny,
}
MODEL_SIZES = f"--model NAME: all sizes of a model together; NAME is {', '.join(MODEL_PRESETS)}"
"""what the flag does that stands for all flags --model.*, for `show` and `--help`"""


@dataclass(frozen=True, kw_only=True)
class StageCommand:
    """A stage with the config, inputs, resources and root of its command line."""

    stage: Stage
    config: Any
    inputs: dict[str, tuple[str, ...]]
    resources: Resources
    root: str


@dataclass(frozen=True, kw_only=True)
class RecipeCommand:
    """A recipe with the resources and root of its command line."""

    recipe: Recipe
    resources: Resources
    root: str


def parse_stage(stage: Stage, words: Sequence[str]) -> StageCommand:
    """The command of a stage's words.

    Raises UserError for an unknown field, a wrong type, a missing value or a config file that does not fit.
    """
    words, config_file = take(list(words), "--config")
    names = _field_names(stage.config)
    words, preset = take(words, "--model") if "model" in names else (words, None)
    inputs: dict[str, tuple[str, ...]] = dict.fromkeys(stage.reads, ())
    saved: Any = dataclasses.MISSING
    root = DEFAULT_ROOT
    if config_file is not None:
        document = _read_json(config_file)
        if document.get("stage") != stage.name:
            owner = document.get("stage") or document.get("recipe")
            raise UserError(f"got {config_file}, the config of {owner!r}; give the config of a run of {stage.name!r}")
        if not isinstance(document.get("config"), dict) or not isinstance(document.get("inputs", {}), dict):
            raise UserError(
                f"got {config_file}, whose 'config' or 'inputs' is no object; give the _CONFIG.json of a run"
            )
        saved = configs.from_dict(stage.config, document["config"], config_file)
        for name, given in document.get("inputs", {}).items():
            if name not in stage.reads:
                raise UserError(f"{config_file}: {configs.no_such('input', name, stage.reads)}")
            inputs[name] = configs.texts(given, f"{config_file}: input {name!r}")
        root = _saved_root(document, config_file)
    model_fields = {} if preset is None else {"model": _preset(preset)}
    fields: list[Any] = [
        (
            _attribute(name),
            Annotated[
                tuple[str, ...],
                tyro.conf.arg(name=name, help=f"{read.help}{' (optional)' if read.optional else ''}"),
            ],
            field(default=inputs[name]),
        )
        for name, read in stage.reads.items()
    ]
    fields.append(_config_field(stage.config, saved, model_fields))
    also = ["--config FILE: all flags as in the _CONFIG.json of a run", *([MODEL_SIZES] if "model" in names else [])]
    parsed = _parse(f"run {stage.name}", fields, words, _described(stage.summary, also), root)
    given = {name: getattr(parsed, _attribute(name)) for name in stage.reads}
    return StageCommand(
        stage=stage, config=parsed.config, inputs=given, resources=parsed.resources, root=_root(parsed.root)
    )


def _attribute(name: str) -> str:
    """The input's name as the name of an attribute, because `from` is a keyword of Python."""
    return f"{name}_" if keyword.iskeyword(name) else name


def parse_recipe(recipe: Recipe, words: Sequence[str]) -> RecipeCommand:
    """The command of a recipe's words. Raises UserError as `parse_stage` does."""
    words, config_file = take(list(words), "--config")
    root = DEFAULT_ROOT
    if config_file is not None:
        document = _read_json(config_file)
        recipe, root = replayed(recipe, document, config_file), _saved_root(document, config_file)
    paths = recipe.input()
    fields: list[Any] = [
        (
            "input",
            Annotated[tuple[str, ...], tyro.conf.arg(help="files, directories or globs of text")],
            field(default=paths),
        )
    ]
    outside = recipe.outside()
    fields += [
        (flag, Annotated[tuple[str, ...], tyro.conf.arg(help=_what(recipe, *place))], field(default=()))
        for flag, place in outside.items()
    ]
    fields += [
        (step.name, type(step.config), field(default=step.config))
        for step in recipe.steps
        if dataclasses.fields(step.config)
    ]
    also = [
        "--config FILE: all flags as in the recipe.json of a run",
        "--only STEP,STEP: some steps alone (for `run`)",
        "--prices FILE, or --prices default: the cost too (for `plan`)",
    ]
    parsed = _parse(f"run {recipe.name}", fields, words, _described(recipe.summary, also), root)
    if paths and not parsed.input:
        raise UserError("got --input without a value; give files, directories or globs after it, or leave it out")
    own_text = parsed.input != paths
    steps = tuple(_with_config(step, parsed, own_text) for step in recipe.steps)
    given = {flag: getattr(parsed, flag) for flag in outside if getattr(parsed, flag)}
    result = replace(recipe, steps=steps).with_input(parsed.input).with_outside(given)
    return RecipeCommand(recipe=result, resources=parsed.resources, root=_root(parsed.root))


def parse_run(recipe: Recipe, words: Sequence[str]) -> tuple[RecipeCommand, list[str]]:
    """The command of `run RECIPE`, and the names of the steps to run: all steps, or those after `--only`.

    With `--only`, several jobs can share a recipe. Raises UserError as `parse_recipe` does, and for a name of no step.
    """
    words, only = take(list(words), "--only")
    command = parse_recipe(recipe, words)
    names = [step.name for step in recipe.steps]
    chosen = names if only is None else only.split(",")
    for name in chosen:
        if name not in names:
            raise UserError(configs.no_such("step", name, names))
    return command, chosen


def refuse_missing(recipe: Recipe, chosen: Sequence[str]) -> None:
    """Raises UserError if the chosen steps, or steps that they depend on, lack an input from outside."""
    if missing := recipe.not_given(chosen):
        everything = len(chosen) == len(recipe.steps)
        whose = recipe.name if everything else f"{recipe.name} --only {','.join(chosen)}"
        raise UserError(f"got no {', '.join(missing)} for {whose}; give all of them (see `plan {recipe.name}`)")


def _described(summary: str, also: Iterable[str]) -> str:
    """The head of `--help`: the summary, and the flags that are taken from the line before tyro reads it."""
    return "\n".join([summary, "", "Further flags:", *also])


def _what(recipe: Recipe, step: str, name: str) -> str:
    stage = next(candidate.stage for candidate in recipe.steps if candidate.name == step)
    return load_stage(stage).reads[name].help


def _with_config(step: Step, parsed: Any, own_text: bool) -> Step:
    """The step with the config of the command line.

    A step that reads the user's text gets another note, and another config but for the fields that the line gives.
    """
    config = getattr(parsed, step.name, step.config)
    declared = load_stage(step.stage).declares.own_text
    if not own_text or declared is None:
        return replace(step, config=config)
    names = [entry.name for entry in dataclasses.fields(config)]
    given = {name: getattr(config, name) for name in names if getattr(config, name) != getattr(step.config, name)}
    return replace(step, config=replace(declared.config(step.config), **given), note=declared.note)


def _config_field(kind: type, saved: Any, overrides: dict[str, Any]) -> tuple[str, Any, Any]:
    """The stage's Config as a field whose own fields are flags without a prefix."""
    annotated: Any = Annotated[kind, tyro.conf.arg(name="")]
    if saved is not dataclasses.MISSING:
        return ("config", annotated, field(default=replace(saved, **overrides)))
    if overrides:
        # tyro takes defaults from an instance; fields without a default stay required through MISSING
        values = {entry.name: overrides.get(entry.name, _default(entry)) for entry in dataclasses.fields(kind)}
        instance: Any = object.__new__(kind)
        for name, value in values.items():
            object.__setattr__(instance, name, value)
        return ("config", annotated, field(default_factory=lambda: instance))
    required = any(_default(entry) is tyro.MISSING for entry in dataclasses.fields(kind))
    return ("config", annotated, field() if required else field(default_factory=kind))


def _default(entry: "dataclasses.Field[Any]") -> Any:
    if entry.default is not dataclasses.MISSING:
        return entry.default
    return entry.default_factory() if entry.default_factory is not dataclasses.MISSING else tyro.MISSING


def _parse(program: str, fields: list[Any], words: list[str], summary: str, root: str) -> Any:
    fields = [
        *fields,
        ("resources", Annotated[Resources, tyro.conf.arg(name="")], field(default_factory=Resources)),
        (
            "root",
            Annotated[str, tyro.conf.arg(help="root of all runs: a directory or gs://bucket/path")],
            field(default=root),
        ),
    ]
    command = make_dataclass("Command", fields, kw_only=True, frozen=True)
    refuse_unknown(words, sorted(_flags(fields)))
    refuse_loose(words)
    return parse(
        command,
        words,
        program=f"python -m pipelines {program}",
        description=summary,
        config=(tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands),
        instead={"--model.": f"--model {'|'.join(MODEL_PRESETS)} (or each of its sizes)"},
    )


def _flags(fields: list[Any]) -> Iterator[str]:
    """All flags, with underscores."""
    for name, kind, _ in fields:
        inner, *extra = typing.get_args(kind) if typing.get_origin(kind) is Annotated else (kind,)
        named = next((marker.name for marker in extra if getattr(marker, "name", None) is not None), name)
        if dataclasses.is_dataclass(inner):
            yield from _nested(inner, named + "." if named else "")
        else:
            yield named


def _nested(kind: Any, prefix: str) -> Iterator[str]:
    hints = typing.get_type_hints(kind)
    for entry in dataclasses.fields(kind):
        options = (
            typing.get_args(hints[entry.name])
            if isinstance(hints[entry.name], types.UnionType)
            else (hints[entry.name],)
        )
        inner = next((option for option in options if dataclasses.is_dataclass(option)), None)
        if inner is not None:
            yield from _nested(inner, f"{prefix}{entry.name}.")
        else:
            yield prefix + entry.name


def _field_names(kind: type) -> set[str]:
    return {entry.name for entry in dataclasses.fields(kind)}


def _preset(name: str) -> Any:
    if name not in MODEL_PRESETS:
        raise UserError(configs.no_such("model", name, MODEL_PRESETS))
    return MODEL_PRESETS[name]()


def _read_json(path: str) -> dict[str, Any]:
    if left_out := storage.find_files(path).left_out:
        raise UserError(
            f"got the config file {path!r}, which is a {left_out[0][0]} and might have no end; give a regular file"
        )
    try:
        content = storage.read_bytes(path)
        document = json.loads(content)
    except FileNotFoundError:
        raise UserError(
            f"no config file {path!r}; give the _CONFIG.json of a run, or the recipe.json of a recipe"
        ) from None
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(
            f"got {path}, which is not JSON ({error}); give the _CONFIG.json of a run, or the recipe.json of a recipe"
        ) from error
    if not isinstance(document, dict) or not ({"stage", "recipe"} & set(document)):
        raise UserError(
            f"got {path}, which names neither a stage nor a recipe; give the _CONFIG.json of a run, or the recipe.json "
            "of a recipe"
        )
    document = unsealed(content, document, path, f"if you edited it, remove its line {SEAL}")
    fingerprint = document.get("fingerprint")
    if fingerprint is not None and is_of_another_run(storage.absolute(path).rpartition("/")[0], fingerprint):
        raise UserError(
            f"got {path} of the run {fingerprint!r}, exchanged with another file; give the file in that run's own "
            "folder, or a copy of it outside of the runs"
        )
    return document


def _saved_root(document: dict[str, Any], where: str) -> str:
    root = document.get("root", DEFAULT_ROOT)
    if not isinstance(root, str):
        raise UserError(f"{where}: got {root!r} for 'root'; it must be a string")
    return root


def _root(text: str) -> str:
    """The root of runs as an absolute path, because workers have other working directories.

    Raises UserError for a relative root inside a submitted job, whose directory is removed with the job.
    """
    if not text:
        raise UserError("got an empty --root; give a directory or gs://bucket/path")
    if in_submitted_job() and storage.is_relative(text):
        raise UserError(
            f"got the relative --root {text!r} in a submitted job, whose directory is removed with the job; "
            "give an absolute path or gs://bucket/path"
        )
    refuse_memory(text)
    root = storage.absolute(text).rstrip("/") or "/"
    on_disk = storage.local_path(root)
    if on_disk is not None and on_disk.exists() and not on_disk.is_dir():
        raise UserError(f"got --root {text!r}, which is a file; give a directory, existing or not")
    return root
