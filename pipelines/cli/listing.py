"""The commands that look at what is there: list, status and show. They import a stage only to show its fields."""

import ast
import dataclasses
import difflib
import inspect
import itertools
import json
import textwrap
import typing
from typing import Any

from data import storage
from data.manifest import read_manifest
from pipelines.cli.status import no_runs, status_lines
from pipelines.cli.words import take_root
from pipelines.engine import config as configs
from pipelines.engine import damage, registry
from pipelines.engine.errors import UserError
from pipelines.engine.inputs import REFERENCE
from pipelines.engine.printed import print_line
from pipelines.engine.registry import stage_names
from pipelines.engine.runner import read_run
from pipelines.engine.stage import Stage, load_stage
from pipelines.recipes import registry as recipes
from pipelines.recipes.recipe import Recipe


def list_(words: list[str]) -> int:
    """Lists stages and recipes, a line each; with `--runs [--root ROOT]`, lists the runs below ROOT."""
    words, root = take_root(words)
    if words == ["--runs"]:
        return _list_runs(root)
    if words:
        raise UserError(f"got {' '.join(words)!r} after list; give nothing, or --runs [--root ROOT]{_meant(words)}")
    width = max(map(len, [*stage_names(), *recipes.names()]))
    print("recipes")
    for name in recipes.names():
        print(f"  {name:<{width}}  {recipes.summary(name)}")
    print("stages")
    for name in stage_names():
        print(f"  {name:<{width}}  {registry.summary(name)}")
    return 0


def _list_runs(root: str) -> int:
    count = 0
    for name in stage_names():
        for fingerprint in storage.list_folders(storage.join(root, name)):
            started, state = _listed(storage.join(root, name, fingerprint))
            print_line(f"{name}/{fingerprint}  {started:<25}  {state}")
            count += 1
    if not count:
        print_line(no_runs(root))
    return 0


def _meant(words: list[str]) -> str:
    """What a user who typed these words may have meant."""
    close = difflib.get_close_matches(words[0].lstrip("-"), ("runs", "root"), n=1)
    return f"; did you mean --{close[0]}?" if close and len(words) <= 2 else ""


def _listed(directory: str) -> tuple[str, str]:
    """The time at which a run started, and its state. A damaged file of one run is named, and hides no other run."""
    started, states = "", ["unfinished"]
    with damage.named(directory, states.append):
        if (manifest := read_manifest(directory)) is not None:
            states.append(", ".join(f"{key} {value.rows:,} rows" for key, value in sorted(manifest.datasets.items())))
            run = read_run(directory)
            started = str(run.get("started", "")) if run else "no log"
    return started, states[-1]


def status(words: list[str]) -> int:
    """Prints the state and progress of all runs below ROOT; asks no cluster."""
    words, root = take_root(words)
    if words:
        raise UserError(f"got {' '.join(words)!r} after status; give nothing, or --root ROOT{_meant(words)}")
    for line in status_lines(storage.absolute(root)):
        print_line(line)
    return 0


def show(words: list[str]) -> int:
    """Prints a stage's inputs, outputs and fields, a recipe's steps, or a run's manifest (`show STAGE/FINGERPRINT`)."""
    words, root = take_root(words)
    if len(words) != 1:
        raise UserError(
            f"got {len(words) or 'no'} names after show; give one name of a stage, recipe or run, as `list` and "
            "`list --runs` print them"
        )
    (name,) = words
    if match := REFERENCE.match(name):
        manifest = read_manifest(storage.join(root, match["stage"], match["fingerprint"]))
        if manifest is None:
            raise UserError(
                f"no finished run {name!r} under {storage.absolute(root)}; `list --runs --root {root}` lists the runs"
            )
        print(_readable(manifest.to_json().decode()), end="")
        return 0
    target = stage_or_recipe(name)
    print(f"{name}: {target.summary}")
    if isinstance(target, Stage):
        for key, read in target.reads.items():
            notes = (" (optional)" if read.optional else "") + (" (several)" if read.many else "")
            print(f"  reads   --{key}: {read.help}{notes}")
        print(f"  writes  {', '.join(target.writes)}")
        if "model" in {field.name for field in dataclasses.fields(target.config)}:
            from pipelines.cli.arguments import MODEL_SIZES

            print(f"  field   {MODEL_SIZES}")
        for line in _fields(target.config, ""):
            print(f"  field   {line}")
    else:
        for step in target.steps:
            sources = [str(getattr(source, "step", source)) for group in step.inputs.values() for source in group]
            print(f"  {step.name:<20} {step.stage:<18} <- {', '.join(dict.fromkeys(sources))}")
    return 0


def stage_or_recipe(name: str) -> Stage | Recipe:
    """The stage or recipe of that name. Raises UserError if there is neither."""
    if name in recipes.names():
        return recipes.load(name)
    if name in stage_names():
        return load_stage(name)
    raise UserError(configs.no_such("stage or recipe", name, [*recipes.names(), *stage_names()]))


def _fields(kind: Any, prefix: str) -> list[str]:
    """A line for each field at any depth: flag, default, docstring."""
    hints = typing.get_type_hints(kind)
    documentation = _field_docs(kind)
    lines = []
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            lines += _fields(hints[field.name], f"{prefix}{field.name}.")
            continue
        default = (
            "required"
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            else f"= {field.default!r}"
        )
        lines.append(f"--{prefix}{field.name.replace('_', '-')} {default}: {documentation.get(field.name, '')}")
    return lines


def _field_docs(kind: Any) -> dict[str, str]:
    """Field name -> docstring below the field."""
    docs = {}
    owners = [base for base in kind.__mro__ if "__dataclass_fields__" in vars(base)]
    for owner in reversed(owners):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(body, ast.ClassDef)
        for node, after in itertools.pairwise(body.body):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(after, ast.Expr):
                docs[node.target.id] = " ".join(str(getattr(after.value, "value", "")).split())
    return docs


def _readable(document: str) -> str:
    """JSON with the characters escaped, in JSON's own way, that would steer a terminal."""
    return "".join(
        character if character.isprintable() or character == "\n" else json.dumps(character)[1:-1]
        for character in document
    )
