import math

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from model import Cache, Gemma2, attend, gemma2_2b, gemma2_tiny
from tests.programs.reference import lively_model, random_tokens


def by_hand(model, tokens):
    """Logits [T, V] of one document in float64, written from the paper's description and without the model's code."""
    config = model.config
    weights = {name: tensor.double() for name, tensor in model.state_dict().items()}
    T, H = len(tokens), config.head_dim

    def norm(x, name):
        return x / (x.pow(2).mean(-1, keepdim=True) + config.norm_eps).sqrt() * (1 + weights[name])

    def turned(heads):
        angles = torch.tensor([[t / config.rope_theta ** (2 * i / H) for i in range(H // 2)] for t in range(T)])
        turn = torch.polar(torch.ones(T, H // 2, dtype=torch.float64), angles.double())
        pairs = torch.complex(heads[..., : H // 2], heads[..., H // 2 :]) * turn[:, None]
        return torch.cat((pairs.real, pairs.imag), dim=-1)

    table = weights["model.embed_tokens.weight"]
    x = table[tokens] * math.sqrt(config.d_model)
    for layer in range(config.layers):
        prefix = f"model.layers.{layer}."
        projected = norm(x, prefix + "input_layernorm.weight")
        q, k, v = ((projected @ weights[f"{prefix}self_attn.{part}_proj.weight"].T).view(T, -1, H) for part in "qkv")
        q, k = turned(q), turned(k)
        heads = []
        for head in range(config.heads):
            shared = head // (config.heads // config.kv_heads)
            scores = q[:, head] @ k[:, shared].T / math.sqrt(config.query_scale)
            scores = config.attention_softcap * torch.tanh(scores / config.attention_softcap)
            distance = torch.arange(T)[:, None] - torch.arange(T)[None]
            hidden = (distance < 0) | ((distance >= config.window) if layer in (0, 2, 4) else False)
            heads.append(scores.masked_fill(hidden, -math.inf).softmax(-1) @ v[:, shared])
        attended = torch.cat(heads, dim=-1) @ weights[prefix + "self_attn.o_proj.weight"].T
        x = x + norm(attended, prefix + "post_attention_layernorm.weight")
        entering = norm(x, prefix + "pre_feedforward_layernorm.weight")
        gate = entering @ weights[prefix + "mlp.gate_proj.weight"].T
        gate = 0.5 * gate * (1 + torch.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
        raised = gate * (entering @ weights[prefix + "mlp.up_proj.weight"].T)
        x = x + norm(raised @ weights[prefix + "mlp.down_proj.weight"].T, prefix + "post_feedforward_layernorm.weight")
    logits = norm(x, "model.norm.weight") @ table.T
    return config.final_softcap * torch.tanh(logits / config.final_softcap)


@pytest.mark.parametrize("overrides", [{}, {"query_scale": 144, "rope_theta": 50.0, "d_model": 52, "kv_heads": 1}])
def test_logits_are_those_of_the_formulas_in_float64(overrides):
    model = lively_model(**overrides)
    tokens = random_tokens(1, 19, model.config)
    with torch.no_grad():
        got = model(tokens)[0].double()
    assert (got - by_hand(model, tokens[0])).abs().max() <= 5e-5


def packed(documents, length):
    """One row: the documents one after the other, then padding."""
    tokens, positions, segment_ids = [], [], []
    for number, document in enumerate(documents, start=1):
        tokens += document.tolist()
        positions += range(len(document))
        segment_ids += [number] * len(document)
    padding = [0] * (length - len(tokens))
    return (torch.tensor([row + padding]) for row in (tokens, positions, segment_ids))


def test_a_document_in_a_packed_row_gets_the_logits_it_gets_alone():
    model = lively_model()
    documents = [random_tokens(1, length, model.config, seed=length)[0] for length in (13, 1, 22)]
    tokens, positions, segment_ids = packed(documents, 44)
    with torch.no_grad():
        logits = model(tokens, positions, segment_ids)[0]
        start = 0
        for document in documents:
            alone = model(document[None])[0]
            torch.testing.assert_close(logits[start : start + len(document)], alone, atol=1e-5, rtol=0)
            start += len(document)


def test_a_document_is_untouched_by_what_it_is_packed_with():
    model = lively_model()
    first, second, other = (random_tokens(1, 12, model.config, seed=seed)[0] for seed in range(3))
    with torch.no_grad():
        with_first = model(*packed([first, second], 30))
        with_other = model(*packed([other, second], 30))
    assert torch.equal(with_first[0, 12:24], with_other[0, 12:24])
    assert not torch.equal(with_first[0, :12], with_other[0, :12])


def test_padding_gives_no_nan_forward_or_backward():
    model = lively_model()
    tokens = random_tokens(2, 12, model.config)
    segment_ids = torch.zeros_like(tokens)
    segment_ids[0, :5] = 1
    logits = model(tokens, torch.zeros_like(tokens), segment_ids)
    logits.sum().backward()
    assert torch.isfinite(logits).all()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_a_local_layer_sees_exactly_the_window_and_a_global_one_all():
    tokens = random_tokens(1, 20, gemma2_tiny())
    window = 5
    for layers, reaches_back in ((1, False), (2, True)):
        model = lively_model(layers=layers, window=window)
        with torch.no_grad():
            before = model(tokens)[0, 19]
            for distance, changes in ((window - 1, True), (window, reaches_back)):
                changed = tokens.clone()
                changed[0, 19 - distance] = (changed[0, 19 - distance] + 1) % 1000
                assert torch.equal(model(changed)[0, 19], before) is not changes


def test_the_future_is_not_seen():
    model = lively_model()
    tokens = random_tokens(1, 20, model.config)
    changed = tokens.clone()
    changed[0, 11] = (changed[0, 11] + 1) % 1000
    with torch.no_grad():
        assert torch.equal(model(tokens)[0, :11], model(changed)[0, :11])


def test_no_step_looks_at_a_value():
    """Meta tensors have none: whatever branches on one, or shapes by one, fails here, at the real size."""
    with torch.device("meta"):
        model = Gemma2(gemma2_2b())
        tokens = torch.zeros(2, 8192, dtype=torch.int32)
        assert model.hidden(tokens, tokens, tokens).shape == (2, 8192, 2304)
        cache = Cache(model.config, batch_rows=2, max_length=8192, device="meta")
        assert model(tokens[:, :1], tokens[:, :1], None, cache).shape == (2, 1, 256000)


def test_logits_are_those_of_the_hidden_states_and_capped():
    model = lively_model(init_std=1.0)
    tokens = random_tokens(1, 6, model.config)
    with torch.no_grad():
        hidden = model.hidden(tokens)
        table = model.model.embed_tokens.weight
        expected = 30.0 * torch.tanh(hidden.double() @ table.double().T / 30.0)
        torch.testing.assert_close(model(tokens).double(), expected, atol=1e-4, rtol=0)
        assert model(tokens).abs().max() <= 30.0


@pytest.mark.parametrize(
    ("dtype", "d_model", "expected"),
    [
        (torch.bfloat16, 2304, 48.0),
        (torch.bfloat16, 3584, 59.75),
        (torch.bfloat16, 4608, 68.0),
        (torch.float32, 3584, 3584**0.5),
    ],
)
def test_the_embedding_is_scaled_by_the_root_rounded_to_its_dtype(dtype, d_model, expected):
    entering = []

    def spy(layers, x_BTD, inputs, attention, cache):
        entering.append(x_BTD)
        return x_BTD

    model = Gemma2(gemma2_tiny(vocab_size=8, d_model=d_model, layers=1), run_layers=spy).to(dtype)
    # many values: with most of them the product rounds to the same bfloat16 whether the root was rounded or not
    values = torch.linspace(1.0, 2.0, d_model).to(dtype)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(values.expand(8, d_model))
        model.hidden(torch.zeros(1, 1, dtype=torch.int32))
    assert entering[0].dtype == dtype
    torch.testing.assert_close(entering[0][0, 0], (values.double() * expected).to(dtype), atol=0, rtol=3e-7)


def test_a_bfloat16_model_stays_close_and_its_logits_are_float32():
    model = lively_model(init_std=0.05)
    tokens = random_tokens(2, 20, model.config)
    with torch.no_grad():
        exact = model(tokens)
        rounded = model.to(torch.bfloat16)(tokens)
    assert rounded.dtype == torch.float32
    assert len(rounded.unique()) > 10_000, "logits were rounded to bfloat16"
    torch.testing.assert_close(rounded, exact, atol=0.15, rtol=0)


def test_initial_weights_depend_on_seed_and_name_only():
    base = Gemma2(gemma2_tiny(layers=2), seed=3).state_dict()
    deeper = Gemma2(gemma2_tiny(layers=4), seed=3).state_dict()
    other = Gemma2(gemma2_tiny(layers=2), seed=4).state_dict()
    with torch.device("meta"):
        late = Gemma2(gemma2_tiny(layers=2))
    late = late.to_empty(device="cpu").to(torch.bfloat16)
    torch.manual_seed(99)
    late.init_weights(3)
    for name, tensor in base.items():
        assert torch.equal(tensor, deeper[name])
        assert torch.equal(tensor.bfloat16(), late.state_dict()[name])
        assert torch.equal(tensor, other[name]) is (tensor.ndim == 1)


def test_initial_norms_are_0_and_matrices_have_the_asked_spread():
    model = Gemma2(gemma2_tiny(init_std=0.07))
    for parameter in model.parameters():
        if parameter.ndim == 1:
            assert not parameter.any()
        else:
            assert float(parameter.detach().std()) == pytest.approx(0.07, rel=0.05)


def test_a_new_model_draws_nothing_from_the_global_generator():
    torch.manual_seed(5)
    Gemma2(gemma2_tiny())
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))


def test_attention_and_the_walk_through_the_layers_can_be_handed_in():
    plain, handed = lively_model(), lively_model()
    tokens = random_tokens(2, 12, plain.config)
    calls = []

    def counting(*tensors, **options):
        calls.append(options["window"])
        return attend(*tensors, **options)

    def rematerialised(layers, x_BTD, inputs, attention, cache):
        for layer in layers:
            x_BTD = checkpoint(layer, x_BTD, inputs, attention, None, use_reentrant=False)
        return x_BTD

    handed.attention, handed.run_layers = counting, rematerialised
    plain(tokens).square().mean().backward()
    handed(tokens).square().mean().backward()
    assert calls[:4] == [5, None, 5, None]
    assert len(calls) == 8, "every layer once forward and once again in the backward pass"
    for ours, theirs in zip(plain.parameters(), handed.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_a_cache_without_positions_is_refused():
    model = lively_model()
    with pytest.raises(AssertionError, match="pass positions"):
        model(torch.ones(1, 1, dtype=torch.int32), cache=Cache(model.config, batch_rows=1, max_length=4))


def test_a_step_saves_two_score_tensors_a_layer_for_the_backward_pass():
    config = gemma2_tiny(layers=1, heads=4, kv_heads=2)
    model = Gemma2(config)
    length = 64
    sizes = {}

    def pack(tensor):
        sizes[tensor.untyped_storage().data_ptr()] = (tensor.numel(), tensor.dtype)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.hidden(random_tokens(1, length, config))
    scores = (config.heads * length * length, torch.float32)
    assert list(sizes.values()).count(scores) == 2
