"""python -m tests.programs.fuzz_values [--keep] [SEED]: hostile values in Configs, and hostile Hugging Face folders.

    flags      each field of each stage's Config x hostile words, through the command line's parser and `plan`
    JSON       the same fields x hostile JSON values, in the file of --config
    folders    fuzz_folders.py, through import_model in this process

Fields come from the dataclasses of the stages, and the other fields of a line from the runs of fuzz_runs.EXAMPLES, so a
later stage or field is tried as it comes. What a try ends with:

    refused      exit code 2 and one line, which names the field
    accepted     exit code 0
    NAMELESS     several lines, another exit code, or a line that does not name the field
    TRACEBACK    an error that is no user's error

A seed draws which values a field gets (all of them over the seeds).
"""

import dataclasses
import json
import random
import sys
import tempfile
import types
import typing
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.engine.runner import CONFIG_NAME
from pipelines.engine.task import Task
from tests.programs import fuzz_folders, fuzz_page, fuzz_runs, here

REFUSED, ACCEPTED, NAMELESS, TRACEBACK = OUTCOMES = ("refused", "accepted", "NAMELESS", "TRACEBACK")
FAULTS = (NAMELESS, TRACEBACK)
VALUES_A_FIELD = 8
"""values that a field gets with one seed, of each kind"""

WORDS = (
    "", " ", "-1", "0", "1", "-0.0", "0.5", "1e400", "-1e400", "1e-400", "nan", "inf", "-inf", "1e308", "1e23",
    "99999999999999999999999", "9223372036854775808", "9" * 5000, "-" + "9" * 5000, "x", "x" * 100_000, "None", "True",
    "[]", "{}", "null", "1_000", "0x10", "1e3", "1,5", "\u0663", "\u00b2", "\u202e\u00e9", "\x1b[31m", "\udcff",
    "a\nb", "a\tb", "../..", "/", "*", "[", "0:corpus=1e", "0:corpus=nan", "\U0001f600" * 1000,
)  # fmt: skip
"""words that a flag gets"""
JSON_VALUES: tuple[Any, ...] = (
    None, True, False, "", " ", "x", "1", "nan", "x" * 100_000, "\ud800", "\x1b[31m", -1, 0, 1, 2.5, -0.0, 1e308, 1e23,
    float("nan"), float("inf"), float("-inf"), 2**63, -(2**63) - 1, 10**40, [], [[]], [None], [1], ["x"],
    [float("nan")], {}, {"x": 1}, {"": None}, [["x"] * 1000],
)  # fmt: skip
"""values that a field gets in a config file"""


@dataclasses.dataclass(frozen=True)
class Tried:
    """How a command line that holds a hostile value ended."""

    outcome: str
    line: str


def fields_of(kind: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every field of a Config, at any depth, and of each dataclass in it."""
    hints = typing.get_type_hints(kind)
    for entry in dataclasses.fields(kind):
        hint = hints[entry.name]
        options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        inner = next((option for option in options if dataclasses.is_dataclass(option)), None)
        yield (*above, entry.name)
        if inner is not None:
            yield from fields_of(inner, (*above, entry.name))


def lines(task: Task, seed: int, folder: Path) -> Iterator[tuple[str, tuple[str, ...], list[str]]]:
    """(what is changed, path of the field, command line) for the fields of a task's Config."""
    saved = Path(task.directory, CONFIG_NAME)
    plan = ["plan", task.stage.name, "--config"]
    for path in fields_of(task.stage.config):
        draw = random.Random(f"{seed} {task.stage.name} {path}")
        for word in draw.sample(WORDS, VALUES_A_FIELD):
            flag = "--" + ".".join(path).replace("_", "-")
            yield "flag of a Config", path, [*plan, str(saved), flag, word]
        for value in draw.sample(JSON_VALUES, VALUES_A_FIELD):
            file = folder / "given.json"
            file.write_text(json.dumps(with_value(json.loads(saved.read_bytes()), ("config", *path), value)))
            yield "field of a config file", path, [*plan, str(file)]


def with_value(document: Any, path: Sequence[str], value: Any) -> Any:
    """The saved config with another value at `path`, without its seal, as somebody would edit it."""
    changed = {name: entry for name, entry in document.items() if name != "self_sha256"}
    place = changed
    for name in path[:-1]:
        inner = place.get(name)
        place[name] = dict(inner) if isinstance(inner, dict) else {}
        place = place[name]
    place[path[-1]] = value
    return changed


def tried(words: list[str], names: Sequence[str]) -> Tried:
    """How a line ends. `names`: one of them has to be in the error."""
    try:
        done = here.done(words)
    except Exception as error:
        return Tried(TRACEBACK, f"{error!r:.300}")
    if done.returncode == 0:
        return Tried(ACCEPTED, "")
    errors = done.stderr.splitlines()
    named = len(errors) == 1 and done.returncode == 2 and any(name and name in errors[0] for name in names)
    return Tried(REFUSED if named else NAMELESS, f"{done.returncode} {done.stderr:.300}")


def attack(tasks: Mapping[str, Task], seed: int, folder: Path) -> dict[str, Counter[str]]:
    """What is changed -> number of tries by outcome, for the Configs of the tasks."""
    counts: dict[str, Counter[str]] = {"flag of a Config": Counter(), "field of a config file": Counter()}
    stages = {task.stage.name: task for task in tasks.values()}
    for task in stages.values():
        for what, path, words in lines(task, seed, folder):
            result = tried(words, names_of(path, words[-1]))
            counts[what][result.outcome] += 1
            if result.outcome in FAULTS:
                print(f"{result.outcome}: {what}: {' '.join(words[-2:])!r:.200}: {path}: {result.line}", flush=True)
    return counts


def names_of(path: tuple[str, ...], word: str) -> tuple[str, ...]:
    """What names a field in an error: its own name, the dataclass that it is in, or the word (which is no flag)."""
    inside = (f"{path[0]}.", f"'{path[0]}'", f"--{path[0]}") if len(path) > 1 else ()
    return (path[-1], path[-1].replace("_", "-"), *inside, f"got {word!r:.50}")


def main(words: list[str]) -> int:
    seed = int(next((word for word in words if word.isdigit()), 0))
    with tempfile.TemporaryDirectory() as folder:
        tasks = fuzz_runs.make(Path(folder) / "runs", Path(folder) / "1", 1)
        counts = attack(tasks, seed, Path(folder))
        counts |= fuzz_folders.attack(Path(folder), tasks, seed)
    print(*fuzz_page.table_of_values(counts), sep="\n")
    if "--keep" in words:
        fuzz_page.keep("values", str(seed), counts)
    return int(any(counted[fault] for counted in counts.values() for fault in FAULTS))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
