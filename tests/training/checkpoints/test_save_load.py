"""A checkpoint counts exactly when its COMMIT matches its files."""

import json
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from data import storage
from data.changes import Changes, LeaseLost
from training.checkpoints import files as checkpoint_files
from training.checkpoints import save_load as module
from training.checkpoints.background import BackgroundSaver
from training.checkpoints.records import latest_checkpoint, list_checkpoints, list_directories, read_commit, read_rows
from training.checkpoints.retention import apply_retention, retire
from training.checkpoints.save_load import load_checkpoint, load_newest, save_checkpoint
from training.optim import OptimizerState


def save(root: Path | str, step: int, **overrides: Any) -> str:
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
    checkpoint = load_checkpoint(uri)
    assert (checkpoint.step, checkpoint.state["tokens_seen"]) == (3, 30)
    assert checkpoint.weights["b"].tolist() == [[3, 4, 5], [6, 7, 8]]
    assert checkpoint.optimizer is not None
    assert checkpoint.optimizer.first["a"].tolist() == [2] * 4
    assert checkpoint.optimizer.second["a"].tolist() == [3] * 4
    assert load_checkpoint(uri, with_optimizer=False).optimizer is None


def test_a_checkpoint_in_memory_is_written_and_read_like_any_other() -> None:
    root = f"memory://{uuid.uuid4().hex}"
    uri = save(root, 3)
    assert latest_checkpoint(root) == uri
    assert load_checkpoint(uri).weights["b"].tolist() == [[3, 4, 5], [6, 7, 8]]
    storage.write_bytes(f"{uri}/model.safetensors", b"damaged")
    with pytest.raises(module.Damaged):
        load_checkpoint(uri)
    storage.remove_tree(root)


def test_large_weights_are_split_over_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_files, "SHARD_BYTES", 20)
    uri = save(tmp_path, 3)
    names = [name for name, _ in storage.list_files(uri)]
    assert "model-00001-of-00002.safetensors" in names
    assert "optimizer-00004-of-00004.safetensors" in names
    assert sorted(load_checkpoint(uri).weights) == ["a", "b"]


def test_several_workers_write_the_files_that_one_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_files, "SHARD_BYTES", 20)
    expected = Path(save(tmp_path / "one", 3))
    dead = tmp_path / "three" / expected.name / "WRITTEN-before-00002"  # by one that was killed
    dead.parent.mkdir(parents=True)
    dead.write_text('{"model-00002-of-00002.safetensors": {"bytes": 1, "sha256": "of another state"}}')
    sizes = checkpoint_files.state_sizes({"a": 16, "b": 24}, average=False, statistics=False)
    wrote, saves = [], []
    with ThreadPoolExecutor(3) as pool:
        for rank in range(3):
            writer = checkpoint_files.Writer(rank=rank, count=3, attempt="now", sizes=sizes)
            names = {name for name in sizes if writer.keeps(name)}
            wrote.append(names)
            saves.append(pool.submit(save, tmp_path / "three", 3, writer=writer, **parts_of(names)))
    for future in saves:
        future.result()
    assert sorted(name for names in wrote for name in names) == sorted(sizes), "each by one"
    assert all(wrote)
    assert {path.name: path.read_bytes() for path in dead.parent.iterdir()} == {
        path.name: path.read_bytes() for path in expected.iterdir()
    }


def parts_of(names: set[str]) -> dict[str, Any]:
    """What `save` saves, of one worker."""
    weights = {"b": torch.arange(6.0).view(2, 3) + 3, "a": torch.ones(4)}

    def kept(prefix: str, factor: int) -> dict[str, torch.Tensor]:
        return {name: weight * factor for name, weight in weights.items() if prefix + name in names}

    moments = OptimizerState(first=kept("optimizer/first.", 2), second=kept("optimizer/second.", 3))
    return {"weights": kept("model/", 1), "optimizer": moments}


def test_without_the_files_of_another_worker_nothing_is_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_files, "NOTES_SECONDS", 0.1)
    monkeypatch.setattr(checkpoint_files, "LOOK_SECONDS", 0.01)
    with pytest.raises(
        RuntimeError, match=r"1 of 2 workers have not written their files of .*, so the checkpoint is not"
    ):
        save(tmp_path, 3, writer=checkpoint_files.Writer(count=2, attempt="now"))
    assert latest_checkpoint(str(tmp_path)) is None


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


