"""A stage is one file: no other code knows its name, and a new one is listed, planned, run and reported as it is."""

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.prices import CONSTANTS, Prices
from infra.ray_session import RaySession
from pipelines.__main__ import main
from pipelines.account.amounts import estimate, measured, speeds
from pipelines.engine.registry import stage_names
from pipelines.engine.resources import Resources
from pipelines.engine.runner import run_task
from pipelines.engine.stage import load_stage, load_stages
from pipelines.recipes import registry as recipes
from pipelines.recipes.recipe import Recipe, Step, tasks_of
from pipelines.report.figures import read_figures
from tests.contracts.test_layout import PACKAGES, import_graph, imported_by, modules, relative
from tests.programs.fake_runs import FakeRuns, listed
from tests.programs.places import REPOSITORY

KNOW_STAGES = ("pipelines/stages/", "pipelines/recipes/", "pipelines/study/")
NAME = r"[a-z]+(?:_[a-z]+)+"
TO_RUN = re.compile(rf"\b(?:run|plan|show|runs of) ({NAME})\b(?!\()")
IN_BACKTICKS = re.compile(rf"`({NAME})(?=[`/@ ])")
NEW_STAGE = '''"""Counts the words of files."""

from dataclasses import dataclass

from data import storage
from data.manifest import Dataset
from data.shards import write_file
from pipelines.account.costs import core_speed
from pipelines.engine.cost import Cost, Work
from pipelines.engine.declaration import Declaration
from pipelines.engine.inputs import Read
from pipelines.engine.reported import Report
from pipelines.engine.stage import Outcome

VERSION = 1
READS = {"files": Read(help="files of text", many=True)}
WRITES = ("words",)


class CountCost(Cost):
    """A million bytes of text."""

    def estimate(self, step, prices):
        return Work(tokens=7.0, read_bytes=3.6e9)


DECLARES = Declaration(
    lease=True, cost=CountCost(speed=core_speed(1.0)), report=Report(units={"words": "word"}, tokens_fact="words")
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """What a word is."""

    separator: str = " "
    """what stands between two words"""


def plan_notes(config, inputs):
    yield f"words end at {config.separator!r}"


def run(context, config):
    assert context.lease is not None
    texts = [storage.read_bytes(uri).decode() for uri in context.input("files").uris()]
    words = [word for text in texts for word in text.split(config.separator)]
    shard = write_file(context.directory, "words/00000.txt", "\\n".join(words).encode(), rows=len(words))
    return Outcome(datasets={"words": Dataset(shards=(shard,), facts={"words": len(words)})})
'''


