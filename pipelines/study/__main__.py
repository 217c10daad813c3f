"""python -m pipelines.study run [--full]      trains the unfinished arms, then writes the page
python -m pipelines.study gradients         angles between each estimator's gradient and full distillation's
python -m pipelines.study report            writes docs/distillation.md and its plots, from the metrics alone

Each command takes [--size standard|short|tiny] [--root DIR] [--docs DIR]. A stopped run is resumed by the same line:
the text, the teacher and the finished arms are kept. `--full` adds ablations of `short` students: size, heads, depth,
window, temperature.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

# Threads that wait for each other sleep instead of spinning: other programs may need the core. Before torch starts.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from data import storage
from pipelines.engine.errors import run_command
from pipelines.study import sizes as all_sizes
from pipelines.study.ablations import run_ablations
from pipelines.study.arms import arms, with_tails
from pipelines.study.gradients import measure_gradients
from pipelines.study.lockstep import run_trials, trials
from pipelines.study.report import RUN, TEACHER_SCORES, write_report
from pipelines.study.scores import final_scores
from pipelines.study.sizes import Sizes, for_ablations
from pipelines.study.storage_cost import measure_costs
from pipelines.study.teacher import load_teacher
from pipelines.study.text import load_text

SIZES = {"standard": all_sizes.standard, "short": all_sizes.short, "tiny": all_sizes.tiny}


def main(words: Sequence[str]) -> int:
    """Runs one command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "gradients", "report"))
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--size", choices=tuple(SIZES), default="standard")
    parser.add_argument("--root", default="runs")
    parser.add_argument("--docs", help="directory of the page; default: docs, for `tiny` the study's own directory")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args(words)
    sizes = SIZES[given.size]()
    if given.command == "run":
        _run(sizes, given.root, given.threads, given.full)
    if given.command != "report":
        measure_gradients(sizes, given.root, print)
    docs = given.docs or (sizes.directory(given.root) if given.size == "tiny" else "docs")
    command = "make study" if given.size == "standard" else f"python -m pipelines.study run --size {given.size}"
    print("written:", *write_report(sizes, given.root, docs, command))
    return 0


def _run(sizes: Sizes, root: str, threads: int, full: bool) -> None:
    directory = sizes.directory(root)
    clock = Clock(storage.join(directory, RUN), threads)
    tell = clock.tell
    text = load_text(sizes, root)
    clock.part = "teacher_seconds"
    teacher = load_teacher(sizes, text, root, tell, threads)
    tell("the teacher is trained")
    clock.part = "seconds"
    scores_uri = storage.join(directory, TEACHER_SCORES)
    if not storage.exists(scores_uri):
        with ThreadPoolExecutor(1) as pool:
            (scores,) = final_scores([teacher], teacher, text.heldout, sizes, pool)
        tell(f"teacher: held-out loss {scores['loss']:.3f}")
        storage.write_bytes(scores_uri, json.dumps(scores).encode())
    costs = measure_costs((*arms(sizes.alpha), *with_tails()), sizes, text, teacher, directory)
    tell("bytes a token: " + ", ".join(f"{name} {cost.bytes:.1f}" for name, cost in costs.items()))
    for chosen in (arms(sizes.alpha), with_tails()):
        run_trials(trials(sizes, chosen), sizes, text, teacher, directory, tell, threads)
    tell("the arms are done")
    if full:
        clock.part = "ablation_seconds"
        run_ablations(for_ablations(sizes), text, teacher, root, tell, threads)
        tell("the ablations are done")


class Clock:
    """Prints the progress of a run, and keeps in a file the time of all runs together, stopped runs included."""

    def __init__(self, uri: str, threads: int) -> None:
        self.uri, self.began = uri, time.monotonic()
        self.reported_at = self.began
        self.part = "seconds"
        """name of the total that the time is added to"""
        self.run: dict[str, Any] = json.loads(storage.read_bytes(uri)) if storage.exists(uri) else {"load": 0.0}
        self.run |= {
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, no accelerator",
            "python": platform.python_version(),
            "threads": threads,
        }

    def tell(self, message: str) -> None:
        now = time.monotonic()
        print(f"{now - self.began:7.0f} s  {message}", flush=True)
        self.run[self.part] = self.run.get(self.part, 0.0) + now - self.reported_at
        self.run["load"] = max(self.run["load"], os.getloadavg()[1])
        self.reported_at = now
        storage.write_bytes(self.uri, json.dumps(self.run).encode())


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
