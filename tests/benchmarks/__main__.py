"""python -m tests.benchmarks [PART ...]: speeds as ratios against a rival measured in the same run.

    step gpu model data                             training, decoding, feeds: timed in turns, medians compared
    device                                          the basis of `--device auto` without an accelerator: cpu and xla
    rows                                            a million packed rows: traced, sought, loaded, waited for
    tokenize dedup filter memory manifests cost     the data plane on 1 GB of text (corpus.py, made at the first call)
    checks                                          the cost of checking what is read against its manifest or hash
    similar                                         what comparing candidates costs deduplicate_text
    extraction                                      articles of web pages: recall, navigation, speed (web_pages.py)
    logits audit distill                            the cache of logits: size, speed, forgeries; the step from it

Without a PART, all parts run: about half an hour on two cores. The train step on a GPU is
tests/benchmarks/train_step.py.
"""

import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence

os.environ.setdefault("PJRT_DEVICE", "CPU")

import torch
from rich.console import Console
from rich.table import Table

from tests.benchmarks import (
    audit_table,
    checked_reads,
    corpus,
    cost,
    data_speed,
    dedup_speed,
    device_rule,
    distill_speed,
    extraction,
    logits_cost,
    manifest_size,
    memory,
    million_rows,
    model_speed,
    similar,
    step_speed,
    tokenize_speed,
    train_step,
)

ROUNDS = 5


def seconds(ours: Callable[[], object], rival: Callable[[], object]) -> tuple[float, float]:
    """Median seconds of each function, after one call of each to warm up."""
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
    for row in rows(sys.argv[1:] or list(PARTS)):
        table.add_row(row.what, row.ours, row.rival, row.ratio)
        console.print(f"{row.what}: {row.ours}, {row.rival} {row.ratio}")
    console.print(table)
    return 0


def rows(parts: Sequence[str]) -> Iterator[step_speed.Row]:
    """Raises ValueError for a part that is not there."""
    for part in parts:
        if part not in PARTS:
            raise ValueError(f"no part {part!r}; there are {', '.join(PARTS)}")
        yield from PARTS[part]()


def timed(benchmarks: Iterable[model_speed.Benchmark]) -> Iterator[step_speed.Row]:
    for benchmark in benchmarks:
        ours, rival = seconds(benchmark.ours, benchmark.rival)
        yield step_speed.Row(
            what=benchmark.what,
            ours=f"{benchmark.amount / ours:,.0f} {benchmark.unit}/s",
            rival=f"{benchmark.rival_name}: {benchmark.amount / rival:,.0f} {benchmark.unit}/s",
            ratio=f"{rival / ours:.2f}x",
        )


def with_corpus(part: Callable[[], Iterator[step_speed.Row]]) -> Iterator[step_speed.Row]:
    """The part's rows, or one row that says what the corpus lacks."""
    try:
        yield from part()
    except corpus.MissingError as missing:
        yield step_speed.Row(what="on a corpus of 1 GB", ours="not run", rival=str(missing), ratio="")


def on_a_gpu() -> Iterator[step_speed.Row]:
    if not torch.cuda.is_available():
        yield step_speed.Row(what="train step, 2B, 8192 tokens, a GPU", ours="not run", rival="no GPU here", ratio="")
        return
    yield from train_step.rows()


PARTS: dict[str, Callable[[], Iterator[step_speed.Row]]] = {
    "step": step_speed.rows,
    "device": device_rule.rows,
    "gpu": on_a_gpu,
    "model": lambda: timed(model_speed.benchmarks()),
    "data": lambda: timed(data_speed.benchmarks()),
    "rows": million_rows.rows,
    "tokenize": lambda: with_corpus(tokenize_speed.rows),
    "dedup": lambda: with_corpus(dedup_speed.dedup_rows),
    "checks": checked_reads.rows,
    "similar": similar.rows,
    "extraction": lambda: with_corpus(extraction.rows),
    "filter": lambda: with_corpus(dedup_speed.filter_rows),
    "memory": lambda: with_corpus(memory.rows),
    "manifests": manifest_size.rows,
    "cost": cost.rows,
    "logits": logits_cost.rows,
    "audit": audit_table.rows,
    "distill": lambda: timed(distill_speed.benchmarks()),
}


if __name__ == "__main__":
    sys.exit(main())
