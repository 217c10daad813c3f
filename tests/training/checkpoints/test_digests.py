import json
from pathlib import Path

import pytest
import torch

from tests.training.checkpoints.test_save_load import save
from training.checkpoints import digests
from training.checkpoints.digests import tensor_digest, weights_hash
from training.checkpoints.records import COMMIT_NAME, read_commit
from training.checkpoints.save_load import load_checkpoint


def test_commit_holds_a_digest_of_each_tensor_and_the_hash_of_the_model_follows_from_it(tmp_path: Path) -> None:
    uri = save(tmp_path, 3)
    commit = read_commit(uri)
    assert commit is not None
    loaded = load_checkpoint(uri)
    for name, tensor in loaded.weights.items():
        assert commit["files"]["model.safetensors"]["tensors"][name] == tensor_digest(tensor)
    assert loaded.weights_sha256 == weights_hash(loaded.weights)
    assert all("tensors" in file for name, file in commit["files"].items() if name.endswith(".safetensors"))


def test_a_piece_has_its_own_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "PIECE_BYTES", 64)
    tensor = torch.arange(40, dtype=torch.bfloat16).reshape(4, 10)
    whole = tensor_digest(tensor)
    assert (whole["dtype"], whole["shape"], len(whole["pieces"])) == ("bfloat16", [4, 10], 2)
    changed = tensor.clone()
    changed[3, 9] = 7
    assert tensor_digest(changed)["pieces"][0] == whole["pieces"][0]
    assert tensor_digest(changed)["pieces"][1] != whole["pieces"][1]
    assert tensor_digest(torch.tensor(1.0))["shape"] == []
    assert tensor_digest(torch.zeros(0, 3))["pieces"] == []


def test_the_hash_tells_types_and_shapes_apart() -> None:
    ones = torch.ones(2, 3)
    hashes = {
        weights_hash({"a": ones}),
        weights_hash({"b": ones}),
        weights_hash({"a": ones.T}),
        weights_hash({"a": ones.reshape(6)}),
        weights_hash({"a": ones.view(torch.int32)}),
    }
    assert len(hashes) == 5


def test_a_commit_that_was_edited_is_no_commit(tmp_path: Path) -> None:
    path = Path(save(tmp_path, 3), COMMIT_NAME)
    text = path.read_bytes()
    document = json.loads(text)
    for changed in (
        text.replace(b'"files"', b'"filez"'),
        text.replace(b'"pieces"', b'"pieced"'),
        text.replace(b"self_sha256", b"self_sha255"),
        json.dumps(document).encode(),
        text[:-1],
    ):
        assert changed != text
        path.write_bytes(changed)
        assert read_commit(str(path.parent)) is None
    path.write_bytes(text)
    assert read_commit(str(path.parent)) is not None
