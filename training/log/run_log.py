"""What a training run reports while it runs, with clock times: JSON lines first, then TensorBoard and Prometheus.

    loop -> Meter (seconds by cause) -> MetricsLog -> LOGS/metrics-<first step>-<begin>.jsonl
                                                   -> event files beside them
                                                   -> `tell`: gauges, by training/worker/on_worker.py

The log has one `began` line for each attempt and one `step` line for each step. It has one `summary` line whenever
values were read back (every few steps) and after every checkpoint, with percentiles of steps and the run's seconds by
cause. All three outputs use the names in training/log/metrics.py. The tables that a manifest lists (METRICS of
data/schema) have no times, since they are a function of config, inputs and set-up.

A line is in the file as soon as it is reported, so a kill loses only the lines of steps that were not read back yet. An
object store cannot append: there a file is written at each checkpoint, and once a minute between checkpoints.
"""

import json
import math
import os
import resource
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from data import storage
from model.flops import train_flops_per_token
from training.backends.abilities import Abilities
from training.backends.base import Backend
from training.errors import UserError
from training.job import TrainJob
from training.log.chips import chips_held
from training.log.goodput import Meter
from training.log.metrics import CAUSES, FIELDS, PERCENTILES

BEGAN = "began"
"""Kind of the line that each attempt's log starts with."""

WINDOW_STEPS = 500
"""Number of recent steps that percentiles are over."""
REMOTE_SECONDS = 60.0
"""Seconds between two files on an object store, if there is no checkpoint in between."""
TAIL_BYTES = 1 << 16
"""Bytes at the end of a file that are read for its last account: about a hundred lines."""

Tell = Callable[[Mapping[str, float]], None]
"""A function that receives the newest value of every field."""


class MetricsLog:
    """Writes the lines in the first worker; in other workers it only counts. Without `logs_uri` it writes no file."""

    def __init__(
        self, job: TrainJob, meter: Meter, first_step: int, backend: Backend, tell: Tell | None = None
    ) -> None:
        self.job, self.meter, self.backend, self.asynchronous = job, meter, backend, backend.abilities.compiles
        self.summary: dict[str, Any] = {}
        self._first = backend.rank == 0
        self._uri = job.logs_uri if self._first else None
        self._tell = tell if self._first else None
        self._flops = train_flops_per_token(job.config.model, job.sequence_length)
        self._peak = peak_flops_per_second(job, backend.abilities)
        self._recent: deque[float] = deque(maxlen=WINDOW_STEPS)
        self._waits: deque[float] = deque(maxlen=WINDOW_STEPS)
        self._newest: dict[str, Any] = {}
        self._since = time.time() - meter.account()["run_seconds"]
        self._lines: list[str] = []
        self._part = 0
        self._flushed = time.monotonic()
        self._name = f"metrics-{first_step:08d}-{int(time.time() * 1000):013d}"
        self._first_step = self._repeat_until = self._furthest = first_step
        self._board = _board(self._uri, first_step) if self._uri is not None and job.tensorboard else None

    def begin(self) -> None:
        """Takes over the account of the attempt before and writes a line, when all is ready for the first rows."""
        earlier = last_account(self._uri) if self._uri is not None else None
        if earlier is not None:
            self.meter.go_on(earlier, time.time() - earlier["time"])
            self._repeat_until = self._furthest = max(self._first_step, earlier["furthest_step"])
        workers = self.backend.world_size
        about: dict[str, Any] = {
            "device": self.backend.abilities.device,
            "workers": workers,
            "chips": chips_held(workers),
        }
        about |= {"computing_chips": self.job.setup.chips, "peak_flops_per_second": self._peak, **self._account()}
        self._write({"kind": BEGAN, "time": time.time(), "step": self._first_step, "since": self._since, **about})
        self.flush()

    def steps(self, step_metrics: Sequence[Mapping[str, Any]], compiling: int) -> None:
        """Writes steps whose values were just read: `StepMetrics` as dicts, the first `compiling` of them compiled."""
        seconds, waits = self.meter.take_steps(self.asynchronous and not compiling)
        tokens = self.job.config.global_batch * self.job.sequence_length
        for number, (metrics, taken, wait) in enumerate(zip(step_metrics, seconds, waits, strict=True)):
            if number < compiling:
                self.meter.seconds["compile"] += taken
            elif metrics["step"] <= self._repeat_until:
                self.meter.seconds["restart"] += taken
            else:
                self._recent.append(taken)
                self._waits.append(wait)
            self._furthest = max(self._furthest, metrics["step"])
            if not self._first:
                continue
            tokens_per_second = tokens / (taken + wait)
            self._newest = {
                "kind": "step",
                "time": time.time(),
                **metrics,
                "loss": metrics["loss_sum"] / max(1, metrics["targets"]),
                "step_seconds": taken,
                "data_wait_seconds": wait,
                "tokens_per_second": tokens_per_second,
                "model_flops_per_second": tokens_per_second * self._flops,
                "mfu": None if self._peak is None else tokens_per_second * self._flops / self._peak,
                "peak_host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "peak_device_bytes": self.backend.peak_device_bytes(),
            }
            self._write(self._newest)
            self._draw(self._newest)

    def event(self, kind: str, **fields: Any) -> None:
        """Writes a line about an event that a person should find later: a bad step, a drain."""
        self._write({"kind": kind, "time": time.time(), **fields})

    def summarize(self, step: int, checkpoint: bool = False) -> None:
        """Writes a `summary` line, keeps and reports it. After a `checkpoint` all lines so far are in storage."""
        self.summary = {
            "kind": "summary",
            "time": time.time(),
            "step": step,
            "steps_wanted": self.job.config.steps,
            **self._account(),
        }
        if self._recent:
            recent, waits = np.array(self._recent), np.array(self._waits)
            for percent, value in zip(PERCENTILES, np.percentile(recent, PERCENTILES), strict=True):
                self.summary[f"step_seconds_p{percent}"] = float(value)
            self.summary["step_seconds_mean"] = float(recent.mean())
            self.summary["data_wait_share"] = float(waits.sum() / (recent.sum() + waits.sum()))
        self._write(self.summary)
        self._draw(self.summary)
        if self._tell is not None:
            both = {**self._newest, **self.summary}
            self._tell({name: both[name] for name in FIELDS if both.get(name) is not None})
        if self._uri is not None and (
            checkpoint or storage.local_path(self._uri) is not None or time.monotonic() - self._flushed > REMOTE_SECONDS
        ):
            self.flush()

    def flush(self) -> None:
        """Appends the lines to the file; an object store cannot append, so there they become a file of their own."""
        self._flushed = time.monotonic()
        if self._uri is None or not self._lines:
            return
        text = "".join(self._lines).encode()
        self._lines.clear()
        directory = storage.local_path(self._uri)
        if directory is None:
            storage.write_bytes(storage.join(self._uri, f"{self._name}-{self._part:05d}.jsonl"), text)
            self._part += 1
            return
        directory.mkdir(parents=True, exist_ok=True)
        with open(directory / f"{self._name}.jsonl", "ab") as file:
            file.write(text)

    def close(self) -> None:
        self.flush()
        if self._board is not None:
            self._board.close()

    def _account(self) -> dict[str, float]:
        return {**self.meter.account(), "furthest_step": self._furthest}

    def _draw(self, line: Mapping[str, Any]) -> None:
        """Adds the line's values to TensorBoard, whose axis is the step."""
        if self._board is None:
            return
        for name in line.keys() & FIELDS - {"step"}:
            if line[name] is not None and math.isfinite(line[name]):
                self._board.add_scalar(name, line[name], line["step"])

    def _write(self, line: Mapping[str, Any]) -> None:
        if self._uri is not None:
            finite = {
                name: None if isinstance(value, float) and not math.isfinite(value) else value
                for name, value in line.items()
            }
            self._lines.append(json.dumps(finite) + "\n")


