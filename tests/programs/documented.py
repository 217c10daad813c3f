"""The commands that our pages name, read as the programs would read them, without running anything.

A command is in a block of code or in a code span. Only its flags are checked if `...` stands for more flags, the last
flag has no value, or a NAME, RECIPE, STAGE or STEP is to be chosen.
"""

import ast
import contextlib
import dataclasses
import functools
import io
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipelines.__main__ import COMMANDS
from pipelines.checkpoints import replay, trace_rows
from pipelines.cli import arguments
from pipelines.cli.words import take
from pipelines.cluster import kubernetes
from pipelines.engine.flags import parse, refuse_unknown
from pipelines.engine.inputs import REFERENCE
from pipelines.engine.registry import stage_names
from pipelines.engine.resources import Resources
from pipelines.engine.stage import load_stage
from pipelines.fit import command as fit
from pipelines.recipes import registry as recipes
from tests.programs.markdown import SPAN, blocks
from tests.programs.places import REPOSITORY

PLACEHOLDERS = {"NAME": "demo", "RECIPE": "demo", "STAGE": "train_model", "STEP": "collect"}
OWN_COMMANDS: dict[str, Any] = {
    "fit": fit.Command,
    "manifests": kubernetes.Command,
    "trace": trace_rows.Question,
    "replay": replay.Question,
}
"""Commands whose words are the fields of one dataclass."""
DRIVER_FLAGS = {"list": {"runs"}, "submit": {"address", "detach"}, "plan": {"prices"}, "account": {"prices"}}
"""Flags that a command takes beside those of a stage or recipe."""
ASSIGNMENT = re.compile(r"[A-Z_]+=\S*$")


def commands_in(text: str) -> Iterator[tuple[int, list[str]]]:
    """(line, words) of each command of a page: `make`, `python -m`, and the words after `python -m pipelines`."""
    for block in blocks(text):
        if block.kind == "code":
            texts = [(block.first + place, line) for place, line in enumerate(block.lines)]
        else:
            texts = [(block.first, span) for span in SPAN.findall(" ".join(line.strip() for line in block.lines))]
        for line, command in texts:
            if words := _command(command.partition("  #")[0].strip(), block.kind == "code"):
                yield line, words


def _command(text: str, in_code: bool) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError:
        return []
    while words and ASSIGNMENT.match(words[0]):
        words = words[1:]
    if words[:2] == ["ray", "job"] and "--" in words:
        words = words[words.index("--") + 1 :]
    if ">" in words:
        words = words[: words.index(">")]
    if words[:1] == ["make"] or words[:2] == ["python", "-m"]:
        return words
    if not in_code and len(words) > 1:
        if words[0] == "pipelines":
            return ["python", "-m", *words]
        if words[0] in COMMANDS and words[0] != "list":
            return ["python", "-m", "pipelines", *words]
        if words[0] in stage_names() and words[1].startswith("--"):
            return ["python", "-m", "pipelines", "run", *words, "..."]
    return []


@functools.cache
def problem(*words: str) -> str:
    """The mistake in a command; empty if there is none."""
    if not PLACEHOLDERS.keys().isdisjoint(words):
        words = (*(PLACEHOLDERS.get(word, word) for word in words), "...")
    if words[0] == "make":
        return _problem_of_make(words[1:])
    module, rest = words[2], words[3:]
    if module != "pipelines":
        return _problem_of_module(module, rest)
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            _read(list(rest))
    except (ValueError, SystemExit) as error:  # UserError is a ValueError
        return str(error) if isinstance(error, ValueError) else output.getvalue()
    return ""


def _problem_of_make(words: Sequence[str]) -> str:
    makefile = (REPOSITORY / "Makefile").read_text()
    for word in words:
        name, is_assignment, _ = word.partition("=")
        known = f"$({name})" in makefile if is_assignment else re.search(rf"^{re.escape(name)}:", makefile, re.M)
        if not known:
            return f"the Makefile has no {'variable' if is_assignment else 'target'} {name!r}"
    return ""


def _problem_of_module(module: str, words: Sequence[str]) -> str:
    """The mistake in a command of another module than `pipelines`: it must run, and its source must have the flags."""
    path = REPOSITORY / module.replace(".", "/")
    path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    if not path.exists() or "__main__" not in path.read_text():
        return f"there is no program {module}"
    strings = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
    for word in (word.partition("=")[0] for word in words if word != "..."):
        if word not in strings and word.removeprefix("--").replace("-", "_") not in _fields_in(path):
            return f"{module} knows no {word!r}"
    return ""


def _fields_in(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text()))
    return {node.target.id for node in nodes if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)}


def _read(words: list[str]) -> None:
    """Reads a line of `python -m pipelines`. Raises what the command itself would.

    A stage's line is read whole. Of a recipe's line only the flags are: tests/e2e/test_readme.py and
    test_laptop_to_pod.py read those of their pages, which takes seconds a line.
    """
    if not words:
        return
    name, *rest = words
    if name not in COMMANDS:
        raise ValueError(f"no command {name!r}")
    is_cut = rest[-1:] == ["..."] or (bool(rest) and rest[-1].startswith("--"))
    rest = [word for word in rest if word != "..."]
    if rest and name in OWN_COMMANDS:
        _read_own(name, rest, is_cut)
        return
    target = rest.pop(0) if rest and not rest[0].startswith("--") else ""
    whole = target in (*stage_names(), *recipes.names())
    if target and not whole and not REFERENCE.match(target):
        raise ValueError(f"no stage, recipe or run {target!r}")
    flags = flags_of(target) | DRIVER_FLAGS.get(name, set()) if whole else known_flags()
    refuse_unknown(rest, sorted(flags))
    if name in ("run", "plan") and target in stage_names() and not is_cut:
        arguments.parse_stage(load_stage(target), take(rest, "--config")[0])


def _read_own(name: str, words: list[str], is_cut: bool) -> None:
    kind = OWN_COMMANDS[name]
    place = words.index("--") if "--" in words else len(words)
    own, further = words[:place], words[place + 1 :]
    refuse_unknown(own, [entry.name for entry in dataclasses.fields(kind)])
    if is_cut:
        return
    command = parse(kind, own, program=name, description=None)
    if name == "fit":
        fit.request_of(command)
    if name == "manifests":  # tests/e2e/test_laptop_to_pod.py makes the objects
        refuse_unknown(further, sorted(flags_of(command.recipe)))


def flags_of(name: str) -> set[str]:
    """Every flag that `run NAME` takes, with underscores."""
    if name in recipes.names():
        steps = recipes.load(name).steps
        own = {f"{step.name}.{flag}" for step in steps for flag in arguments._nested(type(step.config), "")}
        own |= {"input", "only", *recipes.load(name).outside()}
    elif name in stage_names():
        stage = load_stage(name)
        own = {*stage.reads, *arguments._nested(stage.config, "")}
        own |= {"model"} if "model" in arguments._field_names(stage.config) else set()
    else:
        raise ValueError(f"no stage or recipe {name!r}")
    return own | {*arguments._nested(Resources, ""), "root", "config"}


@functools.cache
def known_flags() -> frozenset[str]:
    """Every flag that a command of ours takes, with underscores."""
    flags = {flag for names in DRIVER_FLAGS.values() for flag in names}
    for kind in OWN_COMMANDS.values():
        flags |= {entry.name for entry in dataclasses.fields(kind)}
    for name in (*stage_names(), *recipes.names()):
        flags |= flags_of(name)
    return frozenset(flags)
