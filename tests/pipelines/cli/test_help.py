"""What a newcomer types first: help of each command, a word in the wrong place, a Python without the packages."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.__main__ import COMMANDS
from tests.programs import here
from tests.programs.places import REPOSITORY


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help(command: str) -> None:
    words = {"run": ["smoke"], "plan": ["smoke"], "submit": ["smoke"], "manifests": ["train_model"]}.get(command, [])
    done = here.done([command, *words, "--help"])
    assert done.returncode == 0, done.stderr
    shown = "run" if command == "plan" else command  # the flags of both
    assert f"python -m pipelines {shown}" in done.stdout


@pytest.mark.parametrize("command", ["run", "plan"])
def test_help_before_a_name_is_answered(command: str) -> None:
    done = here.done([command, "--help"])
    assert (done.returncode, done.stderr) == (0, "")
    assert f"python -m pipelines {command} NAME [" in done.stdout
    assert f"`python -m pipelines {command} NAME --help` prints the flags of a stage or recipe." in done.stdout


@pytest.mark.parametrize(
    ("name", "flags"), [("smoke", ["--config", "--only", "--prices"]), ("train_model", ["--config", "--model NAME"])]
)
def test_the_help_of_a_stage_or_recipe_names_flags_of_the_command_too(name: str, flags: list[str]) -> None:
    further = here.done(["run", name, "--help"]).stdout.partition("Further flags:")[2]
    assert [flag for flag in flags if f"\n{flag}" not in further] == []


def test_show_names_the_flag_for_all_sizes_of_a_model() -> None:
    assert (
        "--model NAME: all sizes of a model together; NAME is gemma2_2b, " in here.done(["show", "train_model"]).stdout
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("list runs", "got 'runs' after list; give nothing, or --runs [--root ROOT]; did you mean --runs?"),
        ("status --rot x", "got '--rot x' after status; give nothing, or --root ROOT; did you mean --root?"),
        ("plan demo -input notes", "got '-input', which is no flag; a flag is -- and the name of the field, then"),
        ("plan demo teacher.steps=600", "got 'teacher.steps=600', which is no flag"),
        ("run demo --dry-run", " names are allowed, the most similar are "),
    ],
)
def test_a_word_in_the_wrong_place_gets_a_hint(line: str, message: str) -> None:
    done = here.done(line.split())
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr) < 400


@pytest.mark.parametrize("command", [["list", "--runs"], ["status"]])
def test_a_root_that_is_not_there_is_named_as_such(command: list[str], tmp_path: Path) -> None:
    done = here.done([*command, "--root", str(tmp_path / "none")])
    assert (done.returncode, done.stdout) == (0, f"no runs under {tmp_path}/none, which does not exist\n")


def test_a_python_without_the_packages_is_told_in_a_line() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            "-c",
            f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); import pipelines.__main__",
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "is not installed for" in line
    assert "run `make .venv` once" in line
