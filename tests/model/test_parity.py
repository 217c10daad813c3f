"""The model against the eager Gemma2ForCausalLM of transformers, in float32. All slow: its import takes seconds."""

import random

import pytest
import torch

from model import PAPER_VOCAB_SIZE, VOCAB_SIZE, gemma2_tiny
from tests.programs.reference import in_transformers, lively_model, random_tokens

pytestmark = pytest.mark.slow

LENGTH = 33
WINDOWS = (1, 2, 3, 16, LENGTH - 1, LENGTH, LENGTH + 7)
"""far smaller than the rows, half of them, one less, equal, larger"""


def random_config(seed):
    """Sizes at random, but so that the usual confusions show (see the facts in the assertions)."""
    choice = random.Random(seed)
    kv_heads = choice.choice([1, 2, 3])
    heads = kv_heads * choice.choice([1, 2, 4])
    head_dim = choice.choice([8, 16, 20])
    d_model = heads * choice.choice([7, 11, 13])
    config = gemma2_tiny(
        vocab_size=choice.choice([311, 640]), d_model=d_model, layers=choice.choice([1, 2, 3, 4, 5]), heads=heads,
        kv_heads=kv_heads, head_dim=head_dim, ffw_dim=choice.choice([40, 96]), window=WINDOWS[seed % len(WINDOWS)],
        query_scale=choice.choice([5, d_model // heads, 144]), init_std=choice.choice([0.05, 0.2]),
        rope_theta=choice.choice([100.0, 10_000.0]),
    )  # fmt: skip
    assert config.heads * config.head_dim != config.d_model
    assert config.query_scale != config.head_dim  # 27B: d_model / heads = 144, heads of 128
    assert (config.d_model**0.5) % 1
    return config


def assert_same_logits_and_gradients(ours, theirs, tokens):
    our_logits, their_logits = ours(tokens), theirs(tokens).logits
    assert their_logits.std() > 0.1, "logits too small to compare"
    assert (our_logits - their_logits).abs().max() <= 1e-4

    for logits in (our_logits, their_logits):
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    their_gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        expected = their_gradients[name]
        if expected.abs().max() == 0:  # a query that sees one key gives it all its weight, whatever the score
            assert ours.config.window == 1
            assert parameter.grad.abs().max() == 0
            continue
        error = (parameter.grad - expected).norm() / expected.norm()
        assert error <= 1e-3, name


@pytest.mark.parametrize("seed", range(14))
def test_logits_and_gradients_are_those_of_transformers(seed):
    ours = lively_model(random_config(seed), seed=seed)
    assert_same_logits_and_gradients(ours, in_transformers(ours), random_tokens(2, LENGTH, ours.config, seed))


@pytest.mark.parametrize("vocab_size", [VOCAB_SIZE, PAPER_VOCAB_SIZE])
def test_so_are_those_of_the_whole_vocabulary(vocab_size):
    config = gemma2_tiny(
        vocab_size=vocab_size, d_model=12, layers=2, heads=2, kv_heads=1, head_dim=8, ffw_dim=20, init_std=0.2
    )
    ours = lively_model(config)
    assert_same_logits_and_gradients(ours, in_transformers(ours), random_tokens(1, 9, config))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batches_are_those_of_transformers(side, seed):
    ours = lively_model(random_config(seed), seed=seed)
    theirs = in_transformers(ours)
    tokens = random_tokens(3, LENGTH, ours.config, seed)
    segment_ids = torch.zeros_like(tokens)
    positions = torch.zeros_like(tokens)
    for row, length in enumerate((LENGTH, 17, 3)):
        part = slice(LENGTH - length, LENGTH) if side == "left" else slice(0, length)
        segment_ids[row, part] = 1
        positions[row, part] = torch.arange(length)
    with torch.no_grad():
        expected = theirs(tokens, attention_mask=segment_ids, position_ids=positions).logits
        got = ours(tokens, positions, segment_ids)
    real = segment_ids.bool()
    assert (got[real] - expected[real]).abs().max() <= 1e-4
