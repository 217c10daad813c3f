"""One damaged file of one run: `list`, `status`, `plan` and `account` name it, and go on with the other runs."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from data.errors import UserError
from data.manifest import MANIFEST_NAME, RUN_NAME, Manifest, read_manifest
from data.sealed import seal
from pipelines.engine import config as configs
from pipelines.engine.inputs import Read, resolve
from pipelines.engine.runner import CONFIG_NAME
from pipelines.engine.task import Task
from pipelines.recipes import registry as recipes
from pipelines.recipes.recipe import save_recipe, tasks_of
from tests.pipelines.cli.test_plan import finish
from tests.programs import here, resealed

COMMANDS = (["list", "--runs"], ["status"], ["plan", "smoke"], ["account", "smoke"])
CONTENTS = (b"", b"\xff\xfe\x00", b"[]", b"{}", b"null", b"[" * 100_000, b'{"format": 1', b'{"config": 3}')


@pytest.fixture
def tasks(tmp_path: Path) -> dict[str, Task]:
    """Two finished steps of smoke."""
    tasks = tasks_of(recipes.load("smoke"), str(tmp_path))
    for name in ("collect", "filter"):
        finish(tasks[name])
    return tasks


def check_commands(root: Path, damaged: str, name: str, all_of_them: bool) -> None:
    """Each command names the damaged file, and shows the other run as before; `list` and `status` take no seconds."""
    for words in COMMANDS if all_of_them else COMMANDS[:2]:
        done = here.done([*words, "--root", str(root)])
        assert done.returncode == 0, (words, done.stderr)
        assert f"{damaged}/{name}" in done.stdout, (words, done.stdout)
        other = "filter" if "collect_text" in damaged else "collect"
        assert any(other in line and "damaged" not in line for line in done.stdout.splitlines()), done.stdout


@pytest.mark.parametrize("content", CONTENTS, ids=range(len(CONTENTS)))
def test_a_damaged_manifest_hides_no_other_run(tasks: dict[str, Task], tmp_path: Path, content: bytes) -> None:
    directory = tasks["filter"].directory
    Path(directory, MANIFEST_NAME).write_bytes(content)
    check_commands(tmp_path, directory, MANIFEST_NAME, all_of_them=content in (b"[]", b"{}"))


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"[]", b"[" * 100_000], ids=range(4))
def test_a_damaged_log_hides_no_other_run(tasks: dict[str, Task], tmp_path: Path, content: bytes) -> None:
    Path(tasks["filter"].directory, RUN_NAME).write_bytes(content)
    check_commands(tmp_path, tasks["filter"].directory, RUN_NAME, all_of_them=content == b"[]")


def test_a_run_without_its_log_is_shown_without_its_times(tasks: dict[str, Task], tmp_path: Path) -> None:
    Path(tasks["filter"].directory, RUN_NAME).unlink()
    root = ["--root", str(tmp_path)]
    (row,) = (line for line in here.done(["list", "--runs", *root]).stdout.splitlines() if "filter_text/" in line)
    assert "  no log  " in row
    (row,) = (line for line in here.done(["status", *root]).stdout.splitlines() if "filter_text/" in line)
    assert row.endswith(", no log")
    plan = here.done(["plan", "smoke", *root]).stdout
    assert f"no log: {tasks['filter'].directory} has no {RUN_NAME}, so whether its code changed is not known" in plan
    account = here.done(["account", "smoke", *root]).stdout
    assert f"no log: {tasks['filter'].directory} has no {RUN_NAME}, so its time, cores and chips" in account
    assert re.search("^not finished, or damaged: deduplicate, ", account, re.MULTILINE)


def test_the_saved_config_of_another_run_is_refused_in_its_place(tasks: dict[str, Task], tmp_path: Path) -> None:
    task = tasks["filter"]
    path = Path(task.directory, CONFIG_NAME)
    given = {name: [source.given for source in sources] for name, sources in task.inputs.items()}
    document = {"stage": task.stage.name, "config": configs.to_dict(task.config), "inputs": given}
    line = ["plan", "filter_text", "--root", str(tmp_path), "--config"]
    path.write_bytes(seal({**document, "fingerprint": task.fingerprint}))
    assert here.done([*line, str(path)]).returncode == 0
    path.write_bytes(seal({**document, "fingerprint": "0" * 16}))
    refused = here.done([*line, str(path)])
    assert (refused.returncode, refused.stdout) == (2, "")
    assert f"got {path} of the run '0000000000000000', exchanged with another file" in refused.stderr
    copy = tmp_path / "copy.json"
    path.rename(copy)
    assert here.done([*line, str(copy)]).returncode == 0


@pytest.mark.parametrize("damage", ["edited", "cut", "deep", "of another recipe", "without records"])
def test_a_damaged_file_of_a_recipe_is_named(tasks: dict[str, Task], tmp_path: Path, damage: str) -> None:
    path = Path(save_recipe(recipes.load("smoke"), tasks_of(recipes.load("smoke"), str(tmp_path)), str(tmp_path)))
    root = ["--root", str(tmp_path)]
    before = here.done(["status", *root]).stdout
    assert re.findall(r"^  (\w+) ", before, re.MULTILINE) == list(tasks), "in the order of the recipe"
    content = path.read_bytes()
    document = json.loads(content)
    changed = {
        "edited": content.replace(b'"max_characters": ', b'"max_characters": 9'),
        "cut": content[:-9],
        "deep": b"[" * 100_000,
        "of another recipe": seal({**document, "recipe": "demo"}),
        "without records": seal({**document, "steps": {name: {"fingerprint": ""} for name in document["steps"]}}),
    }
    assert changed[damage] != content
    path.write_bytes(changed[damage])
    for words in (["status"], ["plan", "smoke"]):
        done = here.done([*words, *root])
        assert done.returncode == 0, done.stderr
        (line,) = (line for line in done.stdout.splitlines() if str(path) in line)
        assert line.startswith("damaged: ")
        assert "`run smoke` writes it again" in line
    replayed = here.done(["plan", "smoke", "--config", str(path), *root])
    assert (replayed.returncode, str(path) in replayed.stderr) == (2, True)


WRONG = (
    ("stage", 3),
    ("version", "1"),
    ("fingerprint", None),
    ("config", []),
    ("inputs", {"text": "x"}),
    ("inputs", {"text": [{"reference": 1, "content": "x"}]}),
    ("dropped", {"too_long": "3"}),
    ("datasets", {"text": {"shards": [], "facts": []}}),
    ("datasets", {"text": {"shards": [1], "facts": {}}}),
    *(
        ("datasets", {"text": {"facts": {}, "shards": [{"name": "a", "rows": 1, "bytes": 1, "sha256": "0"} | wrong]}})
        for wrong in (
            {"rows": "1"},
            {"rows": True},
            {"bytes": -1},
            {"tokens": 1.5},
            {"sha256": 0},
            {"name": "../a"},
            {"name": "/etc/passwd"},
            {"name": "a/../../b"},
            {"name": "gs://bucket/a"},
            {"name": "a\x1b[31m"},
        )
    ),
)


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_manifest_with_a_value_of_another_type_is_refused(tasks: dict[str, Task], name: str, value: Any) -> None:
    path = Path(tasks["collect"].directory, MANIFEST_NAME)
    resealed.edit(path, lambda document: document.update({name: value}))
    with pytest.raises(UserError, match=f"{MANIFEST_NAME} is not a manifest of format 2"):
        read_manifest(tasks["collect"].directory)


def test_exchanged_folders_are_refused_by_both_names(tasks: dict[str, Task], tmp_path: Path) -> None:
    collected, filtered = (Path(tasks[name].directory) for name in ("collect", "filter"))
    aside = tmp_path / "aside"
    collected.rename(aside)
    filtered.rename(collected)
    aside.rename(filtered)
    message = f"got the manifest of filter_text/{filtered.name} in the folder {collected}: the folder was renamed"
    with pytest.raises(ValueError, match=message):
        tasks["collect"].manifest()
    with pytest.raises(ValueError, match=message):
        resolve(f"collect_text/{collected.name}", Read(dataset="text", help=""), str(tmp_path))
    done = here.done(["run", "smoke", "--root", str(tmp_path)])
    assert done.returncode == 2
    assert message in done.stderr
    for words in COMMANDS[:3]:
        assert message in here.done([*words, "--root", str(tmp_path)]).stdout


def test_a_manifest_of_another_stage_in_a_folder_is_refused(tasks: dict[str, Task], tmp_path: Path) -> None:
    """Its fingerprint was written into it."""
    path = Path(tasks["collect"].directory, MANIFEST_NAME)
    document = json.loads(Path(tasks["filter"].directory, MANIFEST_NAME).read_text())
    resealed.edit(path, lambda written: written.update(document, fingerprint=tasks["collect"].fingerprint))
    message = (
        "got a manifest of the stage 'filter_text' in .*, the folder of a run of 'collect_text'; remove the folder"
    )
    with pytest.raises(ValueError, match=message):
        tasks["collect"].manifest()
    with pytest.raises(ValueError, match=message):
        resolve(f"collect_text/{tasks['collect'].fingerprint}", Read(dataset="text", help=""), str(tmp_path))


def test_a_copy_under_another_name_is_read(tasks: dict[str, Task], tmp_path: Path) -> None:
    copy = tmp_path / "my tokens"
    Path(tasks["collect"].directory).rename(copy)
    manifest = read_manifest(str(copy))
    assert isinstance(manifest, Manifest)
    assert manifest.fingerprint == tasks["collect"].fingerprint
