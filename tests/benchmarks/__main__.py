"""python -m tests.benchmarks: speeds as ratios against a rival measured in the same run, on this machine.

Each pair is timed in turns (ours, rival, ours, ...), and the medians are compared. About three minutes on two cores.
"""

import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable

os.environ.setdefault("PJRT_DEVICE", "CPU")

from rich.console import Console
from rich.table import Table

from tests.benchmarks import data_speed, model_speed

ROUNDS = 5


def seconds(ours: Callable[[], object], rival: Callable[[], object]) -> tuple[float, float]:
    """Median seconds of each, after one call of each to warm up."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(ROUNDS + 1):
        for place, call in enumerate((ours, rival)):
            began = time.perf_counter()
            call()
            if number:
                times[place].append(time.perf_counter() - began)
    return statistics.median(times[0]), statistics.median(times[1])


def main() -> int:
    warnings.simplefilter("ignore")  # of the rivals
    console = Console(width=120)
    cores = os.cpu_count()
    table = Table(title=f"{platform.machine()}, {cores} cores, python {platform.python_version()}, median of {ROUNDS}")
    for name in ("what", "ours", "rival", "ours / rival"):
        table.add_column(name, justify="left" if name == "what" else "right")
    for benchmark in benchmarks():
        ours, rival = seconds(benchmark.ours, benchmark.rival)
        table.add_row(
            benchmark.what,
            f"{benchmark.amount / ours:,.0f} {benchmark.unit}/s",
            f"{benchmark.rival_name}: {benchmark.amount / rival:,.0f} {benchmark.unit}/s",
            f"{rival / ours:.2f}x",
        )
        console.print(f"{benchmark.what}: {rival / ours:.2f}x {benchmark.rival_name}")
    console.print(table)
    return 0


def benchmarks() -> Iterable[model_speed.Benchmark]:
    yield from model_speed.benchmarks()
    yield from data_speed.benchmarks()


if __name__ == "__main__":
    sys.exit(main())
