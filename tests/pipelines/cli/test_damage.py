"""One damaged file of one run: `list`, `status`, `plan` and `account` name it, and go on with the other runs."""

import json
from pathlib import Path
from typing import Any

import pytest

from data.errors import UserError
from data.manifest import MANIFEST_NAME, RUN_NAME, Manifest, read_manifest
from pipelines.engine.inputs import Read, resolve
from pipelines.engine.task import Task
from pipelines.recipes import registry as recipes
from pipelines.recipes.recipe import tasks_of
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
