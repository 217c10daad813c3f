"""Runs one stage: computes its fingerprint, checks whether it is done, runs it and publishes the manifest.

    inputs + Config -> fingerprint -> ROOT/<stage>/<fingerprint>/ -> run -> _MANIFEST.json (last, exclusive) + _RUN.json

A run that has a manifest has nothing to do and starts nothing. An interrupted run is resumed: finished shards and
committed checkpoints are kept. If two drivers run the same data stage, both work, and the first to publish the
manifest wins: the second driver uses that manifest.
"""

import datetime
import importlib.metadata
import json
import os
import platform
import resource
import secrets
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import asdict, replace
from typing import Any

from data import storage
from data.changes import Changes, LeaseLost
from data.documents import parse_object
from data.manifest import RUN_NAME, Manifest, is_of_another_run, publish_manifest, read_manifest
from data.sealed import seal, unsealed
from infra.ray_session import RaySession
from pipelines.engine import config as configs
from pipelines.engine.clean_up import clean_up, publish_log, staged_log
from pipelines.engine.code_digest import code_sha256
from pipelines.engine.errors import UserError
from pipelines.engine.finished import Finished
from pipelines.engine.inputs import left_out_lines
from pipelines.engine.lease import hold_lease
from pipelines.engine.printed import unwrapped
from pipelines.engine.resources import Resources
from pipelines.engine.stage import FAILURE, Context, Outcome, VerdictError
from pipelines.engine.task import Task

CONFIG_NAME = "_CONFIG.json"
FAILED_NAME = "_FAILED.json"
"""file with the error of the last attempt, for `status`; the next attempt removes it"""
PACKAGES = ("ray", "torch", "torch_xla", "pyarrow", "sentencepiece", "numpy")


def run_task(task: Task, resources: Resources, session: RaySession, say: Any = print) -> Manifest:
    """Runs the task unless it has a manifest; returns the manifest. Exceptions of the stage come out unchanged.

    Raises VerdictError if the run is finished, now or before, and its answer is no.
    """
    where = f"{task.stage.name}/{task.fingerprint}"
    if (done := task.manifest()) is not None:
        clean_up(task.directory, done)  # files of a driver that was killed after it published the manifest
        say(f"{where}: done before, nothing to do")
        return _accepted(done)
    for sources in task.inputs.values():
        for source in sources:
            _ = source.external or source.data  # an unfinished input is refused before anything is written
    context = Context(
        stage=task.stage.name,
        directory=task.directory,
        fingerprint=task.fingerprint,
        inputs={name: list(sources) for name, sources in task.inputs.items()},
        resources=resources,
        attempt=f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}",
        session=session,
        quiet=os.environ.get("CI") == "true" or not unwrapped(sys.stderr).isatty(),
    )
    for line in left_out_lines(task.inputs):
        say(f"{where}: {line}")
    leased = task.stage.declares.lease
    with hold_lease(task.directory, lambda line: say(f"{where}: {line}")) if leased else nullcontext() as lease:
        context = replace(context, lease=lease)
        changes = context.changes
        if lease is not None and (published := read_manifest(task.directory)) is not None:
            say(f"{where}: another driver finished it first; using its manifest")
            return published
        save_config(task, changes)
        changes.remove(storage.join(task.directory, FAILED_NAME))
        say(f"{where}: running")
        began, began_wall = time.monotonic(), datetime.datetime.now(datetime.UTC)
        try:
            outcome = task.stage.run(context, task.config)
            manifest = _manifest(task, outcome)
            seconds = time.monotonic() - began
            # before the manifest: if this driver is killed behind that, the next driver finds the log and publishes it
            storage.write_bytes(staged_log(changes), _log(task, context, outcome, seconds, began_wall))
        except Exception as error:
            if not changes.held():
                raise changes.lost() from error
            if (published := read_manifest(task.directory)) is not None:
                say(f"{where}: another driver finished it first; using its manifest")
                clean_up(task.directory, published)
                return published
            _save_failure(task, changes, error)
            raise
        try:
            first = publish_manifest(task.directory, manifest, changes.create)
        except RuntimeError:
            changes.check()  # a successor published while this driver slept
            raise
        if first:
            publish_log(task.directory, staged_log(changes))
        else:
            changes.check()
            storage.remove_tree(changes.folder)
    clean_up(task.directory, manifest)
    if not first:
        say(f"{where}: another driver published the same manifest first; using it")
        return manifest
    said = f", {outcome.said}" if outcome.said else ""
    say(f"{where}: done in {seconds:.1f} s{_counts(manifest)}{_speeds(outcome.log)}{said}")
    return _accepted(manifest)


def _log(task: Task, context: Context, outcome: Outcome, seconds: float, began: datetime.datetime) -> bytes:
    """The contents of `_RUN.json`."""
    run = {
        "fingerprint": task.fingerprint,
        "started": began.isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "peak_driver_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "host": socket.gethostname(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "resources": asdict(context.resources),
        "shards_by_node": dict(sorted(context.shards_by_node.items())),
        "chip_seconds": {kind: round(seconds_held, 3) for kind, seconds_held in sorted(context.chip_seconds.items())},
        "code_sha256": code_sha256(task.stage),
        "log": outcome.log,
    }
    return seal(run)


def _version(package: str) -> str | None:
    """The installed version; None if the package is not installed: a machine for GPUs has no torch_xla."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _accepted(manifest: Manifest) -> Manifest:
    """Raises VerdictError if the answer of a finished run is no."""
    for dataset in manifest.datasets.values():
        if dataset.facts.get(FAILURE):
            raise VerdictError(f"{manifest.stage}/{manifest.fingerprint}: {dataset.facts[FAILURE]}")
    return manifest


def _manifest(task: Task, outcome: Outcome) -> Manifest:
    missing = set(task.stage.writes) ^ set(outcome.datasets)
    assert not missing, f"{task.stage.name} declares {task.stage.writes} and made {sorted(outcome.datasets)}"
    return Manifest(
        stage=task.stage.name,
        version=task.stage.version,
        writer=task.writer,
        fingerprint=task.fingerprint,
        config=configs.to_dict(task.config),
        inputs={
            name: [{"reference": source.reference, "content": source.content()} for source in sources]
            for name, sources in sorted(task.inputs.items())
        },
        datasets=outcome.datasets,
        dropped=outcome.dropped,
        tokenizer_sha256=outcome.tokenizer_sha256,
        setup=outcome.setup,
    )


def save_config(task: Task, changes: Changes) -> None:
    """Writes the file that `--config` replays: the resolved config and the inputs as given."""
    document = {
        "stage": task.stage.name,
        "fingerprint": task.fingerprint,
        "config": configs.to_dict(task.config),
        "root": storage.absolute(task.root),
        "inputs": {
            name: [
                text for source in sources for text in (json.loads(source.given) if source.external else [source.given])
            ]
            for name, sources in task.inputs.items()
        },
    }
    changes.write(storage.join(task.directory, CONFIG_NAME), seal(document))


def _save_failure(task: Task, changes: Changes, error: Exception) -> None:
    """Saves one line of the error, which `status` prints. If the storage itself failed, it saves nothing."""
    lines = str(error).strip().splitlines()
    message = lines[-1 if lines and lines[0].startswith("a worker failed") else 0] if lines else ""
    record = {
        "error": f"{type(error).__name__}: {message}"[:500],
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
    }
    with suppress(OSError, LeaseLost):
        changes.write(storage.join(task.directory, FAILED_NAME), (json.dumps(record) + "\n").encode())


def read_run(directory: str) -> dict[str, Any]:
    """The run's log (times, host, versions); {} if the run has no log.

    Raises UserError if the log is damaged, or that of another run.
    """
    uri = storage.join(directory, RUN_NAME)
    advice = "remove it: it holds only times, speeds and versions"
    try:
        content = storage.read_bytes(uri)
    except FileNotFoundError:
        return {}
    run = unsealed(content, parse_object(content, uri, advice), uri, advice)
    if "fingerprint" in run and is_of_another_run(directory, run["fingerprint"]):
        raise UserError(f"got {uri} of the run {run['fingerprint']}, exchanged with another file; {advice}")
    return run


def finished(task: Task) -> Finished | None:
    """The task's run in the form that the functions of a declaration take; None if the run has not finished."""
    manifest = task.manifest()
    if manifest is None:
        return None
    return Finished(
        directory=task.directory,
        manifest=manifest,
        config=task.config,
        inputs=task.inputs,
        run=read_run(task.directory),
    )


def _speeds(log: Mapping[str, Any]) -> str:
    ending = "tokens_per_second"
    speeds = {name.removesuffix("_per_second").replace("_", " "): log[name] for name in log if name.endswith(ending)}
    return "".join(f", {speed:,.1f} {unit}/s" for unit, speed in speeds.items())


def _counts(manifest: Manifest) -> str:
    parts = [f"{name} {dataset.rows:,} rows" for name, dataset in manifest.datasets.items() if dataset.rows]
    parts += [f"dropped {count:,} {reason}" for reason, count in manifest.dropped.items() if count]
    return ": " + ", ".join(parts) if parts else ""
