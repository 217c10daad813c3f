import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from model import PAPER_VOCAB_SIZE, VOCAB_SIZE, Gemma2, gemma2_tiny, load_hf, save_hf
from tests.programs.reference import lively_model, random_tokens

EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture
def saved(tmp_path):
    """A model and the directory it was saved to."""
    model = lively_model(layers=2)
    save_hf(model, tmp_path / "model")
    return model, tmp_path / "model"


def edit_config(directory, **changes):
    """Changes keys of config.json; None removes one."""
    path = directory / "config.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def edit_tensors(directory, change):
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def assert_same(model: Gemma2, other: Gemma2):
    assert model.config == other.config
    assert list(model.state_dict()) == list(other.state_dict())
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == other.state_dict()[name].dtype
        assert torch.equal(tensor, other.state_dict()[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 40_000, 1])
def test_a_round_trip_changes_no_bit(tmp_path, dtype, shard_bytes):
    model = lively_model(layers=2, query_scale=20, rope_theta=500.0, norm_eps=1e-5, final_softcap=12.0).to(dtype)
    save_hf(model, tmp_path / "a", shard_bytes=shard_bytes)
    loaded = load_hf(tmp_path / "a", dtype=None)
    assert_same(model, loaded)
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    save_hf(loaded, tmp_path / "b", shard_bytes=shard_bytes)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_pickled_weights_are_read_when_there_are_no_safetensors(saved):
    model, directory = saved
    torch.save(dict(load_file(directory / "model.safetensors")), directory / "pytorch_model.bin")
    assert_same(model, load_hf(directory))
    (directory / "model.safetensors").unlink()
    assert_same(model, load_hf(directory))
    torch.save({"model.norm.weight": torch.zeros(64)}, directory / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"there are 1 tensors, and the configuration has 2 layers"):
        load_hf(directory)


def test_the_config_asks_transformers_for_the_attention_that_has_the_cap(saved):
    assert json.loads((saved[1] / "config.json").read_text())["_attn_implementation"] == "eager"


def test_shards_stay_within_their_size_and_are_indexed(tmp_path):
    model = lively_model(layers=2)
    save_hf(model, tmp_path, shard_bytes=300_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(model.state_dict())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in model.state_dict().values())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 1
    assert files == sorted(path.name for path in tmp_path.glob("*.safetensors"))
    for file in files:
        assert sum(tensor.nbytes for tensor in load_file(tmp_path / file).values()) <= 300_000


def test_weights_are_float32_unless_asked_otherwise(tmp_path):
    save_hf(lively_model(layers=1).to(torch.bfloat16), tmp_path)
    assert {parameter.dtype for parameter in load_hf(tmp_path).parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in load_hf(tmp_path, torch.bfloat16).parameters()} == {torch.bfloat16}


@pytest.mark.slow  # imports transformers
@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 40_000])
def test_transformers_loads_what_we_save_and_gives_our_logits(tmp_path, shard_bytes):
    from transformers import AutoModelForCausalLM

    model = lively_model(query_scale=20, rope_theta=500.0, norm_eps=1e-5, final_softcap=12.0, attention_softcap=7.0)
    save_hf(model, tmp_path, shard_bytes=shard_bytes)
    theirs, report = AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens = random_tokens(2, 20, model.config)
    with torch.no_grad():
        assert (theirs(tokens).logits - model(tokens)).abs().max() <= 1e-4


@pytest.mark.slow  # imports transformers
def test_we_load_what_transformers_saves(tmp_path):
    from tests.programs.reference import in_transformers

    model = lively_model(layers=2, rope_theta=500.0)
    in_transformers(model).save_pretrained(tmp_path)
    loaded = load_hf(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])
    assert loaded.config.rope_theta == 500.0


