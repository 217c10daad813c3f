"""The cost of each test file: seconds, and CPU seconds of this process and of its descendants.

    make test                                    measured, printed beside the table of docs/testing.md, kept in .cache/
    python -m tests.programs.cost_by_file        writes what was kept into that table

The cost of a fixture of the whole session, such as Ray, counts for the file that used it first. The CPU seconds of a
process that outlives its parent count while it runs. No test fails by its time: the table names what grew, for people.
"""

import json
import os
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from tests.programs.places import REPOSITORY

TICKS = os.sysconf("SC_CLK_TCK")
KEPT = REPOSITORY / ".cache" / "test_costs.json"
PAGE = REPOSITORY / "docs" / "testing.md"
ROW = re.compile(r"^\| (\S+) \| ([\d.]+) \| ([\d.]+) \|$", re.M)
HEAD = "| file | seconds | CPU seconds |\n|---|--:|--:|\n"
LEAST = 1.0
"""smallest CPU seconds of a file with its own line; all other files share one line"""
OTHERS = "others"
GREW = 5.0
"""smallest growth that the last lines name, in CPU seconds over the committed table; it must also be a third"""
Costs = Mapping[str, tuple[float, float]]
"""file -> (seconds, CPU seconds)"""


def tree_cpu_seconds(root: int) -> float:
    """CPU seconds of a process, of its living descendants, and of ended processes that these have waited for."""
    seconds: dict[int, float] = {}
    children = defaultdict(list)
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            children[int(fields[1])].append(int(entry))
            seconds[int(entry)] = sum(map(int, fields[11:15])) / TICKS
    total, waiting = 0.0, [root]
    while waiting:
        process = waiting.pop()
        total += seconds.get(process, 0.0)
        waiting += children[process]
    return total


class Meter:
    """Charges the CPU seconds since the last look to the file that was running."""

    def __init__(self) -> None:
        self._costs: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._file = "collection"
        self._wall, self._cpu = time.monotonic(), tree_cpu_seconds(os.getpid())

    def enter(self, file: str) -> None:
        if file != self._file:
            wall, cpu = time.monotonic(), tree_cpu_seconds(os.getpid())
            spent = self._costs[self._file]
            spent[0] += wall - self._wall
            spent[1] += max(0.0, cpu - self._cpu)
            self._file, self._wall, self._cpu = file, wall, cpu

    def costs(self) -> dict[str, list[float]]:
        self.enter("")
        return dict(self._costs)


def added(parts: Iterable[Mapping[str, Iterable[float]]]) -> dict[str, tuple[float, float]]:
    """The costs of several processes by file, with small files together."""
    total: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for part in parts:
        for file, (wall, cpu) in part.items():
            total[file][0] += wall
            total[file][1] += cpu
    result: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for file, (wall, cpu) in total.items():
        name = file if cpu >= LEAST else OTHERS
        result[name][0] += wall
        result[name][1] += cpu
    return {file: (round(wall, 1), round(cpu, 1)) for file, (wall, cpu) in result.items()}


def committed() -> dict[str, tuple[float, float]]:
    """The table of docs/testing.md."""
    return {file: (float(wall), float(cpu)) for file, wall, cpu in ROW.findall(PAGE.read_text())}


def lines(costs: Costs, before: Costs) -> Iterator[str]:
    """The costliest files with their earlier costs, the sums, and the files whose cost grew."""
    by_cost = sorted(costs, key=lambda file: -costs[file][1])
    yield f"{'CPU seconds':>12}  {'committed':>10}  file"
    for file in by_cost[:25]:
        yield f"{costs[file][1]:12.1f}  {before[file][1] if file in before else '-':>10}  {file}"
    yield f"{_cpu(costs):12.1f}  {_cpu(before):10.1f}  all {len(costs)} lines of docs/testing.md"
    grown = [(file, costs[file][1] - before.get(file, (0.0, 0.0))[1]) for file in by_cost]
    grown = [(file, more) for file, more in grown if more > GREW and more > costs[file][1] / 4]
    yield "grew: " + (", ".join(f"{file} by {more:.0f} s" for file, more in grown) or "nothing")


def _cpu(costs: Costs) -> float:
    return sum(cpu for _, cpu in costs.values())


def keep(costs: Costs) -> None:
    KEPT.parent.mkdir(exist_ok=True)
    KEPT.write_text(json.dumps(costs, indent=1, sort_keys=True) + "\n")


def main() -> None:
    costs: Costs = {file: (wall, cpu) for file, (wall, cpu) in json.loads(KEPT.read_text()).items()}
    rows = [f"| {file} | {costs[file][0]} | {costs[file][1]} |\n" for file in sorted(costs, key=lambda f: -costs[f][1])]
    page = PAGE.read_text()
    before, rest = page.split(HEAD)
    after = ROW.sub("", rest).lstrip("\n")
    PAGE.write_text(f"{before}{HEAD}{''.join(rows)}{chr(10) + after if after else ''}")


if __name__ == "__main__":
    main()
