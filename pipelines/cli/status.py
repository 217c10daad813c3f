"""python -m pipelines status [--root URI]: every run below ROOT: done, running, failed or stopped, and its progress.

It reads files that runs write anyway: manifests and `_RUN.json` (done), `_FAILED.json` (failed), leases with their
heartbeat and committed checkpoints (training), receipts of finished shards and `_phases/` (data stages). It asks no
cluster and does not start Ray. Cost: a few small requests per run; folders are listed one level deep, and the longest
has one entry for each shard of a phase in progress. The progress of a training run is that of its newest checkpoint.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from data import storage
from data.documents import parse_object
from data.manifest import read_manifest
from data.sealed import unsealed
from pipelines.engine import damage, lease
from pipelines.engine.registry import stage_names
from pipelines.engine.runner import CONFIG_NAME, FAILED_NAME, read_run
from pipelines.engine.shard_map import PHASES, RECEIPTS
from pipelines.recipes import registry as recipes
from pipelines.recipes.recipe import saved_steps
from pipelines.report.words import duration, holds
from training.checkpoints.records import COMMIT_NAME, DIRECTORY_PATTERN

SILENT_SECONDS = 600
"""seconds without a finished shard after which a data stage counts as stopped"""


@dataclass(frozen=True, kw_only=True)
class RunState:
    """The state of a run, read from its directory."""

    reference: str
    """reference `stage/fingerprint`"""
    state: str
    """state: done, running, failed, stopped, damaged, or waiting (a step of a recipe that never began)"""
    detail: str
    """contents of the run, its progress, or its error"""
    remaining_seconds: float | None = None
    """estimated seconds to the end; None: the run is not running, or its speed is not known"""


def status_lines(root: str, now: float | None = None) -> Iterator[str]:
    """Yields recipes that were run below `root` with their steps, then all other runs."""
    now = time.time() if now is None else now
    folders = {name: storage.list_folders(storage.join(root, name)) for name in stage_names()}
    states = {
        f"{name}/{fingerprint}": _state_or_damage(root, name, fingerprint, now)
        for name, fingerprints in folders.items()
        for fingerprint in fingerprints
    }
    listed: set[str] = set()
    damaged: list[str] = []
    for recipe, steps in _saved_recipes(root, damaged.append):
        by_step = {
            step: states.get(reference)
            or RunState(reference=reference, state="waiting", detail="" if reference else "for an input from outside")
            for step, reference in steps.items()
        }
        listed |= set(steps.values())
        done = sum(state.state == "done" for state in by_step.values())
        yield f"{recipe}: {done} of {len(by_step)} steps done"
        yield from aligned_left([_row(step, state) for step, state in by_step.items()])
    yield from damaged
    unlisted = [state for reference, state in states.items() if reference not in listed]
    if unlisted:
        yield "other runs" if listed else "runs"
        yield from aligned_left([_row(state.reference, state) for state in unlisted])
    if not listed and not unlisted:
        yield no_runs(root)


def no_runs(root: str) -> str:
    root = storage.absolute(root)
    return f"no runs under {root}" + ("" if storage.exists(root) else ", which does not exist")


def _state_or_damage(root: str, stage: str, fingerprint: str, now: float) -> RunState:
    damaged: list[str] = []
    with damage.named(storage.join(root, stage, fingerprint), damaged.append):
        return run_state(root, stage, fingerprint, now)
    detail = damaged[0].removeprefix("damaged: ")
    return RunState(reference=f"{stage}/{fingerprint}", state="damaged", detail=detail)


def run_state(root: str, stage: str, fingerprint: str, now: float) -> RunState:
    """The state of one run."""
    directory, reference = storage.join(root, stage, fingerprint), f"{stage}/{fingerprint}"
    manifest = read_manifest(directory)
    if manifest is not None:
        run = read_run(directory)
        seconds = f", {duration(run['seconds'])}" if "seconds" in run else "" if run else ", no log"
        return RunState(reference=reference, state="done", detail=f"{holds(manifest)}{seconds}")
    entries = dict(storage.list_level(directory))
    leases = lease.lease_names(list(entries))
    holder = lease.read_lease(storage.join(directory, leases[-1])) if leases else None
    alive = holder is not None and lease.seems_held(holder, now)
    far = _training(directory, entries, now) if "checkpoints" in entries else _shards(directory, entries, now)
    if FAILED_NAME in entries and not alive:
        failed = _json(storage.join(directory, FAILED_NAME)) or {}
        detail = f"{far.detail}; {failed.get('error', '')}".strip("; ")
        return RunState(reference=reference, state="failed", detail=detail)
    running = alive if leases else now - far.seen < SILENT_SECONDS
    return RunState(
        reference=reference,
        state="running" if running else "stopped",
        detail=far.detail if running else f"{far.detail}; last sign of life {duration(now - far.seen)} ago".strip("; "),
        remaining_seconds=far.remaining_seconds if running else None,
    )


@dataclass(frozen=True, kw_only=True)
class _Far:
    detail: str
    seen: float
    """time of the run's last written file, in seconds since 1970"""
    remaining_seconds: float | None = None


