"""Commands that look at what is there answer at once: they import neither torch nor Ray, which take seconds."""

import json
import subprocess
import sys
from pathlib import Path

from pipelines.engine import registry
from pipelines.engine.stage import load_stages
from pipelines.recipes import registry as recipes
from tests.programs.places import REPOSITORY

HEAVY = ["torch", "torch_xla", "jax", "ray", "transformers"]
LIGHT = [
    ["--help"],
    ["list"],
    ["list", "--runs", "--root", "ROOT"],
    ["status", "--root", "ROOT"],
    ["show", "collect_text"],
    ["show", "collect_text/0123456789abcdef", "--root", "ROOT"],
    ["submit", "--help"],
    ["account", "--help"],
    ["trace", "--checkpoint", "train_model/0123456789abcdef", "--step", "1", "--root", "ROOT"],
    ["trace", "--checkpoint", "a", "--step", "x"],
]
"""Command lines, correct and wrong, for which nothing is computed."""
SCRIPT = """
import contextlib, io, json, sys
from pipelines.__main__ import main
codes, lines, heavy = json.loads(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
for line, code in zip(lines, codes):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as error:
        got = main(line)
    assert got == code, (line, got, error.getvalue())
    assert not (imported := [name for name in heavy if name in sys.modules]), (line, imported)
"""


def test_a_command_that_only_looks_imports_no_torch(tmp_path: Path) -> None:
    lines = [[word.replace("ROOT", str(tmp_path)) for word in line] for line in LIGHT]
    codes = [2 if line[0] in ("trace", "show") and line != LIGHT[4] else 0 for line in LIGHT]
    words = [json.dumps(part) for part in (codes, lines, HEAVY)]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *words], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_summary_is_the_same_whether_a_stage_or_recipe_is_read_or_imported() -> None:
    assert {stage.name: stage.summary for stage in load_stages()} == {
        name: registry.summary(name) for name in registry.stage_names()
    }
    assert {name: recipes.load(name).summary for name in recipes.names()} == {
        name: recipes.summary(name) for name in recipes.names()
    }
    assert all(registry.summary(name).endswith(".") for name in registry.stage_names())
