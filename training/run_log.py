"""What a run tells while it runs, with clock times: JSON lines first, then TensorBoard, a line of progress, an account.

    loop -> Meter (seconds by cause) -> MetricsLog -> LOGS/metrics-<first step>-<begin>.jsonl [+ event files]

One line a step: loss, tokens/s, MFU, wait for data, gradient norm, memory. One `summary` line at every checkpoint and
at the end: percentiles of steps, and where the time went. Times are not in the tables that a manifest lists (METRICS):
those are a function of config, inputs and set-up.

Goodput is the share of the time since the process began to train that went into steps that count: not into starting,
compiling, waiting for data, saving, or steps that a kill made the run do again. On XLA the host runs ahead of the
device, so a step's seconds there are those between two readings of values, divided by the steps between them.
"""

import json
import math
import os
import resource
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data import storage
from model.flops import train_flops_per_token
from training.config import TrainJob

PERCENTILES = (50, 95, 99)
WINDOW_STEPS = 500
"""steps that percentiles look back"""
CAUSES = ("start", "compile", "data_wait", "save", "repeated")
"""what takes time from steps that count"""


class Meter:
    """Seconds by cause, and of each step."""

    def __init__(self) -> None:
        self.began = self._mark = time.perf_counter()
        self.seconds = dict.fromkeys(CAUSES, 0.0)
        self.data_waits: list[float] = []
        self._steps: list[float] = []
        self._last = self.began

    @contextmanager
    def spent(self, cause: str) -> Iterator[None]:
        """The block's time has this cause; it is no part of a step's seconds."""
        began = time.perf_counter()
        try:
            yield
        finally:
            taken = time.perf_counter() - began
            self.seconds[cause] += taken
            self._last += taken  # out of the step that it lies in
            if cause == "data_wait":
                self.data_waits.append(taken)

    def step_ended(self) -> None:
        now = time.perf_counter()
        self._steps.append(now - self._last)
        self._last = now

    def take_steps(self, asynchronous: bool) -> tuple[list[float], list[float]]:
        """(seconds, wait for data) of the steps since the last time, whose values have just been read."""
        now = time.perf_counter()
        if self._steps:  # reading the values waited for the last of them
            self._steps[-1] += now - self._last
        self._last = now
        steps, waits = self._steps, self.data_waits[: len(self._steps)]
        self._steps, self.data_waits = [], self.data_waits[len(steps) :]
        return ([sum(steps) / len(steps)] * len(steps) if asynchronous and steps else steps), waits

    def account(self) -> dict[str, float]:
        """Seconds in all, by cause, and the share that is left for steps that count."""
        total = time.perf_counter() - self.began
        lost = sum(self.seconds.values())
        return {"total_seconds": total, **{f"{name}_seconds": value for name, value in self.seconds.items()}} | {
            "goodput": max(0.0, total - lost) / total if total else 0.0
        }


