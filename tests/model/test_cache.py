import pytest
import torch

from model import Cache, gemma2_tiny
from tests.programs.reference import lively_model, random_tokens


def decoded(model, tokens, chunks):
    """Logits of `tokens` [B, T] fed in pieces of the given lengths."""
    rows, length = tokens.shape
    cache = Cache(model.config, batch_rows=rows, max_length=length)
    pieces, start = [], 0
    for chunk in chunks:
        positions = torch.arange(start, start + chunk).expand(rows, chunk)
        pieces.append(model(tokens[:, start : start + chunk], positions, cache=cache))
        start += chunk
    assert start == length
    return torch.cat(pieces, dim=1)


@pytest.mark.parametrize("window", [1, 5, 8, 30, 100])
@pytest.mark.parametrize("chunks", [[1] * 30, [30], [3, *[1] * 27], [12, *[1] * 18], [7, 1, 9, 2, 2, 1, 8]])
def test_decoding_gives_the_full_forward_at_every_position(window, chunks):
    model = lively_model(window=window)
    tokens = random_tokens(2, 30, model.config)
    with torch.no_grad():
        torch.testing.assert_close(decoded(model, tokens, chunks), model(tokens), atol=5e-5, rtol=0)


def test_rows_of_different_lengths_decode_as_if_alone():
    model = lively_model(window=5)
    config = model.config
    lengths, new, width = [3, 11, 7], 9, 12
    rows = [random_tokens(1, length + new, config, seed=length)[0] for length in lengths]
    tokens = torch.zeros(3, width, dtype=torch.int64)
    segment_ids = torch.zeros_like(tokens)
    for row, length in enumerate(lengths):
        tokens[row, :length] = rows[row][:length]
        segment_ids[row, :length] = 1
    cache = Cache(config, batch_rows=3, max_length=max(lengths) + new)
    with torch.no_grad():
        alone = [model(row[None])[0] for row in rows]
        prefill = model(tokens, torch.arange(width).expand(3, width), segment_ids, cache)
        for row, length in enumerate(lengths):
            torch.testing.assert_close(prefill[row, :length], alone[row][:length], atol=5e-5, rtol=0)
        for step in range(new):
            places = torch.tensor([[length + step] for length in lengths])
            fed = torch.stack([rows[row][place] for row, place in enumerate(places)])
            logits = model(fed, places, cache=cache)
            for row, place in enumerate(places):
                torch.testing.assert_close(logits[row, 0], alone[row][int(place)], atol=5e-5, rtol=0)


def test_the_newest_tokens_are_kept_in_whatever_order_they_come():
    model = lively_model(window=5)
    tokens = random_tokens(1, 13, model.config)
    backwards = torch.arange(11, -1, -1)[None]
    cache = Cache(model.config, batch_rows=1, max_length=20)
    with torch.no_grad():
        model(tokens[:, :12].flip(1), backwards, cache=cache)
        logits = model(tokens[:, 12:], torch.tensor([[12]]), cache=cache)
        torch.testing.assert_close(logits[0, 0], model(tokens)[0, 12], atol=5e-5, rtol=0)
    assert sorted(cache.layers[0].positions[0, :-1].tolist()) == [8, 9, 10, 11, 12]


def test_a_local_layer_keeps_no_more_than_its_window():
    config = gemma2_tiny(window=16)
    long = Cache(config, batch_rows=1, max_length=1000)
    assert [layer.capacity for layer in long.layers] == [16, 1000]
    assert long.layers[0].keys.shape == (1, 17, config.kv_heads, config.head_dim)
    short = Cache(config, batch_rows=1, max_length=10)
    assert [layer.capacity for layer in short.layers] == [10, 10]


def test_a_row_that_is_done_changes_nothing_and_gives_numbers():
    model = lively_model(window=5)
    tokens = random_tokens(2, 12, model.config)
    cache = Cache(model.config, batch_rows=2, max_length=20)
    with torch.no_grad():
        model(tokens, torch.arange(12).expand(2, 12), cache=cache)
        before = [layer.keys[1, :-1].clone() for layer in cache.layers]
        done = torch.tensor([[1], [0]])
        logits = model(tokens[:, :1], torch.full((2, 1), 12), done, cache)
    assert torch.isfinite(logits).all()
    assert all(torch.equal(layer.keys[1, :-1], kept) for layer, kept in zip(cache.layers, before, strict=True))


def test_a_cache_is_cut_off_from_autograd():
    model = lively_model()
    cache = Cache(model.config, batch_rows=1, max_length=8)
    for position in range(3):
        place = torch.full((1, 1), position)
        model(place + 5, place, cache=cache).sum().backward()
    assert not any(layer.keys.requires_grad for layer in cache.layers)


def test_a_cache_of_nothing_is_refused():
    with pytest.raises(ValueError, match="max_length=0"):
        Cache(gemma2_tiny(), batch_rows=1, max_length=0)
