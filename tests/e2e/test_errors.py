"""What a clumsy user does: exit code 2 and one sentence that helps, before any Ray is started."""

import shutil
from pathlib import Path

import pytest

from pipelines.__main__ import main
from tests.e2e.conftest import SmokeRun
from tests.programs.here import RunHere


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("run smok", "no stage or recipe 'smok'; did you mean 'smoke'?"),
        ("rum smoke", "no command 'rum'; did you mean 'run'?"),
        ("run train_tokenizer --vocab-sise 4", "no field 'vocab_sise'; did you mean 'vocab_size'?"),
        ("run smoke --teacher.stepz 3", "no field 'teacher.stepz'; did you mean 'teacher.steps'?"),
        ("run filter_text", "filter_text needs --text"),
        ("run filter_text --text filter_text/0123456789abcdef", "has no _MANIFEST.json"),
        ("run collect_text --input /nowhere", "no file or directory '/nowhere'"),
        ("run collect_text --config /nowhere.json --input .", "no config file '/nowhere.json'"),
        ("run collect_text --input . --shard-bytes 0", "shard_bytes is 0; allowed are 1 to 2**30"),
        ("show train_modle", "did you mean 'train_model'?"),
        ("plan", "got no name after plan; give the name of a stage or recipe first"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(
    line: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = line.split()
    if words[0] == "run":
        words += ["--root", str(tmp_path)]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_an_empty_directory_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "collect_text", "--input", str(tmp_path), "--root", str(tmp_path / "runs")]) == 2
    assert "no file to read" in capsys.readouterr().err


@pytest.mark.slow
def test_files_that_are_not_what_their_names_say(run_here: RunHere, tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"no parquet at all")
    done = run_here("run", "collect_text", "--input", str(tmp_path / "a.parquet"), "--root", str(tmp_path / "runs"))
    assert done.returncode == 2
    assert "a.parquet is not a Parquet file" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_inputs_that_do_not_fit_each_other_name_both(smoke: SmokeRun, run_here: RunHere, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    shutil.copytree(smoke.root, root)
    (packed,) = (path.name for path in (root / "pack_sequences").iterdir())
    (cached,) = (path.name for path in (root / "cache_logits").iterdir())
    done = run_here(
        "run", "pack_sequences", "--tokens", f"tokenize_text/{only(smoke, 'tokenize_text')}", "--sequence-length", "32",
        "--root", str(root),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (other,) = (path.name for path in (root / "pack_sequences").iterdir() if path.name != packed)
    done = run_here(
        "run", "train_model", "--sequences", f"pack_sequences/{other}", "--logits", f"cache_logits/{cached}",
        "--objective", "distill", "--steps", "2", "--global-batch", "8", "--model", "gemma2_tiny",
        "--model.vocab-size", "1024", "--root", str(root),
    )  # fmt: skip
    assert done.returncode == 2
    assert f"pack_sequences/{other}" in done.stderr
    assert f"pack_sequences/{packed}" in done.stderr


@pytest.mark.slow
def test_ids_beyond_the_models_vocabulary_are_refused(smoke: SmokeRun, run_here: RunHere) -> None:
    done = run_here(
        "run", "train_model", "--sequences", f"pack_sequences/{only(smoke, 'pack_sequences')}", "--steps", "2",
        "--global-batch", "8", "--model", "gemma2_tiny", "--model.vocab-size", "500", "--root", str(smoke.root),
    )  # fmt: skip
    assert done.returncode == 2
    assert "vocabulary of 500" in done.stderr


@pytest.mark.slow
def test_another_tokenizer_than_the_checkpoints_is_refused(smoke: SmokeRun, run_here: RunHere, tmp_path: Path) -> None:
    from data.tokenizer import train_tokenizer

    model = tmp_path / "other.model"
    model.write_bytes(train_tokenizer([Path(__file__).read_text() * 20], 1024))
    done = run_here(
        "run", "generate_text", "--checkpoint", f"train_model/{only(smoke, 'train_model')}", "--tokenizer", str(model),
        "--prompt", "def", "--root", str(smoke.root),
    )  # fmt: skip
    assert done.returncode == 2
    assert "give the tokenizer that it was trained with" in done.stderr


def only(smoke: SmokeRun, stage: str) -> str:
    """The fingerprint of one of the stage's finished runs: what other tests were refused lies beside them."""
    return min(path.parent.name for path in (smoke.root / stage).glob("*/_MANIFEST.json"))
