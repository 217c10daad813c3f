"""python -m tests.programs.fuzz [STEP ...]: damages a file of each kind of each run, and runs the stages that read it.

    the data stages, an imported model, a cache, an audit, an evaluation, texts, an export: all in this process
    x each file that a manifest lists first in a dataset, and the JSON files beside it
    x flip, truncate, zero, swap with a sibling, swap with another run of the stage, missing

Kinds of files come from the manifests, and readers from the inputs of the tasks, so a later stage of CHAIN is tried as
it comes. SILENT: the reader's manifest differs from the undisturbed one, and nothing was said. NAMELESS: an error that
is no user's error, or that names no file of the damaged run. The files of a run that decide nothing for a later stage
(`_CONFIG.json`, `_RUN.json`) are read by `tests/pipelines/engine/test_sealed.py`, and an earlier version of a file is a
file of another run here.
"""

import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.manifest import MANIFEST_NAME, Manifest, read_manifest
from model import save_hf
from pipelines.checkpoints.loaded import open_model
from pipelines.engine.errors import exit_code
from pipelines.engine.resources import Resources
from pipelines.engine.runner import run_task
from pipelines.engine.stage import VerdictError, load_stage
from pipelines.engine.task import Task, future_input, resolve_inputs
from tests.programs.corpora import mixed_corpus
from tests.programs.in_process import InProcess, chain
from tests.programs.reference import lively_model

SEED = 0
Change = Callable[[random.Random, Path, Path], bytes | None]
"""(random numbers, the file, a file to swap with) -> what the file becomes; None: it goes"""


def flipped(draw: random.Random, path: Path, _: Path) -> bytes:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return bytes(content)


CHANGES: dict[str, Change] = {
    "flip": flipped,
    "flip again": flipped,
    "truncate": lambda draw, path, _: path.read_bytes()[: draw.randrange(path.stat().st_size)],
    "zero": lambda _, path, __: bytes(path.stat().st_size),
    "swap with a sibling": lambda _, __, sibling: sibling.read_bytes(),
    "swap with another run": lambda _, __, other: other.read_bytes(),
    "missing": lambda _, __, ___: None,
}


@dataclass
class Fuzz:
    """The finished runs under one ROOT, by name, and the runs of the same stages from other data."""

    root: Path
    tasks: dict[str, Task]
    others: dict[str, Task]

    def readers(self, name: str) -> Iterator[str]:
        """The steps that read a step's run."""
        directory = self.tasks[name].directory
        for reader, task in self.tasks.items():
            if any(source.directory == directory for sources in task.inputs.values() for source in sources):
                yield reader

    def files(self, name: str) -> Iterator[tuple[Path, Path | None, Path | None]]:
        """(file, a sibling, the same file of another run) for one file of each kind of a step's run."""
        here, there = (Path(tasks[name].directory) for tasks in (self.tasks, self.others))
        listed = [shard.name for data in _manifest(here).datasets.values() for shard in data.shards]
        kinds: dict[str, list[str]] = {}
        for file in sorted(listed):
            kinds.setdefault(f"{Path(file).parent}/{'.parquet' if file.endswith('.parquet') else file}", []).append(
                file
            )
        for files in [*kinds.values(), [MANIFEST_NAME]]:
            sibling = here / files[-1] if len(files) > 1 else None
            other = there / files[0]
            yield here / files[0], sibling, other if other.exists() else None


def build(folder: Path) -> Fuzz:
    """Runs everything twice, on two corpora."""
    made = [_run_all(folder / "runs", mixed_corpus(folder / str(seed), 150, seed), seed) for seed in (1, 2)]
    return Fuzz(root=folder / "runs", tasks=made[0], others=made[1])


