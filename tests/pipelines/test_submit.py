import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from pipelines import submit
from tests.chaos_log import REPOSITORY


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("", "needs the name of a stage or recipe"),
        ("smok --root /tmp/x", "did you mean 'smoke'"),
        ("smoke", "--root is not given; a job runs elsewhere: give gs://bucket/path, or an absolute path"),
        ("smoke --root runs", "--root is runs; a job runs elsewhere"),
        ("smoke --root /tmp/x --teacher.stepz 3", "did you mean"),
        ("smoke --root gs://bucket/x --only teachr", "no step 'teachr'; did you mean 'teacher'"),
        ("smoke --root gs://bucket/x --only", "--only needs a value"),
        ("gemma2_2b_distill --root gs://bucket/x", "gemma2_2b_distill needs --"),
        ("collect_text --root memory://x --input /x", "vanishes with it; give a directory or gs://bucket/path"),
        ("collect_text --root gs://bucket/x --shard-bytes -1", "shard_bytes is -1"),
        ("smoke --root gs://bucket/x --address", "--address needs a value"),
        ("smoke --root gs://bucket/x", "--address http://HOST:8265 of the cluster's head"),
        ("smoke --root gs://bucket/x --address http://127.0.0.1:1", "no cluster answers at http://127.0.0.1:1"),
    ],
)
def test_a_line_that_cannot_run_there_is_refused_here(
    line: str, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(submit.ADDRESS_VARIABLE, raising=False)
    with pytest.raises((ValueError, SystemExit)) as refused:
        submit.submit(line.split())
    assert told in str(refused.value) + capsys.readouterr().err


def test_steps_of_a_recipe_are_chosen_as_for_run() -> None:
    submit.check_line(["smoke", "--root", "gs://bucket/x", "--only", "collect,filter"])


def test_what_is_shipped_is_small_and_enough(tmp_path: Path) -> None:
    """Without environments, runs, git's own files; unpacked elsewhere it imports and knows every stage and recipe."""
    package = submit.pack(REPOSITORY, tmp_path)
    assert package.stat().st_size < 8 << 20
    with zipfile.ZipFile(package) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "there")
    tops = {name.partition("/")[0] for name in names}
    assert {"model", "data", "training", "infra", "pipelines", "requirements.txt"} <= tops
    assert not {".git", ".venv", ".venv-fit", ".venv-rival", ".cache", "runs", ".ci"} & tops
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [sys.executable, "-m", "pipelines", "list"]
    done = subprocess.run(words, cwd=tmp_path / "there", env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    here = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == here.stdout


def test_a_repository_with_data_in_it_is_refused_by_the_names_of_the_largest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(REPOSITORY / ".gitignore", tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "ignored.bin").write_bytes(os.urandom(300_000))
    (tmp_path / "corpus.jsonl").write_bytes(os.urandom(200_000))
    assert submit.check_size(tmp_path) < 300_000
    monkeypatch.setattr(submit, "MOST_BYTES", 100_000)
    with pytest.raises(ValueError, match=r"the largest are corpus\.jsonl \(200\.\d kB\).*move them out, or name them"):
        submit.check_size(tmp_path)
