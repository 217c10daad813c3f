"""The commands plan, account and run."""

import os
import sys
import time

from data import storage
from infra.prices import read_prices
from infra.ray_session import RaySession
from pipelines.account.amounts import measured, speeds
from pipelines.account.table import estimate_lines, measured_lines
from pipelines.cli.arguments import parse_recipe, parse_run, parse_stage, refuse_missing
from pipelines.cli.device import device_lines, refuse_device
from pipelines.cli.listing import stage_or_recipe
from pipelines.cli.plan import last_of_stage, plan_lines
from pipelines.cli.words import take
from pipelines.engine.errors import UserError
from pipelines.engine.printed import one_line, print_line
from pipelines.engine.registry import stage_names
from pipelines.engine.runner import run_task
from pipelines.engine.stage import Stage
from pipelines.engine.task import Task, resolve_inputs
from pipelines.recipes import registry as recipes
from pipelines.recipes.gemma2 import PUBLISHED
from pipelines.recipes.recipe import Recipe, last_run, save_recipe, tasks_of
from pipelines.report import write as report


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
        root, resources = command.root, command.resources
    else:
        wanted = parse_recipe(target, rest)
        storage.check_bucket(wanted.root)
        root, resources = wanted.root, wanted.resources
        tasks, before = tasks_of(wanted.recipe, root), last_run(wanted.recipe, root, print_line)
        notes = {step.name: step.note for step in wanted.recipe.steps}
    print_line(f"{target.name} in {root}: {target.summary}")
    for line in plan_lines(tasks, before, notes):
        print_line(line)
    for line in device_lines(resources.device, tasks.values()):
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
    remarks: list[str] = []
    amounts = measured(tasks_of(command.recipe, command.root), remarks.append)
    for line in remarks:
        print_line(line)
    if not amounts:
        raise UserError(f"no step of {target.name} has finished in {command.root}; run it first, or give its --root")
    steps = len(command.recipe.steps)
    print_line(f"What {target.name} took in {command.root} ({len(amounts)} of {steps} steps finished):")
    for line in measured_lines(amounts, prices):
        print_line(line)
    counted = {amount.step for amount in amounts}
    if missing := [step.name for step in command.recipe.steps if step.name not in counted]:
        print_line(f"not finished, or damaged: {', '.join(missing)}")
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
    refuse_device(command.resources.device, [task])
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
    refuse_device(command.resources.device, [tasks[name] for name in waiting])
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
    return stage_or_recipe(words[0]), words[1:]


def _tell(text: str) -> None:
    """Prints a line. A recipe runs on if its output is no longer read, as after `| head`."""
    try:
        print(one_line(text), flush=True)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the rest of the process


def _say(text: str) -> None:
    print(one_line(text), file=sys.stderr, flush=True)
