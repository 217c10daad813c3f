"""python -m tests.programs.fuzz [--keep] [STEP ...]: damages a file of each kind of each run, and reads the run.

    runs       every stage on small data (fuzz_runs.EXAMPLES), all in this process
    files      the first file of each kind that a manifest lists, the JSON files beside it, and the recipe's
    changes    flip, truncate, zero, swap with a sibling, swap with another run, older version, missing
    readers    the stages that read the run, the stage itself when it is run again, and the command line

Kinds of files come from the manifests, and readers from the inputs of the tasks, so a later stage is tried as it comes.
What a reading ends with:

    same        the reader's manifest, or the exit code and every line, are those of the undisturbed run
    named       an error, or a line that speaks of damage or of an unfinished run, names the file or its run
    exempt      the figures of an older version of a log that no manifest lists (times, speeds, versions) are shown;
                `show` prints the manifest of the same run in another set-up, without opening the files it lists
    NAMELESS    an error that is no user's error, or that names no file of the damaged run
    SILENT      anything else

With --keep, the counts of all steps are written to docs/fuzzing.json, of which `python -m tests.programs.fuzz_page`
makes docs/fuzzing.md.
"""

import contextlib
import functools
import io
import itertools
import random
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from data.manifest import MANIFEST_NAME, RUN_NAME, Manifest, read_manifest
from pipelines.cli import commands
from pipelines.cli.arguments import RecipeCommand, parse_recipe
from pipelines.engine.errors import exit_code, run_command
from pipelines.engine.reported import Report
from pipelines.engine.runner import CONFIG_NAME
from pipelines.engine.stage import VerdictError
from pipelines.engine.task import Task
from pipelines.recipes import registry
from pipelines.recipes.recipe import LAST_NAME, Recipe, save_recipe
from pipelines.report import write as report
from tests.programs import fuzz_page, fuzz_runs, here

SEED = 0
SAME, NAMED, EXEMPT, NAMELESS, SILENT = OUTCOMES = ("same", "named", "exempt", "NAMELESS", "SILENT")
FAULTS = (NAMELESS, SILENT)
OLDER = "older version"
REPORT = "report"
"""first word of the line for the report"""
JSON_FILES = (MANIFEST_NAME, RUN_NAME, CONFIG_NAME)
SPEAKS = re.compile(
    r"damaged|^error: |^failed: |\b(unfinished|not finished|no log|NOT the same|stopped|running|to run)\b", re.MULTILINE
)
"""words of a line that speaks of damage, or of a run that is not finished"""
Change = Callable[[random.Random, bytes], bytes | None]
"""(random numbers, content of a file) -> what the file becomes; None: it goes"""


