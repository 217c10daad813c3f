"""Clumsy command lines and damaged files: each ends with one line that names what is wrong, and exit code 2."""

import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import sources
from data.errors import UserError
from data.sealed import seal
from model.hf_config import config_from_hf
from pipelines import __main__
from pipelines.checkpoints.loaded import model_config_at
from pipelines.checkpoints.trained_run import open_run
from pipelines.cli import commands
from pipelines.engine.config import canonical_json
from pipelines.engine.errors import exit_code
from pipelines.engine.shard_map import _finished
from pipelines.stages.train_model import parse_phase
from tests.programs.places import REPOSITORY

MANY_DIGITS = "9" * 5000
"""more than Python turns into an integer"""
DEEP = "[" * 100_000
"""deeper than Python parses"""
FIT = ("fit", "--model", "gemma2_2b", "--batch", "64", "--topology")
COLLECT = ("plan", "collect_text", "--input", str(REPOSITORY / "README.md"))
FINGERPRINT = "0" * 16


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["plan", "collect_text", "--input", "a\0b"], "with a null byte"),
        (["plan", "collect_text", "--input", "memory://a/**b"], "the glob 'memory://a/**b', which is not valid"),
        (["plan", "collect_text", "--input", "x" * 5000], "no file or directory"),
        ([*COLLECT, "--source", "\udcff"], "source is '\\udcff', which is not UTF-8"),
        ([*COLLECT, "--root", "gs://My Bucket/a"], "with the bucket 'My Bucket'"),
        ([*COLLECT, "--root", "x" * 300], "give a path with shorter names"),
        ([*COLLECT, "--mesh", f"data={MANY_DIGITS}"], "as in data=16,model=4"),
        ([*COLLECT, "--mesh", "data=²"], "as in data=16,model=4"),
        (["plan", "filter_text", "--text", f"collect_text/{FINGERPRINT}@{MANY_DIGITS}"], "which is no run and no path"),
        ([*FIT, f"v5p:{MANY_DIGITS}x4x4"], "a v5p slice has 3 dimensions"),
        ([*FIT, "v5p:²x4x4"], "a v5p slice has 3 dimensions"),
        (["manifests", "filter", "--recipe", "demo", "--root", "gs://b/c", "--image", "i", "--cpu-workers", "²:3"],
         "got --cpu-workers '²:3'; give FEWEST:MOST"),
        (["submit", "collect_text", "--root", "/a", "--input", "b", "--address", "http://[::1"], "http://HOST:8265"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_clumsy_line_is_told_in_one_line(words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert expected in line


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", DEEP.encode()], ids=["cut", "list", "bytes", "deep"])
@pytest.mark.parametrize(
    "words",
    [
        ["plan", "collect_text", "--config", "FILE"],
        ["plan", "demo", "--prices", "FILE"],
        ["fit", "--topology", "v5p:4x4x4", "--batch", "64", "--model", "FILE"],
    ],
    ids=lambda words: words[-2],
)
def test_a_file_of_json_that_is_none_is_named(
    words: list[str], content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "given.json"
    path.write_bytes(content)
    assert __main__.main([str(path) if word == "FILE" else word for word in words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line


@pytest.mark.parametrize("text", ["0:web=e", "0:web=--", "0:web=1e", "0:web=1e+", "0:web=.", f"{MANY_DIGITS}:web=1"])
def test_a_mixture_without_numbers_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="mixture phase") as caught:
        parse_phase(text)
    assert exit_code(caught.value) == 2


@pytest.mark.parametrize(
    "wrong",
    [{"rope_theta": "x"}, {"rope_scaling": [1]}, {"hidden_size": 10**30}, {"hidden_size": "x"}, {"head_dim": None}],
    ids=str,
)
def test_a_config_of_another_shape_is_refused(wrong: dict[str, object]) -> None:
    sizes = {
        "model_type": "gemma2", "vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 32, "sliding_window": 8,
        "query_pre_attn_scalar": 8,
    }  # fmt: skip
    assert config_from_hf(sizes).d_model == 16
    with pytest.raises(ValueError, match=r"config\.json|must be") as caught:
        config_from_hf({**sizes, **wrong})
    assert exit_code(caught.value) == 2


@pytest.mark.parametrize(
    ("name", "act"),
    [
        ("_MANIFEST.json", lambda root, run: __main__.main(["show", f"train_model/{FINGERPRINT}", "--root", root])),
        ("_CONFIG.json", lambda root, run: __main__.main(["trace", "--checkpoint", run, "--step", "1"])),
    ],
)
def test_a_damaged_file_of_a_run_is_named(
    name: str, act: Callable[[str, str], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "train_model" / FINGERPRINT
    run.mkdir(parents=True)
    empty = {"format": 1, "stage": "train_model", "version": 1, "fingerprint": FINGERPRINT, "config": {}, "inputs": {}}
    (run / "_MANIFEST.json").write_text(json.dumps({**empty, "datasets": {}, "dropped": {}}))
    (run / name).write_bytes(b"{\xff")
    assert act(str(tmp_path), str(run)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{run}/{name}" in line


@pytest.mark.parametrize("inputs", [{}, {"sequences": 3}, {"sequences": ["a"], "other": ["b"]}], ids=str)
def test_a_saved_config_that_fits_no_run_is_refused(inputs: dict[str, object], tmp_path: Path) -> None:
    document = {"stage": "train_model", "config": {}, "inputs": inputs}
    (tmp_path / "_CONFIG.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"_CONFIG\.json") as caught:
        open_run(str(tmp_path), str(tmp_path))
    assert exit_code(caught.value) == 2


@pytest.mark.parametrize("content", [b"", b"\xff", b"{}", b'{"index": 0, "shards": {"text": [{}]}}'])
def test_a_damaged_receipt_is_named(content: bytes, tmp_path: Path) -> None:
    receipt = tmp_path / "_receipts" / "collect-0" / "00000.json"
    receipt.parent.mkdir(parents=True)
    receipt.write_bytes(content)
    with pytest.raises(ValueError, match="which makes its shard again") as caught:
        _finished(str(tmp_path), "collect-0", 1)
    assert exit_code(caught.value) == 2


@pytest.mark.parametrize("kind", ["pipe", "device", "broken link"])
def test_a_config_file_that_might_never_end_is_refused(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else "nowhere")
    assert __main__.main(["run", "collect_text", "--config", str(path)]) == 2
    assert f"got the config file '{path}', which is a {kind}" in capsys.readouterr().err


def test_a_number_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="give a finite number") as caught:
        canonical_json({"a": float("nan")})
    assert exit_code(caught.value) == 2


def test_parquet_with_a_time_that_python_cannot_hold_is_read_as_text(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    far = pa.array([1 << 60], pa.timestamp("us"))
    pq.write_table(pa.table({"text": ["a"], "when": far}), path)
    (record,) = sources.read_records("a.parquet", str(path), sources.Options(metadata_fields=("when",)))
    assert isinstance(record, sources.Record)
    assert set(record.metadata) == {"when"}
    assert isinstance(record.metadata["when"], str)


def test_parquet_with_two_columns_of_one_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(twice, path)
    with pytest.raises(UserError, match="has 2 columns 'text'"):
        list(sources.read_records("a.parquet", str(path), sources.Options()))


def test_a_recipe_goes_on_where_nobody_reads_its_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed:
        def write(self, text: str) -> int:
            raise BrokenPipeError

        def flush(self) -> None:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stdout", Closed())
    for _ in range(2):
        commands._tell("[1/14] collect: running")
    sys.stdout.close()  # what it opened instead


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (b"{", r"state\.json is not JSON"),
        (b"\xff", r"state\.json is not JSON"),
        (DEEP.encode(), r"state\.json is not JSON"),
        (b"[]", r"state\.json holds no JSON object"),
        (b"{}", r"state\.json has no identity\.config\.model"),
        (b'{"identity": []}', r"state\.json has no identity\.config\.model"),
        (b'{"identity": {"config": {"model": 3}}}', "it must be an object of fields"),
    ],
)
def test_a_state_that_is_damaged_with_its_commit_is_named(state: bytes, message: str, tmp_path: Path) -> None:
    uri = committed(tmp_path, state)
    with pytest.raises(ValueError, match=message) as caught:
        model_config_at(uri)
    assert exit_code(caught.value) == 2
    assert uri in str(caught.value)


@pytest.mark.parametrize(
    "file",
    [3, [], {}, {"bytes": 2}, {"bytes": 2, "sha": "0"}, {"bytes": 2, "sha256": 0}, {"bytes": "2", "sha256": "0"}],
)
def test_a_commit_with_other_keys_commits_nothing(file: object, tmp_path: Path) -> None:
    uri = committed(tmp_path, b"{}", file)
    with pytest.raises(ValueError, match="is not a committed checkpoint") as caught:
        model_config_at(uri)
    assert exit_code(caught.value) == 2
    assert uri in str(caught.value)


def committed(folder: Path, state: bytes, file: object = None) -> str:
    """A checkpoint of a state alone, whose COMMIT fits it."""
    checkpoint = folder / "step-00000001"
    checkpoint.mkdir()
    (checkpoint / "state.json").write_bytes(state)
    right = {"bytes": len(state), "sha256": hashlib.sha256(state).hexdigest()}
    files = {"state.json": right if file is None else file}
    (checkpoint / "COMMIT").write_bytes(seal({"format": 2, "step": 1, "files": files}))
    return str(checkpoint)
