"""Text that is not ours cannot steer a terminal: every command shows escape sequences, and prints no line of a name."""

import ast
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from data.manifest import MANIFEST_NAME, RUN_NAME
from pipelines.__main__ import COMMANDS
from pipelines.engine import printed
from pipelines.engine.errors import run_command
from pipelines.engine.task import Task
from pipelines.recipes import registry as recipes
from pipelines.recipes.recipe import tasks_of
from tests.contracts.test_layout import modules, relative
from tests.pipelines.cli.test_plan import finish
from tests.programs import here, resealed
from tests.programs.places import REPOSITORY

HOSTILE = "\x1b[2J\x1b]0;owned\x07\r\x9b31m\u202e"
"""clears the screen, names the window, rings, goes back to the start of the line, colours, and writes right to left"""
FORGED = "\nfailed: a line that a name printed"
NONE = "0" * 16

PRINTS = {
    "pipelines/__main__.py": "stdout writes each line at once",
    "pipelines/engine/runner.py": "asks whether stderr is a terminal",
    "pipelines/engine/stage.py": "the bar, whose title and note are made visible",
    "pipelines/report/write.py": "the tables, whose cells are made visible",
    "pipelines/cluster/submit.py": "the log of a job, written to the wrapped stderr",
    "pipelines/cli/commands.py": "stdout that nobody reads any more is replaced",
}
"""module of pipelines that names a stream other than as `print(..., file=sys.stderr)` -> what for"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs with hostile text: in a manifest, in a log, and in the error of a failed run."""
    folder = tmp_path_factory.mktemp("printed") / f"root{HOSTILE}"
    tasks = tasks_of(recipes.load("smoke"), str(folder))
    for name in ("collect", "filter"):
        finish(tasks[name])
    change(tasks["collect"], MANIFEST_NAME, lambda document: document["dropped"].update({f"a{HOSTILE}{FORGED}": 1}))
    change(tasks["collect"], MANIFEST_NAME, rename_datasets)
    change(tasks["filter"], RUN_NAME, lambda document: document.update({"started": f"now{HOSTILE}{FORGED}"}))
    failed = folder / "pack_sequences" / NONE
    failed.mkdir(parents=True)
    (failed / "_FAILED.json").write_text(json.dumps({"error": f"UserError: {HOSTILE}{FORGED}"}))
    (folder / f"given{HOSTILE}.json").write_text("[]")
    return folder


def change(task: Task, name: str, edit: Callable[[dict[str, dict[str, object]]], None]) -> None:
    resealed.edit(Path(task.directory, name), edit)


def rename_datasets(document: dict[str, dict[str, object]]) -> None:
    document["datasets"] = {f"{name}{HOSTILE}{FORGED}": value for name, value in document["datasets"].items()}


LINES: tuple[tuple[str, ...], ...] = (
    ("list", f"a{HOSTILE}{FORGED}"),
    ("list", "--runs", "--root", "ROOT"),
    ("status", "--root", "ROOT"),
    ("status", f"a{HOSTILE}{FORGED}"),
    ("show", f"a{HOSTILE}{FORGED}"),
    ("show", "COLLECT", "--root", "ROOT"),
    ("plan", f"a{HOSTILE}{FORGED}"),
    ("plan", "smoke", "--root", "ROOT"),
    ("plan", "smoke", "--prices", "GIVEN"),
    ("plan", "smoke", f"--{HOSTILE}{FORGED}"),
    ("plan", "smoke", "--distilled.steps", f"1{HOSTILE}"),
    ("plan", "collect_text", "--input", f"/a{HOSTILE}{FORGED}"),
    ("plan", "collect_text", "--input", "ROOT", "--include", f"a{HOSTILE}"),
    ("account", "smoke", "--root", "ROOT"),
    ("run", f"a{HOSTILE}{FORGED}"),
    ("run", "collect_text", "--config", "GIVEN"),
    ("run", "collect_text", "--input", f"/a{HOSTILE}{FORGED}", "--root", "ROOT"),
    ("run", "collect_text", "--input", "ROOT", "--max-document-bytes", f"1{HOSTILE}"),
    ("run", "filter_text", "--text", "COLLECT", "--root", "ROOT"),
    ("submit", "collect_text", "--input", "a", "--root", f"/r{HOSTILE}", "--address", f"a{HOSTILE}{FORGED}"),
    ("submit", f"a{HOSTILE}{FORGED}", "--address", "http://127.0.0.1:1"),
    ("fit", "--model", "GIVEN", "--topology", "v5p:4x4x4", "--batch", "64"),
    ("fit", "--model", "gemma2_2b", "--topology", f"v5p:{HOSTILE}{FORGED}", "--batch", "64"),
    ("manifests", f"a{HOSTILE}{FORGED}", "--recipe", "demo", "--root", "gs://b/c", "--image", "i"),
    ("manifests", "filter", "--recipe", "demo", "--root", "gs://b/c", "--image", f"i{HOSTILE}", "--topology", HOSTILE),
    ("trace", "--checkpoint", f"a{HOSTILE}{FORGED}", "--step", "1"),
    ("trace", "--checkpoint", "ROOT", "--step", f"1{HOSTILE}"),
    ("replay", "--run", f"a{HOSTILE}{FORGED}", "--step", "1"),
    (f"a{HOSTILE}{FORGED}",),
)