@pytest.mark.parametrize(
    "keys",
    [
        {"rope_theta": 700.0, "rope_parameters": None},
        {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 700.0}},
        {"rope_theta": 700, "rope_parameters": {"rope_type": "default", "rope_theta": 700.0}},
    ],
)
def test_rope_theta_is_read_from_either_place(saved, keys):
    edit_config(saved[1], **keys)
    assert load_hf(saved[1]).config.rope_theta == 700.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gemma3_text"}, "model_type = 'gemma3_text'"),
        ({"hidden_activation": "silu"}, "hidden_activation = 'silu'"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings = False"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"layer_types": ["full_attention", "full_attention"]}, "layer_types"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0}}, "rope_type = 'yarn'"),
        ({"rope_theta": 5.0}, "two values of rope_theta"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_type = 'linear'"),
        ({"rope_scaling": {"factor": 2.0}}, r"rope_scaling\.factor, but Gemma 2 has one rope"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, r"rope_parameters\.full_attention, but"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5"),
        ({"partial_rotary_factor": 0.25}, "partial_rotary_factor = 0.25"),
        ({"rms_norm_eps": float("inf")}, r"config\.json: norm_eps is inf, but must be a finite number"),
        ({"attn_logit_softcapping": float("nan")}, "attention_softcap is nan"),
        ({"num_hidden_layers": 10**9, "layer_types": None}, "tensors, and the configuration has 1000000000 layers"),
        ({"num_hidden_layers": 10**9}, "layer_types that are no list of 1000000000 types"),
        ({"layer_types": 7}, "layer_types that are no list of 2 types"),
        ({"hidden_size": 2**31 - 1, "intermediate_size": 2**31 - 1}, "sizes that no tensor can have|has shape"),
        ({"num_experts": 8}, "num_experts = '8', a key that Gemma 2 does not have"),
        ({"auto_map": {"AutoModel": "theirs.Model"}}, "auto_map"),
        ({"hidden_activation": None, "hidden_act": "relu"}, "hidden_act = 'relu'"),
        ({"sliding_window": None}, "no 'sliding_window'"),
        ({"num_hidden_layers": 0, "layer_types": None}, "layers is 0"),
        ({"intermediate_size": 64}, r"gate_proj.weight has shape \[128, 64\], not \[64, 64\]"),
        ({"vocab_size": 1000}, "embed_tokens.weight has 1024 rows, not 1000"),
    ],
)
def test_a_config_of_another_model_is_refused(saved, changes, message):
    edit_config(saved[1], **changes)
    with pytest.raises(ValueError, match=message):
        load_hf(saved[1])


def test_a_missing_tensor_is_refused_by_name(saved):
    edit_tensors(saved[1], lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is missing"):
        load_hf(saved[1])


def test_an_extra_tensor_is_refused_by_name(saved):
    edit_tensors(saved[1], lambda tensors: tensors.update({"model.layers.0.self_attn.q_norm.weight": torch.ones(32)}))
    with pytest.raises(ValueError, match=r"model\.layers\.0\.self_attn\.q_norm\.weight is not a tensor of this model"):
        load_hf(saved[1])


def test_a_misshaped_tensor_is_refused_by_name(saved):
    edit_tensors(saved[1], lambda tensors: tensors.update({"model.norm.weight": torch.ones(65)}))
    with pytest.raises(ValueError, match=r"model\.norm\.weight has shape \[65\], not \[64\]"):
        load_hf(saved[1])


def test_an_integer_tensor_is_refused_by_name(saved):
    edit_tensors(saved[1], lambda tensors: tensors.update({"model.norm.weight": torch.ones(64, dtype=torch.int8)}))
    with pytest.raises(ValueError, match=r"model\.norm\.weight holds torch\.int8"):
        load_hf(saved[1])


def test_a_stored_head_must_be_the_embedding(saved):
    model, directory = saved
    edit_tensors(directory, lambda tensors: tensors.update({"lm_head.weight": tensors[EMBEDDING].clone()}))
    assert_same(model, load_hf(directory))
    edit_tensors(directory, lambda tensors: tensors["lm_head.weight"][3].add_(1))
    with pytest.raises(ValueError, match=r"lm_head\.weight differs"):
        load_hf(directory)


def test_broken_or_absent_files_are_refused_by_name(saved, tmp_path):
    _, directory = saved
    with pytest.raises(ValueError, match=r"has no config\.json"):
        load_hf(tmp_path)
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors is not a whole safetensors file"):
        load_hf(directory)
    weights.unlink()
    with pytest.raises(ValueError, match=r"has no model\.safetensors"):
        load_hf(directory)
    (directory / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        load_hf(directory)


def test_a_missing_or_misplaced_shard_is_refused_by_name(tmp_path):
    save_hf(lively_model(layers=1), tmp_path, shard_bytes=100_000)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    content = shards[0].read_bytes()
    shards[0].write_bytes(shards[1].read_bytes())
    with pytest.raises(ValueError, match=r"but model\.safetensors\.index\.json names model-00002"):
        load_hf(tmp_path)
    shards[0].write_bytes(content)
    shards[1].unlink()
    with pytest.raises(ValueError, match=f"has no {shards[1].name}"):
        load_hf(tmp_path)


def test_a_directory_with_weights_is_not_written_over(saved):
    model, directory = saved
    with pytest.raises(ValueError, match=r"already holds model\.safetensors"):
        save_hf(model, directory)


def test_the_padding_rows_of_the_vocabulary_change_only_when_asked(tmp_path):
    config = gemma2_tiny(vocab_size=PAPER_VOCAB_SIZE, d_model=2, heads=1, kv_heads=1, head_dim=2, ffw_dim=2, layers=1)
    padded = Gemma2(config)
    save_hf(padded, tmp_path / "padded")
    assert_same(padded, load_hf(tmp_path / "padded"))

    cut = load_hf(tmp_path / "padded", vocab_size=VOCAB_SIZE)
    assert cut.config.vocab_size == VOCAB_SIZE
    table = padded.model.embed_tokens.weight
    assert torch.equal(cut.model.embed_tokens.weight, table[:VOCAB_SIZE])

    save_hf(cut, tmp_path / "cut")
    grown = load_hf(tmp_path / "cut", vocab_size=PAPER_VOCAB_SIZE).model.embed_tokens.weight
    assert torch.equal(grown[:VOCAB_SIZE], table[:VOCAB_SIZE])
    assert grown.shape == table.shape
    assert not grown[VOCAB_SIZE:].any()

    edit_config(tmp_path / "padded", vocab_size=VOCAB_SIZE)
    with pytest.raises(ValueError, match="give vocab_size=256000 to leave them out"):
        load_hf(tmp_path / "padded")
    assert load_hf(tmp_path / "padded", vocab_size=VOCAB_SIZE).config.vocab_size == VOCAB_SIZE
    with pytest.raises(ValueError, match="rows are changed only between 256000 and 256128"):
        load_hf(tmp_path / "cut", vocab_size=256001)


def test_keys_that_change_no_logit_are_ignored(saved):
    model, directory = saved
    edit_config(directory, torch_dtype="bfloat16", use_cache=False, num_beams=1, pruned_heads={}, is_decoder=False)
    assert load_hf(directory).config == model.config


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8])
def test_quantized_weights_are_refused_by_the_name_of_the_tensor(saved, kind):
    name = "model.layers.0.mlp.up_proj.weight"
    edit_tensors(saved[1], lambda tensors: tensors.update({name: tensors[name].to(kind)}))
    with pytest.raises(ValueError, match=rf"{name} holds {kind}, but weights are float32, bfloat16 or float16"):
        load_hf(saved[1])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_the_name_of_the_tensor(saved, value):
    edit_tensors(saved[1], lambda tensors: tensors["model.norm.weight"].fill_(value))
    with pytest.raises(ValueError, match=r"model\.norm\.weight holds values that are not finite"):
        load_hf(saved[1])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "[]", r"config\.json is JSON, but not an object"),
        ("config.json", "[" * 100_000, r"config\.json is not JSON"),
        ("model.safetensors.index.json", '{"weight_map": {"model.norm.weight": 1}}', "has no weight_map of tensors"),
        ("model.safetensors.index.json", '{"weight_map": [1]}', "has no weight_map of tensors"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "."}}', "names '.', which is no file of weights"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "config.json"}}', "names 'config.json', which is no"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "x.bin"}}', r"has no x\.bin"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "../.safetensors"}}', r"has no \.safetensors"),
        ("model.safetensors.index.json", "[]", r"index\.json is JSON, but not an object"),
    ],
)
def test_json_of_another_shape_is_refused_by_the_name_of_the_file(saved, name, content, message):
    (saved[1] / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_hf(saved[1])
