import json
import pickle

import pytest
import torch

from model import gemma2_tiny, load_gemma_pytorch
from tests.programs.reference import lively_model


def google_layout(model):
    """The weights as google/gemma_pytorch stores them."""
    config, state = model.config, dict(model.state_dict())
    state["embedder.weight"] = state.pop("model.embed_tokens.weight")
    for layer in range(config.layers):
        prefix = f"model.layers.{layer}.self_attn."
        parts = [state.pop(f"{prefix}{part}_proj.weight") for part in "qkv"]
        state[f"{prefix}qkv_proj.weight"] = torch.cat(parts)
    state["freqs_cis"] = torch.zeros(16, config.head_dim // 2, dtype=torch.complex64)
    return state


@pytest.fixture
def model():
    return lively_model(layers=2)


def assert_same(model, loaded):
    assert list(loaded.state_dict()) == list(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name


def test_a_ckpt_is_read_and_does_not_hang_on_its_file(model, tmp_path):
    path = tmp_path / "model.ckpt"
    torch.save({"model_state_dict": google_layout(model)}, path)
    loaded = load_gemma_pytorch(path, model.config)
    path.write_bytes(b"")
    assert_same(model, loaded)


def test_a_sharded_checkpoint_is_read(model, tmp_path):
    state = google_layout(model)
    names = list(state)
    files = {"one.bin": names[:5], "two.bin": names[5:]}
    for file, part in files.items():
        torch.save({name: state[name] for name in part}, tmp_path / file)
    weight_map = {name: file for file, part in files.items() for name in part}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert_same(model, load_gemma_pytorch(tmp_path, model.config))


def test_a_checkpoint_of_another_size_is_refused_by_name(model, tmp_path):
    path = tmp_path / "model.ckpt"
    state = google_layout(model)
    torch.save({"model_state_dict": state}, path)
    with pytest.raises(ValueError, match=r"qkv_proj\.weight has 256 rows, not 64 \+ 2 \* 64"):
        load_gemma_pytorch(path, gemma2_tiny(layers=2, heads=2))
    with pytest.raises(ValueError, match=r"model\.layers\.2\.\S+ is missing"):
        load_gemma_pytorch(path, gemma2_tiny(layers=3))


def test_a_quantized_checkpoint_is_refused(model, tmp_path):
    path = tmp_path / "model.ckpt"
    state = google_layout(model)
    state["model.layers.0.mlp.up_proj.weight_scaler"] = torch.ones(128)
    torch.save({"model_state_dict": state}, path)
    with pytest.raises(ValueError, match="quantized"):
        load_gemma_pytorch(path, model.config)


class Malicious:
    def __reduce__(self):
        return (eval, ("1 / 0",))


def test_a_checkpoint_that_would_run_code_is_refused(model, tmp_path):
    path = tmp_path / "model.ckpt"
    torch.save({"model_state_dict": Malicious()}, path)
    with pytest.raises(ValueError, match="not a checkpoint of plain tensors"):
        load_gemma_pytorch(path, model.config)
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match="not a checkpoint of plain tensors"):
        load_gemma_pytorch(path, model.config)
    with pytest.raises(ValueError, match="there is no"):
        load_gemma_pytorch(tmp_path / "none.ckpt", model.config)