def test_every_command_is_tried() -> None:
    assert {words[0] for words in LINES[:-1]} == set(COMMANDS)


@pytest.mark.parametrize("words", LINES, ids=lambda words: printed.one_line(" ".join(words))[:40])
def test_a_command_shows_what_is_not_ours(words: tuple[str, ...], root: Path) -> None:
    (collect,) = (root / "collect_text").iterdir()
    places = {"ROOT": str(root), "COLLECT": f"collect_text/{collect.name}", "GIVEN": str(root / f"given{HOSTILE}.json")}
    done = here.done([places.get(word, word) for word in words])
    text = done.stdout + done.stderr
    assert "owned" in text, "the line shows nothing that is not ours"
    assert not [character for character in text if not character.isprintable() and character != "\n"]
    assert not [line for line in text.splitlines() if line.startswith(FORGED.strip())]
    if done.returncode and words[0] != "account":
        assert done.returncode == 2


def test_the_manifest_that_show_prints_is_json(root: Path) -> None:
    (collect,) = (root / "collect_text").iterdir()
    document = json.loads(here.done(["show", f"collect_text/{collect.name}", "--root", str(root)]).stdout)
    assert f"a{HOSTILE}{FORGED}" in document["dropped"]


def test_text_is_written_in_the_characters_of_the_stream() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print("é\ud800\x1b[m\tπ", file=printed.Visible(stream))
    stream.flush()
    assert stream.buffer.getvalue() == b"\\xe9\\ud800\\x1b[m\t\\u03c0\n"  # type: ignore[attr-defined]


def test_streams_are_as_before_after_a_command() -> None:
    before = sys.stdout, sys.stderr
    inside = []
    run_command(lambda: inside.append((sys.stdout, sys.stderr)) or 0)
    ((out, err),) = inside
    assert isinstance(out, printed.Visible)
    assert isinstance(err, printed.Visible)
    assert not err.isatty()
    assert printed.unwrapped(err) is before[1]
    assert (sys.stdout, sys.stderr) == before


def test_the_traceback_of_a_bug_and_a_log_line_are_visible() -> None:
    program = "from pipelines.engine.printed import wrap; import logging; wrap(); logging.warning('a\\x1b[2Jb'); 1/0"
    program = program.replace("1/0", "raise KeyError('a') from ValueError('c\\x1b[2Jd')")
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False, env=os.environ
    )
    assert "a\\x1b[2Jb" in done.stderr
    assert "c\\x1b[2Jd" in done.stderr
    assert "\x1b" not in done.stderr


def test_streams_are_named_only_where_it_is_known_what_for() -> None:
    named = set()
    for path in modules("pipelines"):
        tree = ast.parse(path.read_text())
        plain = {
            keyword.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
            for keyword in node.keywords
            if keyword.arg == "file"
        }
        streams = {"sys.stdout", "sys.stderr", "sys.__stdout__", "sys.__stderr__"}
        if any(
            isinstance(node, ast.Attribute) and ast.unparse(node) in streams and node not in plain
            for node in ast.walk(tree)
        ):
            named.add(relative(path))
    assert named == set(PRINTS)