def _training(directory: str, entries: dict[str, float], now: float) -> _Far:
    """Progress by committed checkpoints; the speed is this attempt's, which began when it wrote `_CONFIG.json`."""
    began = entries.get(CONFIG_NAME, now)
    config = _config(directory)
    names = [name for name, _ in storage.list_level(storage.join(directory, "checkpoints"))]
    steps = sorted(int(match[1]) for name in names if (match := DIRECTORY_PATTERN.fullmatch(name)))
    committed: list[tuple[int, float]] = []
    for step in reversed(steps):  # of hundreds of checkpoints only the newest are read
        inside = dict(storage.list_level(storage.join(directory, "checkpoints", f"step-{step:08d}")))
        if COMMIT_NAME in inside:
            committed.append((step, inside[COMMIT_NAME]))
            if inside[COMMIT_NAME] < began or len(committed) == 4:
                break
    wanted = int(config.get("steps", 0))
    if not committed:
        return _Far(detail=f"no checkpoint yet, of {wanted:,} steps", seen=max(entries.values(), default=began))
    step, when = committed[0]
    then_step, then = committed[-1] if len(committed) > 1 else (0, began)
    if then < began < when:  # a checkpoint of an earlier attempt, whose steps took no time of this attempt
        then = began
    rate = (step - then_step) / (when - then) if when > then else 0.0
    remaining = max(0.0, (wanted - step) / rate - (now - when)) if rate > 0 else None
    seen = max(when, max(entries.values(), default=when))
    return _Far(detail=f"step {step:,} of {wanted:,} kept", seen=seen, remaining_seconds=remaining)


def _config(directory: str) -> dict[str, Any]:
    """The saved config of a run; {} if the run has not written it yet. Raises UserError if it is damaged."""
    uri, advice = storage.join(directory, CONFIG_NAME), "run the same line again, which writes it"
    try:
        content = storage.read_bytes(uri)
    except FileNotFoundError:
        return {}
    config = unsealed(content, parse_object(content, uri, advice), uri, advice).get("config")
    return config if isinstance(config, dict) else {}


def _shards(directory: str, entries: dict[str, float], now: float) -> _Far:
    """Progress by receipts of the newest phase."""
    seen = max(entries.values(), default=now)
    phases = storage.list_level(storage.join(directory, PHASES)) if PHASES in entries else []
    if not phases:
        return _Far(detail="began", seen=seen)
    name, began = max(phases, key=lambda entry: entry[1])
    phase = name.removesuffix(".json")
    record = _json(storage.join(directory, PHASES, name)) or {}
    receipts = storage.list_level(storage.join(directory, RECEIPTS, phase))
    last = max((when for _, when in receipts), default=began)
    tasks, new = int(record.get("tasks", 0)), len(receipts) - int(record.get("done_before", 0))
    rate = new / (last - began) if last > began else 0.0
    remaining = max(0.0, (tasks - len(receipts)) / rate - (now - last)) if rate > 0 else None
    detail = f"{phase.rpartition('-')[0]}: {len(receipts):,} of {tasks:,} shards"
    return _Far(detail=detail, seen=max(seen, last, began), remaining_seconds=remaining)


def _saved_recipes(root: str, tell: Callable[[str], None]) -> Iterator[tuple[str, dict[str, str]]]:
    """Recipes that were run below `root`, with each step's reference; empty if the step lacks an input from outside.

    A recipe whose file is damaged is passed to `tell`, as one line; its steps are then among the other runs.
    """
    for name in recipes.names():
        steps = None
        with damage.named(storage.join(root, name), tell):
            steps = saved_steps(name, root)
        if steps is not None:
            yield (
                name,
                {
                    step: f"{record['stage']}/{record['fingerprint']}" if "fingerprint" in record else ""
                    for step, record in steps.items()
                },
            )


def _json(uri: str) -> dict[str, Any] | None:
    """The JSON object at `uri`; None if the file is missing, damaged or being replaced at this moment."""
    try:
        document = json.loads(storage.read_bytes(uri))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _row(name: str, state: RunState) -> tuple[str, ...]:
    left = "" if state.remaining_seconds is None else f", about {duration(state.remaining_seconds)} to go"
    return f"  {name}", state.state, f"{state.detail}{left}"


def aligned_left(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """Lines of the rows in columns that are aligned to the left."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