class MetricsLog:
    """Writes the lines; only counts where the job names no directory, and in all workers but the first."""

    def __init__(self, job: TrainJob, meter: Meter, first_step: int, device: str, rank: int) -> None:
        self.job, self.meter, self.asynchronous = job, meter, device == "xla"
        self.summary: dict[str, Any] = {}
        self._uri = job.logs_uri if rank == 0 else None
        self._flops = train_flops_per_token(job.config.model, job.sequence_length)
        self._peak = peak_flops_per_second(device) * job.workers if self._uri is not None else math.nan
        self._recent: deque[float] = deque(maxlen=WINDOW_STEPS)
        self._waits: deque[float] = deque(maxlen=WINDOW_STEPS)
        self._lines: list[str] = []
        self._part = 0
        self._name = f"metrics-{first_step:08d}-{int(time.time() * 1000):013d}"
        self._left_to_repeat = _steps_done_before(self._uri, first_step) if self._uri is not None else 0
        self._board = _board(self._uri) if self._uri is not None and job.tensorboard else None

    def steps(self, reports: Sequence[Mapping[str, Any]], compiling: int) -> None:
        """Of steps whose values were just read; `reports` as `StepReport`s' fields, the first `compiling` compiled."""
        seconds, waits = self.meter.take_steps(self.asynchronous and not compiling)
        tokens = self.job.config.global_batch * self.job.sequence_length
        for number, (report, taken, wait) in enumerate(zip(reports, seconds, waits, strict=True)):
            if number < compiling:
                self.meter.seconds["compile"] += taken
            elif self._left_to_repeat:
                self.meter.seconds["repeated"] += taken
            else:
                self._recent.append(taken)
                self._waits.append(wait)
            self._left_to_repeat = max(0, self._left_to_repeat - 1)
            if self._uri is None:
                continue
            whole = taken + wait
            line = {
                "kind": "step",
                "time": time.time(),
                **report,
                "loss": report["loss_sum"] / max(1, report["targets"]),
                "step_seconds": taken,
                "data_wait_seconds": wait,
                "tokens_per_second": tokens / whole,
                "mfu": tokens * self._flops / whole / self._peak,
                **_memory(),
            }
            self._write(line)
            if self._board is not None:
                for name in ("loss", "grad_norm", "learning_rate", "tokens_per_second", "mfu", "data_wait_seconds"):
                    self._board.add_scalar(name, line[name], report["step"])

    def event(self, kind: str, **fields: Any) -> None:
        """Something that a person should find later: a bad step, a drain."""
        self._write({"kind": kind, "time": time.time(), **fields})

    def summarize(self, step: int) -> None:
        """A `summary` line; kept in `summary`, and all lines so far are then in storage."""
        recent, waits = np.array(self._recent), np.array(self._waits)
        self.summary = {"kind": "summary", "time": time.time(), "step": step, **self.meter.account()}
        if len(recent):
            for percent in PERCENTILES:
                self.summary[f"step_seconds_p{percent}"] = float(np.percentile(recent, percent))
            self.summary["step_seconds_mean"] = float(recent.mean())
            self.summary["data_wait_share"] = float(waits.sum() / (recent.sum() + waits.sum()))
        self._write(self.summary)
        self.flush()

    def flush(self) -> None:
        """Appends the lines to the file; on an object store, which cannot append, they are a file of their own."""
        if self._uri is None or not self._lines:
            return
        text = "".join(self._lines).encode()
        self._lines.clear()
        if storage.is_remote(self._uri):
            storage.write_bytes(storage.join(self._uri, f"{self._name}-{self._part:05d}.jsonl"), text)
            self._part += 1
            return
        directory = Path(self._uri.removeprefix("file://"))
        directory.mkdir(parents=True, exist_ok=True)
        with open(directory / f"{self._name}.jsonl", "ab") as file:
            file.write(text)

    def close(self) -> None:
        self.flush()
        if self._board is not None:
            self._board.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        if self._uri is not None:
            finite = {
                name: None if isinstance(value, float) and not math.isfinite(value) else value
                for name, value in line.items()
            }
            self._lines.append(json.dumps(finite) + "\n")


def read_lines(logs_uri: str) -> Iterator[dict[str, Any]]:
    """Every line of every attempt, in the order of attempts. A last line that a kill cut short is left out."""
    for name, _ in storage.list_files(logs_uri):
        if name.endswith(".jsonl"):
            for line in storage.read_bytes(storage.join(logs_uri, name)).splitlines():
                try:
                    yield json.loads(line)
                except json.JSONDecodeError:
                    continue


def peak_flops_per_second(device: str) -> float:
    """What MFU is measured against: on a CPU the fastest of a few float32 products of 1024 x 1024 on this machine.

    On a GPU of a known name the vendor's dense bfloat16 figure; nan where nothing is known, and then no MFU is told.
    """
    if device == "cuda":
        name = torch.cuda.get_device_name()
        return next((flops for known, flops in GPU_FLOPS.items() if known in name), math.nan)
    if device == "xla" and os.environ.get("PJRT_DEVICE", "").upper() == "TPU":
        return math.nan
    left = torch.rand(1024, 1024)
    best = math.inf
    for _ in range(5):
        began = time.perf_counter()
        left @ left
        best = min(best, time.perf_counter() - began)
    return 2 * 1024**3 / best


GPU_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}
"""dense bfloat16 operations a second of the SXM modules, from NVIDIA's data sheets"""


def _memory() -> dict[str, int]:
    found = {"peak_host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    if torch.cuda.is_available():
        found["peak_device_bytes"] = torch.cuda.max_memory_allocated()
    return found


def _steps_done_before(logs_uri: str, first_step: int) -> int:
    """How many steps an earlier attempt had done after the checkpoint that this one begins at."""
    last = max((line["step"] for line in read_lines(logs_uri) if line.get("kind") == "step"), default=0)
    return max(0, int(last) - first_step)


def _board(logs_uri: str) -> Any:
    if storage.is_remote(logs_uri):
        raise ValueError(f"TensorBoard's event files are appended to, and {logs_uri} cannot be; use a local root")
    from tensorboardX import SummaryWriter

    return SummaryWriter(logs_uri.removeprefix("file://"))