def test_a_driver_whose_lease_is_lost_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "lease").write_text('{"token": "theirs"}')
    changes = Changes(directory=str(tmp_path), lease_uri=str(tmp_path / "lease"), token="ours")
    with pytest.raises(LeaseLost, match="lease lost"):
        save(tmp_path, 6, changes=changes)
    assert list_directories(str(tmp_path)) == []


def test_commit_lists_every_other_file(tmp_path: Path) -> None:
    uri = save(tmp_path, 6)
    files = json.loads((Path(uri) / "COMMIT").read_text())["files"]
    assert sorted([*files, "COMMIT"]) == [name for name, _ in storage.list_files(uri)]


def test_a_damaged_checkpoint_is_passed_over_in_a_line_and_written_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    older, newer = save(tmp_path, 5), save(tmp_path, 6)
    path = Path(newer) / "optimizer.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    newest = load_newest(str(tmp_path))
    assert newest is not None
    assert newest.uri == older
    (line,) = caplog.messages
    assert "step-00000006/optimizer.safetensors is damaged" in line
    assert "continuing from the newest whole checkpoint before it" in line
    assert load_checkpoint(save(tmp_path, 6)).step == 6


def test_retention_keeps_the_last_and_every_nth_and_all_rows(tmp_path: Path) -> None:
    for step in range(1, 9):
        save(tmp_path, step)
        apply_retention(str(tmp_path), keep_last=2, keep_every_steps=3)
    assert [int(uri[-1]) for uri in list_checkpoints(str(tmp_path))] == [3, 6, 7, 8]
    rows = read_rows(str(tmp_path), "metrics")
    assert rows is not None
    assert rows["step"].to_pylist() == list(range(1, 9))
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2 * 4
    assert load_checkpoint(save(tmp_path, 5)).step == 5  # a run that went back writes a retired step anew


def test_an_interrupted_retirement_is_finished(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    first = str(tmp_path / "step-00000001")
    retire(
        first, read_commit(first) or {}, Changes(directory=str(tmp_path))
    )  # TABLES is there, COMMIT is gone, the tensors are still there
    assert (tmp_path / "step-00000001" / "model.safetensors").exists()
    apply_retention(str(tmp_path), keep_last=1, keep_every_steps=0)
    assert not (tmp_path / "step-00000001" / "model.safetensors").exists()
    rows = read_rows(str(tmp_path), "metrics")
    assert rows is not None
    assert rows["step"].to_pylist() == [1, 2]


def test_an_interim_checkpoint_goes_when_a_regular_one_is_there(tmp_path: Path) -> None:
    save(tmp_path, 4, interim=True)
    assert load_checkpoint(str(tmp_path / "step-00000004")).interim
    apply_retention(str(tmp_path), keep_last=None, keep_every_steps=0)
    assert latest_checkpoint(str(tmp_path)) is not None
    save(tmp_path, 5)
    rows = read_rows(str(tmp_path), "metrics")
    assert rows is not None
    assert rows["step"].to_pylist() == [5]  # of a real run it holds the rows of step 4 too
    apply_retention(str(tmp_path), keep_last=None, keep_every_steps=0)
    assert not (tmp_path / "step-00000004").exists()


def test_a_save_that_fails_is_raised_where_the_training_is() -> None:
    saver = BackgroundSaver()

    def fail() -> None:
        raise RuntimeError("disk full")

    saver.submit(fail)
    with pytest.raises(RuntimeError, match="disk full"):
        saver.wait()
    saver.check()


@pytest.mark.slow
def test_checkpoints_live_on_an_object_store_too(gcs_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_server)
    root = "gs://checkpoints/run"
    fs, _ = storage.filesystem(root)
    assert isinstance(fs, fsspec.AbstractFileSystem)
    fs.mkdir("checkpoints")
    for step in (1, 2, 3):
        save(root, step)  # type: ignore[arg-type]
        apply_retention(root, keep_last=1, keep_every_steps=0)
    assert [uri[-1] for uri in list_checkpoints(root)] == ["3"]
    newest = load_newest(root)
    assert newest is not None
    assert newest.weights["b"].tolist() == [[3, 4, 5], [6, 7, 8]]
    rows = read_rows(root, "metrics")
    assert rows is not None
    assert rows["step"].to_pylist() == [1, 2, 3]
