"""What a run has seen and whether it can be computed again, asked on the command line, without Ray."""

import shutil
from pathlib import Path

import pytest

from pipelines.recipes import registry as recipes
from pipelines.recipes.recipe import tasks_of
from tests.e2e.conftest import SmokeRun
from tests.programs import here

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def student(smoke: SmokeRun) -> str:
    assert smoke.returncode == 0, smoke.output[-4000:]
    return tasks_of(recipes.load("smoke"), str(smoke.root))["distilled"].directory


def asked(*words: str) -> list[str]:
    done = here.done(words)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_documents_and_steps_answer_for_each_other(student: str) -> None:
    heading, first, *_ = asked("trace", "--checkpoint", student, "--step", "3")
    assert heading.endswith("8 rows")
    row, named = first.split(": ")[1:3]
    document = named.split("[")[0]
    lines = asked("trace", "--checkpoint", f"{student}@10", "--document", document)
    assert lines[0].startswith(f"document {document}: seen, ")
    (of_row,) = (line for line in lines if f" {row} tokens" in line)
    assert of_row.endswith(": steps 3")
    assert asked("trace", "--checkpoint", student, "--row", row)[0].startswith(f"row {row}: steps 3 of train_model/")


def test_what_was_not_seen_yet_and_what_is_nowhere(student: str) -> None:
    _, first, *_ = asked("trace", "--checkpoint", student, "--step", "15")
    row = first.split(": ")[1]
    document = first.split(": ")[2].split("[")[0]
    lines = asked("trace", "--checkpoint", f"{student}/checkpoints/step-00000010", "--document", document)
    assert [line for line in lines if f" {row} tokens" in line][0].endswith("not yet")  # noqa: RUF015 - one of several
    assert "not seen; it is in no row" in asked("trace", "--checkpoint", student, "--document", "f" * 32)[0]
    refused = here.done(["trace", "--checkpoint", student, "--step", "99"])
    assert (refused.returncode, refused.stderr.strip().endswith("does not record; its last step is 20")) == (2, True)


def test_a_step_is_computed_again_and_a_changed_record_is_noticed(student: str, tmp_path: Path) -> None:
    (line,) = asked("replay", "--run", student, "--step", "13")
    assert line.endswith("steps 11 to 13 computed again: the same losses, gradients and weights, bit for bit")
    root = tmp_path / "runs"
    shutil.copytree(Path(student).parents[1], root)
    copy = root / Path(student).relative_to(Path(student).parents[1])
    moments = copy / "checkpoints" / "step-00000010" / "optimizer.safetensors"
    data = bytearray(moments.read_bytes())
    data[-1] ^= 1
    moments.write_bytes(data)
    refused = here.done(["replay", "--run", str(copy), "--step", "13"])
    assert refused.returncode == 2
    assert "optimizer.safetensors is damaged" in refused.stderr