def _run_all(root: Path, corpus: Path, seed: int) -> dict[str, Task]:
    tasks = chain(str(root), str(corpus), {"collect_text": {"source": f"corpus {seed}"}})
    for task in tasks.values():
        run(task)
    save_hf(lively_model(layers=1, seed=seed), corpus / "hf")
    tokenizer = future_input(tasks["train_tokenizer"], "tokenizer").given
    rows, cache, model = "pack_sequences", "cache_logits", "import_model"
    further: tuple[tuple[str, dict[str, Any], dict[str, str]], ...] = (
        (model, {}, {"weights": str(corpus / "hf"), "tokenizer": tokenizer}),
        (cache, {"draws": 8}, {"sequences": rows, "teacher": model}),
        ("audit_logits", {}, {"logits": cache, "sequences": rows, "teacher": model}),
        ("evaluate_model", {}, {"checkpoint": model, "heldout": rows, "sequences": rows}),
        ("generate_text", {"prompt": ("one", "two"), "max_new_tokens": 3}, {"checkpoint": model, "tokenizer": model}),
        ("export_model", {}, {"checkpoint": model, "tokenizer": model}),
    )
    for name, fields, given in further:
        stage = load_stage(name)
        config = stage.config(**fields)
        texts = {
            key: [f"{tasks[text].stage.name}/{tasks[text].fingerprint}" if text in tasks else text]
            for key, text in given.items()
        }
        task = Task(stage=stage, config=config, inputs=resolve_inputs(stage, config, texts, str(root)), root=str(root))
        run(task)
        tasks[name] = task
    return tasks


def run(task: Task) -> Manifest:
    open_model.cache_clear()
    for sources in task.inputs.values():
        for source in sources:
            vars(source).pop("manifest", None)  # as a new process reads it
    return run_task(task, Resources(device="cpu"), InProcess(), say=lambda _: None)


def outcome(fuzz: Fuzz, reader: str, damaged: str) -> str:
    """ "same", "named", "NAMELESS" or "SILENT": what the reader makes of a damaged run."""
    task = fuzz.tasks[reader]
    directory, aside = Path(task.directory), fuzz.root / "aside"
    before = (directory / MANIFEST_NAME).read_bytes()
    directory.rename(aside)
    try:
        run(task)
        return "same" if (directory / MANIFEST_NAME).read_bytes() == before else "SILENT"
    except VerdictError:
        return "named"
    except Exception as error:
        where = fuzz.tasks[damaged].directory
        named = exit_code(error) is not None and (where in str(error) or fuzz.tasks[damaged].fingerprint in str(error))
        if not named:
            print(f"{damaged} -> {reader}: {error!r:.300}", flush=True)
        return "named" if named else "NAMELESS"
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        aside.rename(directory)


def attack(fuzz: Fuzz, names: list[str], seed: int = SEED) -> dict[str, Counter[str]]:
    """Change -> number of readings by outcome, over one file of each kind of the steps `names`."""
    draw = random.Random(seed)
    counts: dict[str, Counter[str]] = {change: Counter() for change in CHANGES}
    for name in names:
        readers = list(fuzz.readers(name))
        for path, sibling, other in fuzz.files(name):
            content = path.read_bytes()
            for change, make in CHANGES.items():
                partner = sibling if change == "swap with a sibling" else other
                if (change.startswith("swap") and partner is None) or not content:
                    continue
                changed = make(draw, path, partner or path)
                if changed == content:
                    continue
                path.unlink()
                if changed is not None:
                    path.write_bytes(changed)
                for reader in readers:
                    counts[change][result := outcome(fuzz, reader, name)] += 1
                    if result == "SILENT":
                        print(f"SILENT: {change} of {path}, read by {reader}", flush=True)
                path.write_bytes(content)
    return counts


def table(counts: dict[str, Counter[str]]) -> list[str]:
    lines = [
        "| change | readings | named | not read, result the same | nameless | silent |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for change, counted in counts.items():
        figures = (counted.total(), counted["named"], counted["same"], counted["NAMELESS"], counted["SILENT"])
        lines.append(f"| {change} | {' | '.join(map(str, figures))} |")
    return lines


def _manifest(directory: Path) -> Manifest:
    manifest = read_manifest(str(directory))
    assert manifest is not None
    return manifest


def main(words: list[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        fuzz = build(Path(folder))
        counts = attack(fuzz, words or [name for name in fuzz.tasks if list(fuzz.readers(name))])
    print(*table(counts), sep="\n")
    return int(any(counted["SILENT"] or counted["NAMELESS"] for counted in counts.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
