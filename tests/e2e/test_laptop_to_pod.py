"""Every line of docs/laptop-to-pod.md is run here or by the test it belongs to, or is marked as not run."""

import re
import shlex
from pathlib import Path

import pytest
import tyro
import yaml

from data import storage
from infra.kuberay import read_object
from pipelines.__main__ import main
from pipelines.cli.arguments import parse_recipe, parse_run, refuse_missing
from pipelines.fit import table as fit_table
from pipelines.fit.command import Command, request_of
from pipelines.recipes.recipe import save_recipe, tasks_of
from pipelines.recipes.registry import load
from tests.programs.places import REPOSITORY

PAGE = (REPOSITORY / "docs" / "laptop-to-pod.md").read_text()
LINES = [
    line for block in re.findall(r"^```\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE) for line in block.splitlines()
]
MARKED = [line for line in LINES if line.endswith("# not run here")]
COMMANDS = [line.partition("  #")[0].strip() for line in LINES if line not in MARKED]


def of(word: str) -> list[str]:
    """Lines of one subcommand."""
    return [line for line in COMMANDS if line.startswith(f"python -m pipelines {word} ")]


def test_what_is_marked_needs_a_cloud_or_a_server_of_others() -> None:
    programs = {shlex.split(line)[0] for line in MARKED}
    assert programs <= {"gcloud", "prometheus", "GF_PATHS_PROVISIONING=$PWD/infra/dashboards/provisioning", "docker",
                        "kubectl", "ray"}  # fmt: skip
    for line in MARKED:
        for name in re.findall(r"infra/[\w./-]+", line):
            assert (REPOSITORY / name).exists(), name


def test_every_other_line_is_tested() -> None:
    tested = [line for word in ("plan", "status", "show", "account", "manifests", "run", "fit") for line in of(word)]
    elsewhere = ("make demo", "export RAY_", "ray start --head", "ray job submit", "python -m pipelines submit")
    assert [line for line in COMMANDS if line not in tested and not line.startswith(elsewhere)] == []


def test_a_cluster_starts_as_the_end_to_end_tests_start_it() -> None:
    """tests/programs/cluster.py does, with free ports; tests/e2e/test_smoke.py submits."""
    cluster = (REPOSITORY / "tests" / "programs" / "cluster.py").read_text()
    (start,) = [line for line in COMMANDS if line.startswith("ray start")]
    for flag in shlex.split(start)[2:]:
        assert f'"{flag}' in cluster, flag
    (export,) = [line for line in COMMANDS if line.startswith("export RAY_")]
    for name, value in re.findall(r"(RAY_\w+)=(\S+)", export):
        assert f'"{name}": ' + ("secrets" if "$" in value else f'"{value}"') in cluster, name
    for submit in (line for line in COMMANDS if " submit " in line):
        assert submit in (REPOSITORY / "README.md").read_text(), "tests/e2e/test_readme.py holds it to its test"


@pytest.mark.parametrize("line", [*of("plan"), *of("show"), *of("status")])
def test_lines_that_only_tell(
    line: str,
    tmp_path: Path,
    gcs_server: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_server)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "one.txt").write_text("A note.")
    fs, _ = storage.filesystem("gs://laptop-to-pod/x")
    if not fs.exists("laptop-to-pod"):
        fs.mkdir("laptop-to-pod")
    words = shlex.split(line.replace("~", str(tmp_path)).replace("BUCKET", "laptop-to-pod"))
    assert main(words[3:]) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("line", of("manifests"))
def test_manifests_of_the_page(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(shlex.split(line)[3:]) == 0
    *_, job = yaml.safe_load_all(capsys.readouterr().out)
    assert read_object(job)


def test_the_jobs_of_a_recipe_have_all_that_they_need(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, gcs_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their entrypoints, in the order of the page, each with the recipe.json that the one before leaves."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_server)
    fs, _ = storage.filesystem("gs://jobs-of-the-page/x")
    if not fs.exists("jobs-of-the-page"):
        fs.mkdir("jobs-of-the-page")
    for name in ("text/one.txt", "evaluation/items.txt", "tokenizer.model", "gemma-2-27b/config.json"):
        storage.write_bytes(f"gs://jobs-of-the-page/{name}", b"Something.")
    lines = [line for line in of("manifests") if "train_model" not in line]
    steps = []
    for line in lines + [line for line in of("manifests") if "train_model" in line]:
        assert main(shlex.split(line.replace("BUCKET", "jobs-of-the-page"))[3:]) == 0
        *_, job = yaml.safe_load_all(capsys.readouterr().out)
        words = shlex.split(job["spec"]["entrypoint"])
        assert words[:5] == ["python", "-m", "pipelines", "run", "gemma2_2b_distill"]
        command, (step,) = parse_run(load(words[4]), words[5:])
        refuse_missing(command.recipe, [step])
        save_recipe(command.recipe, tasks_of(command.recipe, command.root), command.root)
        steps.append(step)
    assert command.recipe.not_given() == [], "the last one has everything"
    assert steps == [recipe_step.name for recipe_step in command.recipe.steps if recipe_step.name != "evaluate_train"]


def test_the_run_and_the_account_of_the_page_parse(tmp_path: Path) -> None:
    """The demo itself is CI's (`.ci/run`); `account` is tests/pipelines/account/test_amounts.py's."""
    (run,) = of("run")
    command = parse_recipe(load("demo"), shlex.split(run)[5:])
    assert command.recipe.input() == ("~/notes",)
    assert command.recipe.not_given() == []
    (account,) = of("account")
    assert parse_recipe(load("demo"), shlex.split(account)[5:]).root.endswith("/runs")


def test_the_fit_of_the_page_is_a_cell_of_the_table() -> None:
    (line,) = of("fit")
    asked = request_of(tyro.cli(Command, args=shlex.split(line)[4:]))
    assert asked in fit_table.requests().values()
