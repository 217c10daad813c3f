"""The commands list, status, show, plan, account and run."""

import ast
import dataclasses
import difflib
import inspect
import itertools
import json
import os
import sys
import textwrap
import time
import typing
from typing import Any

from data import storage
from data.manifest import read_manifest
from infra.prices import read_prices
from infra.ray_session import RaySession
from pipelines.account.amounts import measured, speeds
from pipelines.account.table import estimate_lines, measured_lines
from pipelines.cli.arguments import (
    DEFAULT_ROOT,
    parse_recipe,
    parse_run,
    parse_stage,
    refuse_memory,
    refuse_missing,
    take,
)
from pipelines.cli.plan import last_of_stage, plan_lines
from pipelines.cli.status import no_runs, status_lines
from pipelines.engine import config as configs
from pipelines.engine import damage
from pipelines.engine.errors import UserError
from pipelines.engine.inputs import REFERENCE
from pipelines.engine.printed import one_line, print_line
from pipelines.engine.registry import stage_names
from pipelines.engine.runner import read_run, run_task
from pipelines.engine.stage import Stage, load_stage
from pipelines.engine.task import Task, resolve_inputs
from pipelines.recipes import registry as recipes
from pipelines.recipes.gemma2 import PUBLISHED
from pipelines.recipes.recipe import Recipe, last_run, save_recipe, tasks_of
from pipelines.report import write as report


def list_(words: list[str]) -> int:
    """Lists stages and recipes, a line each; with `--runs [--root ROOT]`, lists the runs below ROOT."""
    words, root = _take_root(words)
    if words == ["--runs"]:
        return _list_runs(root)
    if words:
        raise UserError(f"got {' '.join(words)!r} after list; give nothing, or --runs [--root ROOT]{_meant(words)}")
    width = max(map(len, [*stage_names(), *recipes.names()]))
    print("recipes")
    for name in recipes.names():
        print(f"  {name:<{width}}  {recipes.load(name).summary}")
    print("stages")
    for name in stage_names():
        print(f"  {name:<{width}}  {load_stage(name).summary}")
    return 0


def _take_root(words: list[str]) -> tuple[list[str], str]:
    """`words` without `--root ROOT`, and ROOT."""
    rest, root = take(words, "--root")
    if root is None:
        return rest, DEFAULT_ROOT
    if not root:
        raise UserError("got an empty --root; give a directory or gs://bucket/path")
    refuse_memory(root)
    storage.check_bucket(root)
    return rest, root


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
        started = str(read_run(directory).get("started", ""))
    return started, states[-1]


def status(words: list[str]) -> int:
    """Prints the state and progress of all runs below ROOT; asks no cluster."""
    words, root = _take_root(words)
    if words:
        raise UserError(f"got {' '.join(words)!r} after status; give nothing, or --root ROOT{_meant(words)}")
    for line in status_lines(storage.absolute(root)):
        print_line(line)
    return 0


def show(words: list[str]) -> int:
    """Prints a stage's inputs, outputs and fields, a recipe's steps, or a run's manifest (`show STAGE/FINGERPRINT`)."""
    words, root = _take_root(words)
    if len(words) != 1:
        raise UserError(
            f"got {len(words)} names after show; give one name of a stage, recipe or run, as `list` and `list --runs` "
            "print them"
        )
    (name,) = words
    if match := REFERENCE.match(name):
        manifest = read_manifest(storage.join(root, match["stage"], match["fingerprint"]))
        if manifest is None:
            raise UserError(
                f"no finished run {name!r} under {storage.absolute(root)}; `list --runs --root {root}` lists the "
                "finished runs"
            )
        print(_readable(manifest.to_json().decode()), end="")
        return 0
    target = _stage_or_recipe(name)
    print(f"{name}: {target.summary}")
    if isinstance(target, Stage):
        for key, read in target.reads.items():
            notes = (" (optional)" if read.optional else "") + (" (several)" if read.many else "")
            print(f"  reads   --{key}: {read.help}{notes}")
        print(f"  writes  {', '.join(target.writes)}")
        for line in _fields(target.config, ""):
            print(f"  field   {line}")
    else:
        for step in target.steps:
            sources = [str(getattr(source, "step", source)) for group in step.inputs.values() for source in group]
            print(f"  {step.name:<20} {step.stage:<18} <- {', '.join(dict.fromkeys(sources))}")
    return 0


