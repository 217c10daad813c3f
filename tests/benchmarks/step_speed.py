"""Train steps against `transformers`: speed, share of the matmul peak, memory.

On a CPU, `transformers` has only eager attention for Gemma 2, whose scores are capped. Each side runs in its own
processes, in turns (tests/benchmarks/step_run.py), so that no side is slowed by memory that an earlier one left. Peak
memory is that of the whole process, libraries included.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from model import train_flops_per_token
from tests.benchmarks import step_run
from tests.programs.places import REPOSITORY

CASES = ((32_000, 4, 512), (256_000, 1, 2048))
SIDES = (("ours", "xla"), ("ours", "cpu"), ("transformers", "cpu"))
TURNS, STEPS = 2, 3


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table."""

    what: str
    ours: str
    rival: str
    ratio: str


def rows() -> Iterator[Row]:
    peak = matmul_peak()
    for vocab_size, count, length in CASES:
        runs: dict[tuple[str, str], list[dict[str, Any]]] = {side: [] for side in SIDES}
        for _ in range(TURNS):
            for side in SIDES:
                runs[side].append(_run(*side, vocab_size, count, length))
        rate = {
            side: count * length / statistics.median(second for run in of for second in run["seconds"])
            for side, of in runs.items()
        }
        memory = {side: max(run["peak_bytes"] for run in of) / 1e9 for side, of in runs.items()}
        theirs = SIDES[-1]
        flops = train_flops_per_token(step_run.config(vocab_size), length)
        what = f"d256 L4 V{vocab_size // 1000}k, {count} x {length}"
        for side in SIDES[:-1]:
            yield Row(
                what=f"train step, {what}, {side[1]}",
                ours=f"{rate[side]:,.0f} tok/s",
                rival=f"transformers: {rate[theirs]:,.0f} tok/s",
                ratio=f"{rate[side] / rate[theirs]:.2f}x",
            )
            yield Row(
                what=f"  its share of the fp32 matmul peak, {peak / 1e9:,.0f} GFLOP/s",
                ours=f"{rate[side] * flops / peak:.0%}",
                rival=f"transformers: {rate[theirs] * flops / peak:.0%}",
                ratio="",
            )
            yield Row(
                what="  its peak memory, whole process",
                ours=f"{memory[side]:.2f} GB",
                rival=f"transformers: {memory[theirs]:.2f} GB",
                ratio=f"{memory[side] / memory[theirs]:.2f}x",
            )


def matmul_peak(size: int = 2048, rounds: int = 12) -> float:
    """Operations a second of the fastest of some float32 products of square matrices on all cores."""
    left, right, out = torch.randn(size, size), torch.randn(size, size), torch.empty(size, size)
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        torch.mm(left, right, out=out)
        seconds.append(time.perf_counter() - began)
    return 2.0 * size**3 / min(seconds)


def _run(side: str, device: str, vocab_size: int, count: int, length: int) -> dict[str, Any]:
    words = ["-m", "tests.benchmarks.step_run", side, device, *map(str, (vocab_size, count, length, STEPS))]
    command = [sys.executable, *words]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}: {done.stderr[-500:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures
