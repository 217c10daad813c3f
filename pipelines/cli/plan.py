"""The plan of a run: which steps would run, and why. Reads manifests and hashes outside inputs; never starts Ray."""

from collections.abc import Callable, Iterator, Mapping
from operator import itemgetter
from typing import Any

from data import storage
from data.absent import with_absent, without_absent
from data.manifest import RUN_NAME, Manifest, read_manifest
from pipelines.engine import config as configs
from pipelines.engine import damage
from pipelines.engine.code_digest import code_sha256
from pipelines.engine.inputs import left_out_lines
from pipelines.engine.runner import read_run
from pipelines.engine.task import Task
from pipelines.report.words import holds


def plan_lines(
    tasks: Mapping[str, Task], before: Mapping[str, Any], notes: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Yields two lines for each step, then warnings.

    The first line has the step's state (done, to run) and purpose. The second line has its fingerprint and its
    contents, or the reason why it runs. `before` holds the last run of each step (`recipe.last_run`, `last_of_stage`).
    `notes` holds the purpose of each step (default: the summary of its stage).
    """
    done: dict[str, Manifest | None] = dict.fromkeys(tasks)
    damaged: dict[str, list[str]] = {name: [] for name in tasks}
    for name, task in tasks.items():
        with damage.named(task.directory, damaged[name].append):
            done[name] = task.manifest()
    width = max(len(name) for name in tasks)
    waiting = [name for name, manifest in done.items() if manifest is None]
    yield f"{len(tasks)} step{'s'[: len(tasks) - 1]}: {len(tasks) - len(waiting)} done, {len(waiting)} to run"
    for number, (name, task) in enumerate(tasks.items(), start=1):
        manifest = done[name]
        note = (notes or {}).get(name) or task.stage.summary
        state = "damaged" if damaged[name] else "to run" if manifest is None else "done"
        yield f"{number:>4}. {name:<{width}}  {state:<6}  {note}"
        detail = holds(manifest) if manifest is not None else why(name, tasks, before, waiting)
        detail = damaged[name][0].removeprefix("damaged: ") if damaged[name] else detail
        yield f"{'':<{width + 8}}{task.stage.name}/{task.fingerprint}: {detail}"
        for line in left_out_lines(task.inputs):
            yield f"{'':<{width + 8}}{line}"
        for line in task.stage.plan_notes(task.config, task.inputs) if task.stage.plan_notes else ():
            yield f"{'':<{width + 8}}{line}"
    changed: dict[str, list[str]] = {}
    for name, task in tasks.items():
        recorded = None
        lines: list[str] = []
        with damage.named(task.directory, lines.append):
            run = read_run(task.directory) if done[name] is not None else None
            recorded = run.get("code_sha256") if run else None
            if run == {}:
                lines.append(f"no log: {task.directory} has no {RUN_NAME}, so whether its code changed is not known")
        yield from lines
        if recorded not in (None, code_sha256(task.stage)):
            changed.setdefault(f"{task.stage.name} (VERSION {task.stage.version})", []).append(name)
    if again := [name for name in waiting if name in before and made_differently(before[name], tasks[name])]:
        yield (
            "note: since the earlier runs, fingerprints are made differently (without absent options, with the Parquet "
            f"writer), so {len(again)} of {len(tasks)} steps run again; the old runs stay and can be named as inputs"
        )
    for stage, names in changed.items():
        yield (
            f"warning: the code of {stage} changed since {', '.join(names)} ran, and VERSION did not; "
            "if the output would differ, raise VERSION in the stage's file, and the stage runs again"
        )


def why(name: str, tasks: Mapping[str, Task], before: Mapping[str, Any], waiting: list[str]) -> str:
    """The reason why the step has to run: changes since its last run, or earlier steps that it waits for."""
    task = tasks[name]
    if name not in before:
        return "it did not finish" if storage.exists(task.directory) else "never ran here"
    old, new = before[name], task.hashed()
    kind = task.stage.config
    changes = configs.differences(with_absent(kind, old["config"]), with_absent(kind, new["config"]))
    if old["version"] != new["version"]:
        changes.append(f"VERSION {old['version']} -> {new['version']}")
    if old.get("writer", task.writer) != task.writer:
        changes.append(f"the Parquet writer {old['writer']} -> {task.writer}")
    upstream = [
        step
        for step, source in tasks.items()
        for inputs in task.inputs.values()
        if step != name and any(read.directory == source.directory for read in inputs)
    ]
    changed = [step for step in upstream if step in before and before[step]["fingerprint"] != tasks[step].fingerprint]
    reasons = [f"{', '.join(changes)}"] if changes else []
    if changed:
        reasons.append(f"it reads {', '.join(dict.fromkeys(changed))}, which changes")
    outside = [key for key, sources in task.inputs.items() if any(source.external for source in sources)]
    if any(old["inputs"].get(key) != new["inputs"][key] for key in outside):
        reasons.append(f"the files of {', '.join(outside)} changed")
    if not upstream:  # a stage run alone: its inputs are named runs or files
        inside = {*old["inputs"], *new["inputs"]} - set(outside)
        named = sorted(key for key in inside if old["inputs"].get(key) != new["inputs"].get(key))
        reasons += [f"--{key} was {_listed(old, key)} and is {_listed(new, key)}" for key in named]
    if not reasons and made_differently(old, task):
        reasons.append("its fingerprint is made differently (see the note)")
    if not reasons:
        blocked = [step for step in dict.fromkeys(upstream) if step in waiting]
        state = "it did not finish" if storage.exists(task.directory) else "its output is not there"
        reasons.append(state + (f"; it waits for {', '.join(blocked)}" if blocked else ""))
    return "because " + "; ".join(reasons)


def made_differently(old: Mapping[str, Any], task: Task) -> bool:
    """Whether `old`, a run of the task's stage, would get another fingerprint today."""
    if task.writer is not None and "writer" not in old:
        return True
    names = ("version", "inputs", "writer")
    document = {"stage": task.stage.name, **{name: old[name] for name in names if name in old}}
    return configs.digest(document | {"config": without_absent(task.stage.config, old["config"])}) != old["fingerprint"]


def last_of_stage(task: Task, tell: Callable[[str], None] = print) -> dict[str, Any]:
    """Stage name -> version, config and inputs of its newest finished run in the task's root; {} without such a run.

    A run with a damaged file is left out and passed to `tell`, as one line.
    """
    folder = storage.join(task.root, task.stage.name)
    newest: tuple[str, dict[str, Any]] = ("", {})
    for fingerprint in storage.list_folders(folder):
        directory = storage.join(folder, fingerprint)
        with damage.named(directory, tell):
            if (manifest := read_manifest(directory)) is not None:
                newest = max(
                    newest, (str(read_run(directory).get("started", "")), _made_of(manifest)), key=itemgetter(0)
                )
    return {task.stage.name: newest[1]} if newest[1] else {}


def _made_of(manifest: Manifest) -> dict[str, Any]:
    inputs = {name: [source["reference"] for source in sources] for name, sources in manifest.inputs.items()}
    made_of = {
        "version": manifest.version,
        "config": dict(manifest.config),
        "inputs": inputs,
        "fingerprint": manifest.fingerprint,
    }
    return made_of if manifest.writer is None else made_of | {"writer": manifest.writer}


def _listed(made_of: Mapping[str, Any], key: str) -> str:
    return ", ".join(made_of["inputs"].get(key, [])) or "not given"
