"""Planted faults against `audit_logits`: how many of TRIALS forged caches it sees, and how many honest ones it passes.

All hashes of a forgery are correct (tests/programs/forgeries.py). The columns on the right count by kind of check: the
cache's own statements, drawing again on the same device, and the statistics that any device can take.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.step_speed import Row
from tests.programs.cached_runs import Runs, make_runs
from tests.programs.forgeries import FAULTS, checks, forged, kinds_that_fail

TRIALS = 20
ESTIMATORS = {"sample N=50": {}, "topk K=12": {"estimator": "topk", "top": 12}}


def rows() -> Iterator[Row]:
    """A line for each fault and estimator. Each trial has its own draws and its own sample."""
    with tempfile.TemporaryDirectory() as folder:
        runs = make_runs(Path(folder))
        for estimator, config in ESTIMATORS.items():
            caches = [runs.cache(**config, seed=trial) for trial in range(TRIALS)]
            passed = sum(not kinds_that_fail(checks(runs, cache, seed=trial)) for trial, cache in enumerate(caches))
            yield Row(what=f"{estimator}: honest", ours=f"{passed} of {TRIALS} pass", rival="", ratio="")
            for fault in FAULTS:
                yield _seen(runs, caches, fault, estimator, Path(folder))


def _seen(runs: Runs, caches: list[str], fault: str, estimator: str, folder: Path) -> Row:
    seen = []
    for trial, cache in enumerate(caches):
        copy = folder / estimator / fault / str(trial)
        seen.append(kinds_that_fail(checks(runs, forged(fault, runs, cache, copy, trial), seed=trial)))
    kinds = {kind: sum(kind in failed for failed in seen) for kind in ("hashes", "again", "numbers")}
    return Row(
        what=f"{estimator}: {fault}",
        ours=f"{sum(map(bool, seen))} of {TRIALS} caught",
        rival=f"hashes {kinds['hashes']}, drawn again {kinds['again']}, statistics {kinds['numbers']}",
        ratio="",
    )
