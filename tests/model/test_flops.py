import pytest
import torch

from model import (
    PAPER_VOCAB_SIZE,
    Gemma2,
    forward_flops_per_token,
    gemma2_2b,
    gemma2_9b,
    gemma2_27b,
    gemma2_tiny,
    parameter_count,
    train_flops_per_token,
)

# arXiv 2408.00118, Table 2 (256128 rows), and the totals of the published PyTorch weights (256000 rows)
PUBLISHED = [
    (gemma2_2b, 590_118_912, 2_024_517_888, 2_614_341_888),
    (gemma2_9b, 917_962_752, 8_324_201_984, 9_241_705_984),
    (gemma2_27b, 1_180_237_824, 26_047_480_320, 27_227_128_320),
]


@pytest.mark.parametrize(("preset", "embedding", "non_embedding", "total"), PUBLISHED)
def test_the_real_sizes_have_the_published_parameters(preset, embedding, non_embedding, total):
    with torch.device("meta"):
        paper = Gemma2(preset(vocab_size=PAPER_VOCAB_SIZE))
        released = Gemma2(preset())
    assert paper.model.embed_tokens.weight.numel() == embedding
    assert sum(parameter.numel() for parameter in paper.parameters()) - embedding == non_embedding
    assert sum(parameter.numel() for parameter in released.parameters()) == total
    assert parameter_count(preset(), vocab_size=PAPER_VOCAB_SIZE) == (embedding, non_embedding)
    assert sum(parameter_count(preset())) == total


@pytest.mark.parametrize("length", [1, 7, 16, 50])
def test_flops_are_those_of_the_products_counted_one_by_one(length):
    config = gemma2_tiny(layers=3, window=16)
    model = Gemma2(config)
    matrices = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim == 2)
    seen = 0
    for layer in range(config.layers):
        window = config.layer_window(layer) or length
        seen += sum(1 for query in range(length) for key in range(query + 1) if query - key < window)
    expected = 2 * matrices + 2 * 2 * config.heads * config.head_dim * seen / length
    assert forward_flops_per_token(config, length) == pytest.approx(expected, rel=1e-12)
    assert train_flops_per_token(config, length) == pytest.approx(3 * expected, rel=1e-12)


def test_a_2b_token_costs_six_flops_a_parameter_and_the_attention_on_top():
    per_token = train_flops_per_token(gemma2_2b(), 8192)
    assert 6 * 2_614_341_888 < per_token < 6.0 * 2_614_341_888 * 1.25


def test_a_length_of_nothing_is_refused():
    with pytest.raises(ValueError, match="sequence_length is 0"):
        forward_flops_per_token(gemma2_tiny(), 0)
