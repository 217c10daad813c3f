"""The basis of `--device auto` without an accelerator: training steps of several sizes on `cpu` and on `xla`.

    python -m tests.benchmarks device

Each side runs in its own processes, in turns. "First step" is the time from the start of the process to the end of its
first step, with imports and, on xla, compilation.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np

from model import Gemma2Config
from pipelines.recipes.sizes import shape
from tests.benchmarks.step_speed import Row
from tests.programs.places import REPOSITORY

CASES = (  # vocabulary, d_model, layers, heads, ffw_dim, window; rows, length
    ("smoke's teacher", (1024, 64, 2, 2, 128, 32), (8, 64)),
    ("demo's student", (8192, 96, 2, 4, 288, 64), (16, 128)),
    ("demo's teacher", (8192, 192, 4, 4, 576, 64), (16, 128)),
    ("d256 L4 V32k", (32_000, 256, 4, 4, 1024, 256), (4, 512)),
    ("d512 L8 V32k", (32_000, 512, 8, 8, 2048, 512), (1, 1024)),
)
DEVICES = ("cpu", "xla")
TURNS, STEPS = 2, 4


def rows() -> Iterator[Row]:
    for number, (name, size, (count, length)) in enumerate(CASES):
        seconds: dict[str, list[float]] = {device: [] for device in DEVICES}
        first: dict[str, list[float]] = {device: [] for device in DEVICES}
        for _ in range(TURNS):
            for device in DEVICES:
                began = time.time()
                run = _run(number, device)
                first[device].append(run["first_step_ended"] - began)
                seconds[device] += run["seconds"]
        rate = {device: count * length / statistics.median(seconds[device]) for device in DEVICES}
        started = {device: statistics.median(first[device]) for device in DEVICES}
        config = _config(size)
        yield Row(
            what=f"train step on cpu, {name}: d{config.d_model} L{config.layers}, {count} x {length}",
            ours=f"{rate['cpu']:,.0f} tok/s, first step after {started['cpu']:.0f} s",
            rival=f"xla: {rate['xla']:,.0f} tok/s, {started['xla']:.0f} s",
            ratio=f"{rate['cpu'] / rate['xla']:.2f}x",
        )


def _config(size: tuple[int, ...]) -> Gemma2Config:
    vocab_size, d_model, layers, heads, ffw_dim, window = size
    return shape(vocab_size, d_model=d_model, layers=layers, heads=heads, ffw_dim=ffw_dim, window=window)


def _run(case: int, device: str) -> dict[str, list[float] | float]:
    words = ["-m", "tests.benchmarks.device_rule", str(case), device]
    done = subprocess.run([sys.executable, *words], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}: {done.stderr[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(case: str, device: str) -> None:
    from tests.benchmarks.step_run import our_step
    from training.backends.make import make_backend
    from training.setup import Setup

    _, size, shape_of_rows = CASES[int(case)]
    config = _config(size)
    tokens = np.random.default_rng(0).integers(500, config.vocab_size, shape_of_rows, dtype=np.int32)
    step = our_step(config, tokens, make_backend(Setup(device=device)))  # type: ignore[arg-type]
    step()
    ended, seconds = time.time(), []
    step()  # xla compiles once more: the moments are there
    for _ in range(STEPS):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    print(json.dumps({"first_step_ended": ended, "seconds": seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