def read_lines(logs_uri: str) -> Iterator[dict[str, Any]]:
    """Every line of every attempt, in the order of attempts, without a last line that a kill cut short."""
    for uri, _ in _log_files(logs_uri):
        yield from _parsed(storage.read_bytes(uri))


def last_account(logs_uri: str) -> dict[str, Any] | None:
    """The newest line of all attempts that has an account of the run's time; None before the first attempt.

    Reads only the end of one file if it has such a line: a run of months has a line for each step.
    """
    for uri, size in reversed(_log_files(logs_uri)):
        for start in sorted({max(0, size - TAIL_BYTES), 0}, reverse=True):
            lines = list(_parsed(storage.read_range(uri, start, size) if size else b""))
            complete = (line for line in reversed(lines) if all(f"lost_seconds_{cause}" in line for cause in CAUSES))
            if (newest := next(complete, None)) is not None:
                return newest
    return None


def _log_files(logs_uri: str) -> list[tuple[str, int]]:
    """(file, bytes) in the order of their beginnings: an attempt may begin at an earlier step than the one before."""
    files = []
    for name, size in storage.list_files(logs_uri):
        if name.endswith(".jsonl"):
            begun = name.removesuffix(".jsonl").split("-")[2:]  # milliseconds, and, on an object store, the part
            files.append((begun, storage.join(logs_uri, name), size))
    return [(uri, size) for _, uri, size in sorted(files)]


def _parsed(text: bytes) -> Iterator[dict[str, Any]]:
    """The lines that are whole."""
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except ValueError:  # cut short
            continue
        if isinstance(record, dict):
            yield record


def peak_flops_per_second(job: TrainJob, abilities: Abilities) -> float | None:
    """The peak that MFU is measured against: dense bfloat16 operations per second of all chips of the run together.

    The job has the peak of a chip, for GPUs by name. None on a CPU, whose peak is not published, and for unknown chips.
    """
    chip: float | None = None
    if abilities.accelerator == "GPU":
        name = torch.cuda.get_device_name()
        chip = next((flops for part, flops in job.gpu_flops.items() if part in name), None)
    elif abilities.accelerator == "TPU" and os.environ.get("PJRT_DEVICE", "").upper() == "TPU":
        chip = job.chip_flops
    return None if chip is None else chip * job.setup.chips


def _board(logs_uri: str, first_step: int) -> Any:
    """The writer of an event file of its own, which hides what earlier attempts drew from its first step on."""
    directory = storage.local_path(logs_uri)
    if directory is None:
        raise UserError(
            f"got --tensorboard with logs on {logs_uri}, to which event files cannot be appended; use a local --root, "
            "or leave --tensorboard out"
        )
    from tensorboardX import SummaryWriter

    # the name that tensorboardX gives has whole seconds, in which a second attempt would write over the first's file
    suffix = f".{time.time_ns() // 1_000_000}"
    return SummaryWriter(str(directory), purge_step=first_step + 1, filename_suffix=suffix)


def held_seconds(logs_uri: str) -> dict[str, float]:
    """Kind of chip -> chip-seconds of all attempts of a training run, from the `began` line of each to its last line.

    The time of a killed attempt after its last line is not included.
    """

    held: dict[str, float] = {}
    chips: Mapping[str, int] = {}
    last = 0.0
    for line in read_lines(logs_uri):
        if line["kind"] == BEGAN:
            chips, last = line["chips"], line["since"]
        for kind, count in chips.items():
            held[kind] = held.get(kind, 0.0) + count * max(0.0, line["time"] - last)
        last = line["time"]
    return held
