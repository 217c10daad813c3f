"""python -m tests.programs.fuzz_page > docs/fuzzing.md: the page of both fuzzers, from the counts in docs/fuzzing.json.

`python -m tests.programs.fuzz --keep` and `python -m tests.programs.fuzz_values --keep` write that file.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tests.programs.markdown import rewrapped
from tests.programs.places import REPOSITORY

FIGURES = REPOSITORY / "docs" / "fuzzing.json"
CHANGES_OF_FILES = (
    "flip", "truncate", "zero", "missing", "swap with a sibling", "swap with another run",
    "older version",
)  # fmt: skip
"""order of the table"""
Counts = Mapping[str, Mapping[str, int]]
"""what was changed -> outcome -> number"""


def load() -> dict[str, Any]:
    return json.loads(FIGURES.read_text()) if FIGURES.exists() else {}


def keep(name: str, part: str, counts: Mapping[str, Counter[str]]) -> None:
    """Keeps the counts of a part of a fuzzer in docs/fuzzing.json; the other parts stay."""
    figures = load()
    figures.setdefault(name, {})[part] = {change: dict(counted) for change, counted in counts.items() if counted}
    FIGURES.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")


def summed(parts: Mapping[str, Counts], changes: Iterable[str] = ()) -> dict[str, Counter[str]]:
    """What was changed -> number by outcome, over all parts. `changes` come first, in this order."""
    sums = {change: Counter[str]() for change in changes}
    for counts in parts.values():
        for change, counted in counts.items():
            sums.setdefault(change, Counter()).update(counted)
    return sums


def table_of_files(counts: Counts) -> list[str]:
    heads = ("readings", "named", "the same", "exempt", "nameless", "silent")
    return _table("change", heads, counts, ("named", "same", "exempt", "NAMELESS", "SILENT"))


def table_of_values(counts: Counts) -> list[str]:
    heads = ("tries", "refused in one line", "accepted", "nameless", "traceback")
    return _table("what was changed", heads, counts, ("refused", "accepted", "NAMELESS", "TRACEBACK"))


def _table(first: str, heads: tuple[str, ...], counts: Counts, outcomes: tuple[str, ...]) -> list[str]:
    lines = [f"| {first} | {' | '.join(heads)} |", f"|---|{'--:|' * len(heads)}"]
    total: Counter[str] = Counter()
    for change, counted in counts.items():
        total.update(counted)
        lines.append(_row(change, counted, outcomes))
    return [*lines, _row("all", total, outcomes)]


def _row(name: str, counted: Mapping[str, int], outcomes: tuple[str, ...]) -> str:
    figures = (sum(counted.values()), *(counted.get(outcome, 0) for outcome in outcomes))
    return f"| {name} | {' | '.join(f'{figure:,}' for figure in figures)} |"


def page() -> str:
    """The text of docs/fuzzing.md."""
    return rewrapped("\n".join(lines()))


def lines() -> Iterator[str]:
    figures = load()
    yield "# Damaged files and hostile values"
    yield ""
    yield (
        "Two programs of the tests try what nobody writes a test for. Both are seeded, and `make chaos` runs them with "
        "several seeds. A part that has passed on the code as it is committed is not repeated."
    )
    yield ""
    yield (
        "Printed by `python -m tests.programs.fuzz_page` from [fuzzing.json](fuzzing.json). `python -m "
        "tests.programs.fuzz --keep` and `python -m tests.programs.fuzz_values --keep` write that file."
    )
    yield ""
    yield "## Damaged files"
    yield ""
    yield (
        "One file of each kind of each run is changed, and everything that reads the run is run: the stages that take "
        "it as an input, the stage itself, and `list`, `status`, `show`, `plan`, `account`, `trace` and `replay`. "
        "There is a run of every stage. The files are those that a manifest lists, the manifest, the saved config and "
        "the log beside it, and the file of the recipe's last run."
    )
    yield ""
    steps = (step.replace("_", " ") for step in sorted(figures.get("files", {})))
    yield f"The counts are of these steps of the fuzzed recipe: {', '.join(steps)}."
    yield ""
    yield from table_of_files(summed(figures.get("files", {}), CHANGES_OF_FILES))
    yield ""
    yield (
        "- **named**: the error, or a line that speaks of damage or of an unfinished run, names the file or its run."
    )
    yield (
        "- **the same**: the dataset, or the exit code and every printed line, are those of the undisturbed run. Most "
        "readers do not read most files."
    )
    yield (
        "- **exempt**: the file is as good as the newest one. It is the log of the same run on another day (times, "
        "speeds, versions), which no manifest lists, or an earlier run of the recipe. Without that file, a recipe has "
        "not run. `show` prints the manifest of the same run in another set-up as it is; who opens the files that it "
        "lists finds that they are others."
    )
    yield "- **nameless**: an error that names no file of the damaged run, or a traceback."
    yield "- **silent**: a dataset, an exit code or a printed figure that differs without a word."
    yield ""
    yield "## Hostile values"
    yield ""
    yield (
        "Every field of every stage's Config gets values that are huge, negative, not finite, empty, of a wrong type, "
        "very long, or not text. They are given as a flag of `plan`, and as JSON in the file of `--config`. "
        "Directories of Hugging Face get wrong keys and values in config.json, wrong weight maps, tensors of other "
        "types, shapes and values, and damaged tokenizers, and are imported."
    )
    yield ""
    yield from table_of_values(summed(figures.get("values", {})))
    yield ""
    yield "- **refused in one line**: exit code 2, and the line names the field, the file, the key or the tensor."
    yield (
        "- **accepted**: the value is allowed, or the directory still holds a model whose tensors have the sizes of "
        "its config.json."
    )
    yield "- **nameless**: an error of several lines, or one that does not name what was wrong."
    yield "- **traceback**: an error that is no user's error."


if __name__ == "__main__":
    print(page(), end="")
