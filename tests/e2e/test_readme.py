"""Every command in the README is run: here, by the other end-to-end tests, or by CI."""

import re
import shlex
from pathlib import Path
from xml.etree import ElementTree

import pytest
import tyro

from pipelines.__main__ import main
from pipelines.cli.words import take
from pipelines.cluster.submit import check_line
from pipelines.engine.registry import stage_names
from pipelines.fit import table as fit_table
from pipelines.fit.command import Command, request_of
from tests.programs.here import RunHere
from tests.programs.places import REPOSITORY

README = (REPOSITORY / "README.md").read_text()
LINES = [
    line for block in re.findall(r"^```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE) for line in block.splitlines()
]
MARKED = [line for line in LINES if line.endswith("# not run here")]
COMMANDS = [line.partition("  #")[0].strip() for line in LINES if line not in MARKED]
CI = (REPOSITORY / ".ci" / "run").read_text()
MAKE_LEAVES_OUT = (" --quiet", " --disable-pip-version-check")
"""options of the lines of `make .venv` that only make it print less"""


def test_the_readme_has_the_commands_that_are_checked_here() -> None:
    assert len(COMMANDS) >= 10
    assert [command for command in COMMANDS if command.startswith("make")] == ["make demo", "make test"]
    kinds = r"make |ray |python -m pipelines (list|show|plan|status|run|submit|fit|trace|replay)\b"
    others = [command for command in COMMANDS if not re.match(kinds, command)]
    assert others == [". .venv/bin/activate", *installs()]


def installs() -> list[str]:
    """The lines that install without make."""
    (block,) = [
        block for block in re.findall(r"^```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE) if "-m venv" in block
    ]
    return block.splitlines()


def test_what_is_not_run_needs_an_engine_or_a_tpu() -> None:
    assert len(MARKED) == 2
    assert [re.findall(r"infra/[\w./-]+", line) for line in MARKED] == [
        ["infra/requirements-tpu.txt"],
        ["infra/Dockerfile"],
    ]
    for line in MARKED:
        for name in re.findall(r"infra/[\w./-]+", line):
            assert (REPOSITORY / name).is_file(), name


def test_the_lines_without_make_are_those_of_make() -> None:
    """CI begins with `make .venv`."""
    makefile = (REPOSITORY / "Makefile").read_text()
    (version,) = re.findall(r"^UV_VERSION := (.*)$", makefile, re.MULTILINE)
    for text, value in (("$(BIN)", ".venv/bin"), ("$(PYTHON)", "python3"), ("$(UV_VERSION)", version)):
        makefile = makefile.replace(text, value)
    for option in MAKE_LEAVES_OUT:
        makefile = makefile.replace(option, "")
    rule = makefile.partition(".venv/.complete: requirements.txt\n")[2].partition("\n\n")[0]
    assert len(installs()) == 3
    for line in installs():
        assert line in rule, line


def test_the_figures_name_parts_of_the_benchmarks_and_targets_that_are_there() -> None:
    table = README.partition("## Figures")[2].partition("\n## ")[0]
    parts = [part for words in re.findall(r"`python -m tests\.benchmarks ([^`]*)`", table) for part in words.split()]
    there = (REPOSITORY / "tests" / "benchmarks" / "__main__.py").read_text()
    assert len(parts) >= 5
    assert [part for part in parts if f'"{part}":' not in there] == []
    targets = re.findall(r"`make ([\w-]+)`", README)
    makefile = (REPOSITORY / "Makefile").read_text()
    assert [target for target in targets if f"\n{target}:" not in makefile] == []


def test_links_to_files_lead_to_files() -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", README)
    assert len(links) >= 10
    assert [link for link in links if not (REPOSITORY / link).exists()] == []


def test_the_picture_shows_stages_and_has_colours_for_the_dark() -> None:
    (name,) = re.findall(r"!\[[^\]]*\]\((docs/images/[^)]*)\)", README)
    picture = (REPOSITORY / name).read_text()
    boxes = [text.text for text in ElementTree.fromstring(picture).iter() if text.get("class") == "name"]
    assert len(boxes) >= 10
    assert set(boxes) <= set(stage_names())
    assert "@media (prefers-color-scheme: dark)" in picture


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("make")])
def test_ci_runs_the_make_targets(command: str) -> None:
    (loop,) = re.findall(r"^for target in (.*); do\n", CI, re.MULTILINE)
    assert command.removeprefix("make ") in loop.split()
    assert 'make "$target"' in CI


def test_the_submitted_line_is_the_one_that_the_smoke_test_submits() -> None:
    (line,) = [command for command in COMMANDS if command.startswith("ray ")]
    words = shlex.split(line)
    assert words[:3] == ["ray", "job", "submit"]
    assert words[words.index("--working-dir") + 1 : words.index("--working-dir") + 3] == [".", "--"]
    assert words[words.index("--") + 1 :][:5] == ["python", "-m", "pipelines", "run", "smoke"]


@pytest.mark.parametrize(
    "command", [line for line in COMMANDS if re.match(r"python -m pipelines (list|show|plan|status)", line)]
)
def test_commands_that_only_tell_do(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "one.txt").write_text("A note.")
    words = shlex.split(command.replace("~", str(tmp_path)))
    assert main(words[3:]) == 0
    assert capsys.readouterr().out or "--runs" in words


def test_the_line_that_submits_is_one_that_a_cluster_would_get() -> None:
    """tests/e2e/test_jobs.py submits to a real one."""
    (line,) = [command for command in COMMANDS if command.startswith("python -m pipelines submit ")]
    words = shlex.split(line)[4:]
    rest, address = take(words, "--address")
    assert address is not None
    check_line(rest)


def test_the_question_of_fit_is_a_cell_of_the_table() -> None:
    """`make fit-table` compiles it, which takes minutes; here the line is read."""
    (line,) = [command for command in COMMANDS if command.startswith("python -m pipelines fit ")]
    asked = request_of(tyro.cli(Command, args=shlex.split(line)[4:]))
    assert asked in fit_table.requests().values()


@pytest.mark.parametrize(
    "command", [line for line in COMMANDS if re.match(r"python -m pipelines (trace|replay)", line)]
)
def test_questions_about_a_run_are_understood(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """tests/e2e/test_trace.py has a run to ask; here it is missing, which is all that is wrong."""
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(command)[3:]) == 2
    assert "no run 'train_model/0123456789abcdef" in capsys.readouterr().err


@pytest.mark.slow
def test_the_example_of_one_stage_after_another(run_here: RunHere, tmp_path: Path) -> None:
    lines = [command for command in COMMANDS if command.startswith("python -m pipelines run ")]
    assert [shlex.split(line)[4] for line in lines] == ["collect_text", "filter_text"]
    root = ["--root", str(tmp_path)]
    done = run_here(*shlex.split(lines[0])[3:], *root)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "collect_text").iterdir()
    done = run_here(*shlex.split(lines[1].replace("0123456789abcdef", run.name))[3:], *root)
    assert done.returncode == 0, done.stderr
