"""A checkpoint counts exactly when its COMMIT matches its files."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from data import storage
from training import checkpoint as module
from training.checkpoint import latest_checkpoint, list_checkpoints, load_checkpoint, read_rows, save_checkpoint
from training.optim import OptimizerState


def save(root: Path, step: int, **overrides: Any) -> str:
    weights = {"b": torch.arange(6.0).view(2, 3) + step, "a": torch.ones(4)}
    moments = OptimizerState(
        first={k: v * 2 for k, v in weights.items()}, second={k: v * 3 for k, v in weights.items()}
    )
    arguments: dict[str, Any] = {
        "weights": weights,
        "optimizer": moments,
        "state": {"tokens_seen": 10 * step},
        "tables": {"metrics": pa.table({"step": [step]})},
    }
    return save_checkpoint(str(root), step=step, **(arguments | overrides))


def test_a_checkpoint_reads_back_as_it_was_written(tmp_path: Path) -> None:
    uri = save(tmp_path, 3)
    found = load_checkpoint(uri)
    assert (found.step, found.state["tokens_seen"]) == (3, 30)
    assert found.weights["b"].tolist() == [[3, 4, 5], [6, 7, 8]]
    assert found.optimizer is not None
    assert found.optimizer.first["a"].tolist() == [2] * 4
    assert found.optimizer.second["a"].tolist() == [3] * 4
    assert load_checkpoint(uri, with_optimizer=False).optimizer is None


def test_large_weights_are_split_over_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARD_BYTES", 20)
    uri = save(tmp_path, 3)
    names = [name for name, _ in storage.list_files(uri)]
    assert "model-00001-of-00002.safetensors" in names
    assert "optimizer-00004-of-00004.safetensors" in names
    assert sorted(load_checkpoint(uri).weights) == ["a", "b"]


def test_the_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    commits = [(Path(save(tmp_path / name, 3)) / "COMMIT").read_bytes() for name in ("one", "two")]
    assert commits[0] == commits[1]


def test_the_newest_committed_checkpoint_is_found_and_rows_are_joined(tmp_path: Path) -> None:
    assert latest_checkpoint(str(tmp_path)) is None
    assert read_rows(str(tmp_path), "metrics") is None
    uris = [save(tmp_path, step) for step in (9, 10, 100)]
    assert list_checkpoints(str(tmp_path)) == uris
    assert latest_checkpoint(str(tmp_path)) == uris[-1]
    rows = read_rows(str(tmp_path), "metrics")
    assert rows is not None
    assert rows["step"].to_pylist() == [9, 10, 100]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    "harm",
    [
        lambda d: (d / "COMMIT").unlink(),
        lambda d: (d / "COMMIT").write_bytes(b""),
        lambda d: (d / "COMMIT").write_bytes(b"[1]"),
        lambda d: truncate(d / "model.safetensors"),
        lambda d: (d / "optimizer.safetensors").unlink(),
        lambda d: d.rename(d.parent / "step-00000007"),
        lambda d: d.rename(d.parent / "step-00000006.part"),
    ],
)
def test_what_is_not_whole_is_ignored_and_can_be_written_again(tmp_path: Path, harm: Any) -> None:
    older = save(tmp_path, 5)
    harm(Path(save(tmp_path, 6)))
    assert latest_checkpoint(str(tmp_path)) == older
    assert latest_checkpoint(str(tmp_path)) != save(tmp_path, 6)
    assert load_checkpoint(str(tmp_path / "step-00000006")).step == 6


def test_a_flipped_bit_is_refused_by_name(tmp_path: Path) -> None:
    uri = save(tmp_path, 6)
    path = Path(uri) / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        load_checkpoint(uri)


def test_a_directory_without_commit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a committed checkpoint"):
        load_checkpoint(str(tmp_path))


def test_a_committed_step_is_never_overwritten(tmp_path: Path) -> None:
    save(tmp_path, 6)
    with pytest.raises(RuntimeError, match="committed already"):
        save(tmp_path, 6)


def test_what_stops_the_commit_leaves_no_checkpoint(tmp_path: Path) -> None:
    def lost() -> None:
        raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        save(tmp_path, 6, before_commit=lost)
    assert latest_checkpoint(str(tmp_path)) is None


def test_commit_lists_every_other_file(tmp_path: Path) -> None:
    uri = save(tmp_path, 6)
    files = json.loads((Path(uri) / "COMMIT").read_text())["files"]
    assert sorted([*files, "COMMIT"]) == [name for name, _ in storage.list_files(uri)]