def flipped(draw: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


CHANGES: dict[str, Change] = {
    "flip": flipped,
    "truncate": lambda draw, content: content[: draw.randrange(len(content))],
    "zero": lambda _, content: bytes(len(content)),
    "missing": lambda _, __: None,
}
"""changes that need no other file"""
EXCHANGES = ("swap with a sibling", "swap with another run", OLDER)
"""changes to the content of another file"""


@dataclass
class Fuzz:
    """The finished runs under one ROOT by step, the same runs made again, and the runs of another corpus."""

    root: Path
    tasks: dict[str, Task]
    others: dict[str, Task]
    older: dict[str, Task]
    manifests: dict[str, bytes] = field(default_factory=dict)
    """step -> its manifest before anything is damaged"""
    usual: dict[tuple[str, ...], here.Done] = field(default_factory=dict)
    """command line -> its result while nothing is damaged"""

    def __post_init__(self) -> None:
        self.manifests = {name: Path(task.directory, MANIFEST_NAME).read_bytes() for name, task in self.tasks.items()}

    def readers(self, name: str) -> Iterator[str]:
        """The steps that read a step's run."""
        directory = self.tasks[name].directory
        for reader, task in self.tasks.items():
            if any(source.directory == directory for sources in task.inputs.values() for source in sources):
                yield reader

    def files(self, name: str) -> Iterator[tuple[Path, dict[str, Path]]]:
        """(file, exchange -> the file whose content it gets), for one file of each kind of a step's run."""
        run, other, older = (Path(tasks[name].directory) for tasks in (self.tasks, self.others, self.older))
        kinds: dict[str, list[str]] = {}
        for file in sorted(shard.name for data in _manifest(run).datasets.values() for shard in data.shards):
            kind = f"{Path(file).parent}/{'.parquet' if file.endswith('.parquet') else file}"
            kinds.setdefault(kind, []).append(file)
        for file, *more in [*kinds.values(), *([name] for name in JSON_FILES)]:
            alike = [*more, *(first for first, *_ in kinds.values() if Path(first).name == Path(file).name)]
            sibling = next((name for name in reversed(alike) if name != file), "no sibling")
            partners = dict(zip(EXCHANGES, (run / sibling, other / file, older / file), strict=True))
            yield run / file, {change: path for change, path in partners.items() if path.exists()}

    def lines(self, name: str, path: Path) -> Iterator[list[str]]:
        """The command lines that read the run of a step, or could show what is in it."""
        task = self.tasks[name]
        root = ["--root", str(self.root)]
        reference = f"{task.stage.name}/{task.fingerprint}"
        yield ["list", "--runs", *root]
        yield ["status", *root]
        yield ["show", reference, *root]
        yield ["plan", task.stage.name, "--config", f"{task.directory}/{CONFIG_NAME}", *root]
        if path.name in JSON_FILES:
            yield ["plan", fuzz_runs.RECIPE, *root]
            yield ["account", fuzz_runs.RECIPE, *root]
        if path.name in JSON_FILES or type(task.stage.declares.report) is not Report:
            yield [REPORT, fuzz_runs.RECIPE]
        for trained in self.tasks.values():
            if trained.stage.job_of is not None and task.directory in self._asked(trained):
                yield ["trace", "--checkpoint", trained.directory, "--step", "1", *root]
                yield ["trace", "--checkpoint", trained.directory, "--document", self._document(trained), *root]
                yield ["replay", "--run", trained.directory, "--step", "2", *root]

    def _asked(self, trained: Task) -> set[str]:
        """The directories that trace and replay of a run may read: its own, its inputs, those of runs before it."""
        directories = {trained.directory}
        for sources in trained.inputs.values():
            for source in sources:
                directories.add(source.directory)
                for earlier in self.tasks.values():
                    if earlier.directory == source.directory and earlier.stage.job_of is not None:
                        directories |= self._asked(earlier)
        return directories

    def _document(self, trained: Task) -> str:
        """The id of a document that the run has seen."""
        words = ["trace", "--checkpoint", trained.directory, "--step", "1", "--root", str(self.root)]
        match = re.search(r"([0-9a-f]{32})\[", self.undisturbed(words).stdout)
        assert match is not None
        return match[1]

    def done(self, words: Sequence[str]) -> here.Done:
        """The result of a command line, or of the report that `run` of the recipe ends with."""
        if words[0] != REPORT:
            with mock.patch.object(commands, "parse_recipe", _parsed):
                return here.done(words)
        fuzz_runs.forget(self.tasks.values())
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run_command(lambda: bool(report.write(fuzz_runs.RECIPE, self.tasks, str(self.root))) - 1)
        return here.Done(list(words), code, out.getvalue(), err.getvalue())

    def undisturbed(self, words: Sequence[str]) -> here.Done:
        if tuple(words) not in self.usual:
            self.usual[*words] = self.done(words)
        return self.usual[*words]


def _parsed(recipe: Recipe, words: Sequence[str]) -> RecipeCommand:
    """`parse_recipe`, which takes most of the time of a line, once for the same words: only --config reads a file."""
    return parse_recipe(recipe, words) if "--config" in words else _parsed_before(recipe.name, tuple(words))


@functools.cache
def _parsed_before(name: str, words: tuple[str, ...]) -> RecipeCommand:
    return parse_recipe(registry.load(name), words)


def build(folder: Path) -> Fuzz:
    """Runs everything on two corpora, and on the first one again."""
    others = fuzz_runs.make(folder / "runs", folder / "2", 2)
    tasks = fuzz_runs.make(folder / "runs", folder / "1", 1)
    return Fuzz(root=folder / "runs", tasks=tasks, others=others, older=fuzz_runs.made_again(tasks, folder / "older"))


def outcome_of_stage(fuzz: Fuzz, reader: str, damaged: str) -> str:
    """What a stage makes of a damaged run."""
    task = fuzz.tasks[reader]
    directory, aside = Path(task.directory), fuzz.root / "aside"
    directory.rename(aside)
    try:
        fuzz_runs.run(task)
        return SAME if (directory / MANIFEST_NAME).read_bytes() == fuzz.manifests[reader] else SILENT
    except VerdictError:
        return NAMED
    except Exception as error:
        return _of_error(error, fuzz.tasks[damaged], f"{damaged} -> {reader}")
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        aside.rename(directory)


def outcome_again(fuzz: Fuzz, name: str) -> str:
    """What the stage itself makes of its damaged run, when the same line is given again."""
    task = fuzz.tasks[name]
    directory, copy = Path(task.directory), fuzz.root / "copy"
    shutil.copytree(directory, copy)
    manifest = directory / MANIFEST_NAME
    known = {
        fuzz.manifests[name],
        manifest.read_bytes() if manifest.exists() else b"",
    }  # done before, or made once more
    try:
        fuzz_runs.run(task)
        return SAME if manifest.read_bytes() in known else SILENT
    except Exception as error:
        return _of_error(error, task, f"{name} again")
    finally:
        shutil.rmtree(directory)
        copy.rename(directory)


def _of_error(error: Exception, damaged: Task, where: str) -> str:
    named = exit_code(error) is not None and (damaged.directory in str(error) or damaged.fingerprint in str(error))
    if not named:
        print(f"{where}: {error!r:.300}", flush=True)
    return NAMED if named else NAMELESS


def outcome_of_line(fuzz: Fuzz, words: list[str], names: Sequence[str]) -> str:
    """What a command line says of a damaged file. `names`: what names the file, or its run."""
    before = fuzz.undisturbed(words)
    try:
        after = fuzz.done(words)
    except Exception as error:
        print(f"{' '.join(words)}: {error!r:.300}", flush=True)
        return NAMELESS
    if (after.returncode, after.stdout, after.stderr) == (before.returncode, before.stdout, before.stderr):
        return SAME
    usual = {*before.stdout.splitlines(), *before.stderr.splitlines()}
    new = [line for line in [*after.stdout.splitlines(), *after.stderr.splitlines()] if line not in usual]
    # a plan has the state in one line, and the run in the next
    pairs = ("\n".join(pair) for pair in itertools.pairwise(["", *new]))
    if any(SPEAKS.search(pair) and any(name in pair for name in names) for pair in pairs):
        return NAMED
    print(f"{' '.join(words)}: {after.returncode} {' / '.join(new):.600}", flush=True)
    return NAMELESS if any(SPEAKS.search(line) for line in new) else SILENT


def attack(fuzz: Fuzz, names: Sequence[str], seed: int = SEED) -> dict[str, Counter[str]]:
    """Change -> number of readings by outcome, over one file of each kind of the steps `names`."""
    draw = random.Random(seed)
    counts: dict[str, Counter[str]] = {change: Counter() for change in (*CHANGES, *EXCHANGES)}
    for name in names:
        if name == fuzz_runs.RECIPE:
            attack_recipe(fuzz, draw, counts)
            continue
        for path, partners in fuzz.files(name):
            for words in fuzz.lines(name, path):
                fuzz.undisturbed(words)
            for change, _ in damaged(draw, path, partners):
                for reader, result in readings(fuzz, name, path):
                    shown = path.name == MANIFEST_NAME and reader.startswith("show ")
                    if result == SILENT and change == OLDER and (shown or path.name == RUN_NAME):
                        result = EXEMPT
                    counts[change][result] += 1
                    if result in FAULTS:
                        print(f"{result}: {change} of {path}, read by {reader}", flush=True)
    return counts


def damaged(draw: random.Random, path: Path, partners: dict[str, Path]) -> Iterator[tuple[str, bytes | None]]:
    """Each change of a file that changes its content, while the file is so changed."""
    content = path.read_bytes()
    if not content:
        return
    made = {change: make(draw, content) for change, make in CHANGES.items()}
    made |= {change: partner.read_bytes() for change, partner in partners.items()}
    for change, changed in made.items():
        if changed == content:
            continue
        path.unlink()
        if changed is not None:
            path.write_bytes(changed)
        yield change, changed
        path.write_bytes(content)


def readings(fuzz: Fuzz, name: str, path: Path) -> Iterator[tuple[str, str]]:
    """(reader, outcome) of everything that reads a step's run."""
    task = fuzz.tasks[name]
    if path.name not in (RUN_NAME, CONFIG_NAME):  # which no stage reads
        for reader in fuzz.readers(name):
            yield reader, outcome_of_stage(fuzz, reader, name)
    yield f"{name} again", outcome_again(fuzz, name)
    for words in fuzz.lines(name, path):
        by_step = [name] if words[0] in ("account", "status", REPORT) else []
        yield " ".join(words[:2]), outcome_of_line(fuzz, words, (task.directory, task.fingerprint, *by_step))


def attack_recipe(fuzz: Fuzz, draw: random.Random, counts: dict[str, Counter[str]]) -> None:
    """The same for the file with the last run of the recipe; its other run is that of the other corpus."""
    path, other = (fuzz.root / fuzz_runs.RECIPE / LAST_NAME, fuzz.root / "other.json")
    own, root = path.read_bytes(), ["--root", str(fuzz.root)]
    save_recipe(fuzz_runs.recipe_of(fuzz.root.parent / "2"), fuzz.others, str(fuzz.root))
    path.replace(other)
    path.write_bytes(own)
    lines = [["status", *root], ["plan", fuzz_runs.RECIPE, *root], ["account", fuzz_runs.RECIPE, *root]]
    lines += [["plan", fuzz_runs.RECIPE, "--config", str(path), *root]]
    for words in lines:
        fuzz.undisturbed(words)
    for change, _ in damaged(draw, path, {OLDER: other}):
        for words in lines:
            result = outcome_of_line(fuzz, words, (str(path),))
            # an earlier run of the recipe is as good a file as the newest, and without one the recipe never ran
            if result == SILENT and change in (OLDER, "missing"):
                result = EXEMPT
            counts[change][result] += 1
            if result in FAULTS:
                print(f"{result}: {change} of {path}, read by {' '.join(words)}", flush=True)


def _manifest(directory: Path) -> Manifest:
    manifest = read_manifest(str(directory))
    assert manifest is not None
    return manifest


def main(words: list[str]) -> int:
    names = [word for word in words if word != "--keep"]
    with tempfile.TemporaryDirectory() as folder:
        fuzz = build(Path(folder))
        parts = {}
        for name in names or [*fuzz.tasks, fuzz_runs.RECIPE]:
            parts[name] = attack(fuzz, [name])
            if "--keep" in words:
                fuzz_page.keep("files", name, parts[name])
    counts = fuzz_page.summed(parts)
    print(*fuzz_page.table_of_files(counts), sep="\n")
    return int(any(counted[fault] for counted in counts.values() for fault in FAULTS))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
