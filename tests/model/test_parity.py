"""The model against the eager Gemma2ForCausalLM of transformers, in float32. All slow: its import takes seconds."""

import random

import pytest
import torch

from model import gemma2_tiny
from tests.model.reference import in_transformers, lively_model, random_tokens

pytestmark = pytest.mark.slow


def random_config(seed):
    """Sizes at random, but so that the usual confusions show (see the facts in the assertions)."""
    choice = random.Random(seed)
    kv_heads = choice.choice([1, 2, 3])
    heads = kv_heads * choice.choice([1, 2, 4])
    head_dim = choice.choice([8, 16, 20])
    d_model = heads * choice.choice([7, 11, 13])
    config = gemma2_tiny(
        vocab_size=choice.choice([311, 640]), d_model=d_model, layers=choice.choice([2, 3, 4]), heads=heads,
        kv_heads=kv_heads, head_dim=head_dim, ffw_dim=choice.choice([40, 96]), window=choice.choice([2, 3, 7, 16]),
        query_scale=choice.choice([5, 12, 144]), init_std=choice.choice([0.05, 0.2]),
        rope_theta=choice.choice([100.0, 10_000.0]),
    )  # fmt: skip
    assert config.heads * config.head_dim != config.d_model
    assert config.query_scale != config.head_dim
    assert (config.d_model**0.5) % 1
    return config


@pytest.mark.parametrize("seed", range(6))
def test_logits_and_gradients_are_those_of_transformers(seed):
    ours = lively_model(random_config(seed), seed=seed)
    theirs = in_transformers(ours)
    tokens = random_tokens(2, 33, ours.config, seed)
    assert ours.config.window < tokens.shape[1]

    our_logits, their_logits = ours(tokens), theirs(tokens).logits
    assert their_logits.std() > 0.1, "logits too small to compare"
    assert (our_logits - their_logits).abs().max() <= 1e-4

    for logits in (our_logits, their_logits):
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    their_gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        expected = their_gradients[name]
        assert expected.abs().max() > 0
        error = (parameter.grad - expected).norm() / expected.norm()
        assert error <= 1e-3, name


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batches_are_those_of_transformers(side):
    ours = lively_model()
    theirs = in_transformers(ours)
    tokens = random_tokens(3, 24, ours.config)
    segment_ids = torch.zeros_like(tokens)
    positions = torch.zeros_like(tokens)
    for row, length in enumerate((24, 17, 3)):
        part = slice(24 - length, 24) if side == "left" else slice(0, length)
        segment_ids[row, part] = 1
        positions[row, part] = torch.arange(length)
    with torch.no_grad():
        expected = theirs(tokens, attention_mask=segment_ids, position_ids=positions).logits
        got = ours(tokens, positions, segment_ids)
    real = segment_ids.bool()
    assert (got[real] - expected[real]).abs().max() <= 1e-4


def test_a_bfloat16_model_is_as_near_to_transformers_as_bfloat16_allows():
    ours = lively_model(init_std=0.05)
    tokens = random_tokens(2, 24, ours.config)
    with torch.no_grad():
        exact = ours(tokens)
        theirs = in_transformers(ours).to(torch.bfloat16)(tokens).logits.float()
        got = ours.to(torch.bfloat16)(tokens)
    # Both round; ours rounds less often (float32 softmax, rope and head), so it may not be the farther one by much.
    assert (got - exact).abs().mean() <= 1.2 * (theirs - exact).abs().mean()