def plan(words: list[str]) -> int:
    """Prints which steps would run, and why; starts nothing."""
    target, rest = _named(words, "plan")
    rest, prices_file = take(rest, "--prices")
    prices = read_prices(None if prices_file in (None, "default") else prices_file, speeds())
    if isinstance(target, Stage):
        if prices_file is not None:
            raise UserError(
                f"got --prices with the stage {target.name!r}, whose cost depends on the steps that use its output; "
                f"give a recipe ({', '.join(recipes.names())})"
            )
        command = parse_stage(target, rest)
        storage.check_bucket(command.root)
        inputs = resolve_inputs(target, command.config, command.inputs, command.root)
        tasks = {target.name: Task(stage=target, config=command.config, inputs=inputs, root=command.root)}
        before = last_of_stage(tasks[target.name], print_line)
        notes: dict[str, str] = {}
        root = command.root
    else:
        wanted = parse_recipe(target, rest)
        storage.check_bucket(wanted.root)
        tasks, before, root = tasks_of(wanted.recipe, wanted.root), last_run(wanted.recipe, wanted.root), wanted.root
        notes = {step.name: step.note for step in wanted.recipe.steps}
    print_line(f"{target.name} in {root}: {target.summary}")
    for line in plan_lines(tasks, before, notes):
        print_line(line)
    if isinstance(target, Recipe):
        if missing := wanted.recipe.not_given():
            print(f"`run` also needs: {', '.join(missing)}")
        if prices_file is not None or target.name in PUBLISHED:
            print()
            for line in estimate_lines(wanted.recipe, prices):
                print_line(line)
    return 0


def account(words: list[str]) -> int:
    """Prints the cost of a recipe's finished steps, in the table that `plan` estimates before the run."""
    target, rest = _named(words, "account")
    if isinstance(target, Stage):
        raise UserError(f"got the stage {target.name!r} for account; give a recipe ({', '.join(recipes.names())})")
    rest, prices_file = take(rest, "--prices")
    prices = read_prices(None if prices_file in (None, "default") else prices_file, speeds())
    command = parse_recipe(target, rest)
    storage.check_bucket(command.root)
    damaged: list[str] = []
    amounts = measured(tasks_of(command.recipe, command.root), damaged.append)
    for line in damaged:
        print_line(line)
    if not amounts:
        raise UserError(f"no step of {target.name} has finished in {command.root}; run it first, or give its --root")
    steps = len(command.recipe.steps)
    print_line(f"What {target.name} took in {command.root} ({len(amounts)} of {steps} steps finished):")
    for line in measured_lines(amounts, prices):
        print_line(line)
    return 0


def run(words: list[str]) -> int:
    """Runs a stage or a recipe; finished steps are not run again."""
    target, rest = _named(words, "run")
    return _run_stage(target, rest) if isinstance(target, Stage) else _run_recipe(target, rest)


def _run_stage(stage: Stage, words: list[str]) -> int:
    command = parse_stage(stage, words)
    storage.check_bucket(command.root)
    inputs = resolve_inputs(stage, command.config, command.inputs, command.root)
    task = Task(stage=stage, config=command.config, inputs=inputs, root=command.root)
    session = RaySession(command.resources.cpus)
    try:
        run_task(task, command.resources, session, _say)
    finally:
        session.close()
    print_line(task.directory)
    return 0


def _run_recipe(recipe: Recipe, words: list[str]) -> int:
    command, chosen = parse_run(recipe, words)
    storage.check_bucket(command.root)
    refuse_missing(command.recipe, chosen)
    tasks = tasks_of(command.recipe, command.root)
    waiting = [name for name, task in tasks.items() if name in chosen and task.manifest() is None]
    began = time.monotonic()
    session = RaySession(command.resources.cpus)
    if not waiting:
        subject = f"all {len(tasks)} steps were" if len(chosen) == len(tasks) else f"{', '.join(chosen)} was"
        _tell(f"{recipe.name}: {subject} done before, nothing to do")
    save_recipe(command.recipe, tasks, command.root)
    try:
        for number, (step, (name, task)) in enumerate(zip(command.recipe.steps, tasks.items(), strict=True), start=1):
            if waiting and name in chosen:
                run_task(
                    task,
                    step.resources(command.resources),
                    session,
                    lambda text, name=name, number=number: _tell(f"[{number}/{len(tasks)}] {name}: {text}"),
                )
    finally:
        session.close()
    if waiting:
        _tell(f"{recipe.name}: {len(waiting)} of {len(tasks)} steps ran in {time.monotonic() - began:.0f} s")
    report.write(command.recipe.name, tasks, command.root)
    return 0


def _named(words: list[str], command: str) -> tuple[Stage | Recipe, list[str]]:
    if not words or words[0].startswith("-"):
        raise UserError(
            f"got no name after {command}; give the name of a stage or recipe first: "
            f"{', '.join([*recipes.names(), *stage_names()])}"
        )
    return _stage_or_recipe(words[0]), words[1:]


def _stage_or_recipe(name: str) -> Stage | Recipe:
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


def _tell(text: str) -> None:
    """Prints a line. A recipe runs on if its output is no longer read, as after `| head`."""
    try:
        print(one_line(text), flush=True)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the rest of the process


def _say(text: str) -> None:
    print(one_line(text), file=sys.stderr, flush=True)
