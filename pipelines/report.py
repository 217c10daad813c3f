"""The report of a recipe's run."""

from collections.abc import Mapping

from pipelines.runner import Task


def write(name: str, tasks: Mapping[str, Task], root: str) -> None:
    """Prints the terminal table and writes report.html."""