def strings(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of every string of a file; an f-string is one text with its values left out."""
    tree = ast.parse(path.read_text())
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield node.lineno, "".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.lineno, node.value


def decides(text: str) -> bool:
    """Whether the string holds a stage's name and is no sentence: a key, a prefix, a list of names."""
    words = text.split()
    named = [word for word in words if re.search(rf"\b({'|'.join(stage_names())})\b", word)]
    return bool(named) and len(named) == len(words)


def other_modules() -> list[Path]:
    return [path for path in modules(*PACKAGES) if not relative(path).startswith(KNOW_STAGES)]


def test_no_code_outside_of_stages_recipes_and_study_decides_by_the_name_of_a_stage() -> None:
    decisions = [
        f"{relative(path)}:{line}: {text!r}"
        for path in other_modules()
        for line, text in strings(path)
        if decides(text)
    ]
    assert decisions == []


@pytest.mark.parametrize("text", ["train_model", "speed.filter_text", "train_model/", "cache_logits audit_logits"])
def test_a_key_that_names_a_stage_would_be_seen(text: str) -> None:
    assert decides(text)
    assert not decides(f"run {text} again")


def test_no_module_outside_of_stages_recipes_and_study_imports_a_stage() -> None:
    imports = [
        f"{relative(path)}: {name}"
        for path in other_modules()
        for name in imported_by(path)
        if name.startswith("pipelines.stages.")
    ]
    assert imports == []


def defined_names() -> set[str]:
    """Functions, classes, fields, variables and modules of ours, which a document may put in backticks as well."""
    names = {path.stem for path in modules(*PACKAGES, "tests")}
    for path in modules(*PACKAGES, "tests"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Name):
                names.add(node.id)
            elif isinstance(node, ast.Attribute | ast.keyword | ast.arg):
                names.add(str(node.attr if isinstance(node, ast.Attribute) else node.arg))
    return names


def test_every_stage_that_a_message_or_a_document_says_to_run_is_there() -> None:
    there = {*stage_names(), *recipes.names()}
    verbs = {name.partition("_")[0] for name in stage_names()}
    texts = [
        (f"{relative(path)}:{line}", text)
        for path in modules(*PACKAGES)
        if not relative(path).startswith("pipelines/study/")
        for line, text in strings(path)
    ]
    pages = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
    texts += [(relative(page), page.read_text()) for page in pages]
    assert sum(len(TO_RUN.findall(text)) for _, text in texts) >= 10
    wrong = [f"{where}: run {name}" for where, text in texts for name in TO_RUN.findall(text) if name not in there]
    steps = {step.name for name in recipes.names() for step in recipes.load(name).steps}
    others = there | steps | defined_names()
    wrong += [
        f"{where}: `{name}`"
        for where, text in texts
        for name in IN_BACKTICKS.findall(text)
        if name.partition("_")[0] in verbs and name not in others
    ]
    assert wrong == []


def test_a_declared_input_is_one_that_the_stage_reads() -> None:
    for stage in load_stages():
        own_text = stage.declares.own_text
        assert own_text is None or stage.reads[own_text.input].external, stage.name


def test_a_stage_that_runs_a_model_takes_a_lease() -> None:
    assert [stage.name for stage in load_stages() if stage.declares.places and not stage.declares.lease] == []


def test_workers_of_the_data_plane_import_no_torch() -> None:
    """They load their stage's module: seconds, and half a gigabyte for each core, if torch came with it."""
    stages = [stage.name for stage in load_stages() if hasattr(stage.module, "WRITER")]
    assert len(stages) >= 6
    script = "import importlib, sys\n"
    script += f"for name in {stages}: importlib.import_module(f'pipelines.stages.{{name}}')\n"
    script += "assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_programs_have_names_and_files_of_their_own() -> None:
    programs = [program for stage in load_stages() for program in stage.declares.programs]
    assert len({program.name for program in programs}) == len({id(program) for program in programs})
    for program in programs:
        assert [name for name in program.sources if not (REPOSITORY / name).is_file()] == []
        tracer = f"{program.tracer.replace('.', '/')}.py"
        assert tracer in program.sources
        assert all_imports(tracer) - set(program.sources) <= NOT_TRACED, (
            "a change of them changes the program's numbers"
        )


NOT_TRACED = {
    *(f"data/{name}.py" for name in ("absent", "errors", "logits", "padding")),
    *(
        f"model/{name}.py"
        for name in (
            "__init__",
            "cache",
            "errors",
            "flops",
            "google_weights",
            "hf_config",
            "hf_weights",
            "sampling",
            "weight_files",
        )
    ),
    *(f"training/{name}.py" for name in ("errors", "setup")),
    *(f"training/backends/{name}.py" for name in ("abilities", "devices", "names", "torch_backend")),
}
"""what a tracer imports, or what that imports, of which nothing is in a traced program"""


def all_imports(file: str) -> set[str]:
    """Files of ours that a file imports, and those that they import."""
    graph = import_graph()
    names = [file.removesuffix(".py").replace("/", ".")]
    for name in names:
        names += sorted(graph[name] - set(names))
    files = {(REPOSITORY / name.replace(".", "/")).with_suffix(".py") for name in names}
    return {relative(path) for path in files if path.is_file()}


def test_a_run_of_a_stage_that_is_gone_is_reported_by_its_datasets(tmp_path: Path) -> None:
    runs = FakeRuns(root=str(tmp_path))
    runs.finish("old", "train_something_else", {"text": listed(12, 400, 99, text_bytes=2_000)})
    (shown,) = read_figures("demo", runs.tasks).steps
    assert (shown.made, shown.tokens, shown.text_bytes) == ("12 documents", 99, 2_000)
    (amount,) = measured(runs.tasks)
    assert (amount.tokens, amount.flops, amount.trains) == (99, 0.0, False)


@pytest.fixture
def new_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a stage that is one file more in the folder of stages."""
    folder = tmp_path / "stages"
    folder.mkdir()
    (folder / "count_words.py").write_text(NEW_STAGE)
    package = importlib.import_module("pipelines.stages")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    yield "count_words"
    load_stage.cache_clear()
    monkeypatch.delitem(importlib.import_module("sys").modules, "pipelines.stages.count_words", raising=False)
    monkeypatch.delattr(package, "count_words", raising=False)


def test_a_new_file_is_a_stage_that_is_listed_shown_and_planned(
    new_stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("one two three")
    assert main(["list"]) == 0
    assert re.search(rf"{new_stage} +Counts the words of files\.", capsys.readouterr().out)
    assert main(["show", new_stage]) == 0
    assert "--separator = ' ': what stands between two words" in capsys.readouterr().out
    assert main(["plan", new_stage, "--files", str(tmp_path / "a.txt"), "--root", str(tmp_path / "runs")]) == 0
    assert "words end at ' '" in capsys.readouterr().out


def test_a_new_stage_runs_and_is_reported_and_accounted(
    new_stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("one two three")
    config = load_stage(new_stage).config()
    step = Step(name="count", stage=new_stage, config=config, inputs={"files": (str(tmp_path / "a.txt"),)})
    recipe = Recipe(name="small", summary="Small.", steps=(step,))
    assert recipe.outside() == {"count_files": ("count", "files")}
    tasks = tasks_of(recipe, str(tmp_path / "runs"))
    session = RaySession(None)
    run_task(tasks["count"], Resources(), session, lambda text: None)
    session.close()
    (shown,) = read_figures(recipe.name, tasks).steps
    assert (shown.made, shown.tokens) == ("3 words", 3)
    prices = Prices(constants={**CONSTANTS, **speeds()})
    (before,) = estimate(recipe, prices)
    assert (before.tokens, before.core_hours) == (7.0, 1.0)
    (after,) = measured(tasks)
    assert after.stored == {"words": 13.0}
    assert main(["list", "--runs", "--root", str(tmp_path / "runs")]) == 0
    assert f"{new_stage}/{tasks['count'].fingerprint}" in capsys.readouterr().out


def test_speeds_of_stages_are_constants_that_a_file_replaces(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prices.json").write_text('{"speed.filter_text": 13}')
    assert main(["plan", "demo", "--root", str(tmp_path), "--prices", str(tmp_path / "prices.json")]) == 0
    assert "speed.filter_text = 13 MB/s a core" in capsys.readouterr().out
