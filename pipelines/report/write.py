"""The report of a recipe's run: tables on the terminal and ROOT/<recipe>/report.html, from the same figures.

Both are functions of manifests, `_RUN.json` and listed shards. A page that was made from the same files is kept.
"""

import hashlib
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from data import storage
from data.manifest import MANIFEST_NAME, RUN_NAME
from pipelines.engine.printed import print_line, unwrapped, visible
from pipelines.engine.task import Task
from pipelines.report.figures import Figures, read_figures
from pipelines.report.page import page
from pipelines.report.tables import (
    Table,
    cache_table,
    headline,
    models_table,
    rejects_table,
    stages_table,
    times_table,
)

REPORT_NAME = "report.html"
PIPED_WIDTH = 120
"""number of columns if the output is no terminal"""


def write(name: str, tasks: Mapping[str, Task], root: str) -> str | None:
    """Prints the tables and writes the page; returns its URI, or None if no step has finished."""
    figures = read_figures(name, tasks)
    if not figures.steps:
        return None
    print_report(figures)
    for step, run in figures.runs.items():
        if not run:
            print_line(f"no log: {tasks[step].directory} has no {RUN_NAME}, so the time of {step} is not known")
    if missing := [step for step in tasks if step not in figures.runs]:
        print_line(f"not finished: {', '.join(missing)}")
    uri = storage.join(root, name, REPORT_NAME)
    origin = _origin(name, tasks)
    if not _made_from(uri, origin):
        storage.write_bytes(uri, page(figures, origin).encode())
    print(f"report: {uri}", flush=True)
    return uri


def print_report(figures: Figures) -> None:
    """Prints the tables to stdout: with colours and the terminal's width on a terminal, otherwise as plain text."""
    console = Console(file=unwrapped(sys.stdout), markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    console.print()
    for table in (_steps(figures), rejects_table(figures), cache_table(figures)):
        _print_table(console, table)
    for completion in figures.completions:
        heading = visible(f"{completion.model} continues {completion.prompt!r} with")
        console.print(Text(heading, style="bold"), soft_wrap=True)
        console.print(Text(textwrap.indent(visible(completion.continuation), "  ")), soft_wrap=True)
        console.print()
    _print_table(console, models_table(figures))  # last, because readers look for it first
    for sentence in headline(figures):
        console.print(Text(visible(sentence), style="bold"), soft_wrap=True)


def _steps(figures: Figures) -> Table:
    """The tables of amounts and times in one table, because a terminal is wide."""
    amounts, times = stages_table(figures), times_table(figures)
    rows = [(*amount[:4], *time[1:3], amount[4]) for amount, time in zip(amounts.rows, times.rows, strict=False)]
    name, *total = times.rows[-1]
    return Table(
        title="Steps",
        columns=(*amounts.columns[:4], *times.columns[1:3], amounts.columns[4]),
        rows=(*rows, (name, "", "", "", *total[:2], "")),
    )


def _print_table(console: Console, table: Table) -> None:
    if not table.rows:
        return
    drawn = RichTable(
        title=table.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1)
    )
    for name in table.columns:
        drawn.add_column(
            Text(name.removeprefix(">")), justify="right" if name.startswith(">") else "left", overflow="fold"
        )
    for row in table.rows:
        drawn.add_row(*(Text(visible(cell)) for cell in row))
    console.print(drawn)


def _origin(name: str, tasks: Mapping[str, Task]) -> str:
    """sha256 over the manifests and logs of the runs, and over the code that reports on them."""
    digest = hashlib.sha256(name.encode())
    for step, task in tasks.items():
        digest.update(f"\n{step} {task.fingerprint}\n".encode())
        for file in (MANIFEST_NAME, RUN_NAME):
            try:
                digest.update(storage.read_bytes(storage.join(task.directory, file)))
            except FileNotFoundError:
                digest.update(b"none")
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _made_from(uri: str, origin: str) -> bool:
    try:
        return f'content="{origin}"'.encode() in storage.read_bytes(uri)
    except FileNotFoundError:
        return False
