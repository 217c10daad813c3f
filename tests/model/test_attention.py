import math

import pytest
import torch

import model.attention
from model import Placement, attend, attend_in_parts, visible


def placement(positions, segment_ids=None):
    positions = torch.tensor([positions])
    return Placement(positions, torch.ones_like(positions) if segment_ids is None else torch.tensor([segment_ids]))


def random_heads(queries=9, keys=9, heads=4, kv_heads=2, width=8, spread=1.0):
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, queries, heads, width), (1, keys, kv_heads, width), (1, keys, kv_heads, width))
    return [torch.randn(shape, generator=generator) * spread for shape in shapes]


def by_hand(q, k, v, query, key, window, scale, softcap):
    """The formula, one head and one query at a time, in Python floats."""
    _, T, N, H = q.shape
    groups = N // k.shape[2]
    out = torch.zeros(1, T, N, H, dtype=torch.float64)
    for t in range(T):
        for n in range(N):
            weights = {}
            for s in range(k.shape[1]):
                distance = int(query.positions[0, t] - key.positions[0, s])
                same = int(query.segment_ids[0, t]) == int(key.segment_ids[0, s])
                if same and distance >= 0 and (window is None or distance < window):
                    score = sum(float(a) * float(b) for a, b in zip(q[0, t, n], k[0, s, n // groups], strict=True))
                    weights[s] = math.exp(softcap * math.tanh(score * scale / softcap))
            for s, weight in weights.items():
                out[0, t, n] += weight / sum(weights.values()) * v[0, s, n // groups].double()
    return out


@pytest.mark.parametrize("window", [None, 1, 3, 9])
@pytest.mark.parametrize("segment_ids", [None, [1, 1, 1, 1, 2, 2, 2, 0, 0]])
def test_attend_is_the_formula(window, segment_ids):
    positions = list(range(9)) if segment_ids is None else [0, 1, 2, 3, 0, 1, 2, 0, 1]
    where = placement(positions, segment_ids)
    q, k, v = random_heads(spread=3.0)
    got = attend(q, k, v, where, where, window=window, scale=0.3, softcap=5.0)
    expected = by_hand(q, k, v, where, where, window, 0.3, 5.0)
    torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window", [None, 1, 3, 9])
@pytest.mark.parametrize("queries", [1, 2, 4, 9])
def test_a_part_of_the_queries_at_a_time_gives_the_same_and_has_scores_of_its_own_alone(monkeypatch, window, queries):
    where = placement([0, 1, 2, 3, 0, 1, 2, 0, 0], [1, 1, 1, 1, 2, 2, 2, 0, 0])
    q, k, v = random_heads(spread=3.0)
    monkeypatch.setattr(model.attention, "MOST_SCORES", queries * 4 * 9)
    parts = []
    monkeypatch.setattr(model.attention, "attend", lambda *given, **how: parts.append(given) or attend(*given, **how))
    got = attend_in_parts(q, k, v, where, where, window=window, scale=0.3, softcap=5.0)
    whole = attend(q, k, v, where, where, window=window, scale=0.3, softcap=5.0)
    tokens = where.segment_ids[0] > 0
    torch.testing.assert_close(got[:, tokens], whole[:, tokens], atol=1e-6, rtol=1e-6)
    assert torch.isfinite(got).all()
    assert sum(part[0].shape[1] for part in parts) == 9
    assert all(part[0].shape[1] <= queries for part in parts)
    assert window is None or all(part[1].shape[1] < queries + window for part in parts)


def test_a_window_is_so_many_keys_with_the_query_itself():
    where = placement(range(20))
    seen = visible(where, where, window=4)[0]
    assert seen.sum(dim=1).tolist() == [1, 2, 3] + [4] * 17
    assert seen[10].nonzero().flatten().tolist() == [7, 8, 9, 10]


def test_the_order_of_keys_does_not_matter_only_their_positions():
    query, shuffled = placement([5]), placement([5, 0, 4, 9, 2])
    assert visible(query, shuffled, window=3).flatten().tolist() == [True, False, True, False, False]


def test_segments_do_not_see_each_other_and_empty_slots_are_seen_by_none():
    query = placement([2, 2, 2], [0, 1, 2])
    key = placement([0, 0, 0, 0], [0, 1, 2, -1])
    assert visible(query, key, None)[0].int().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]


def test_the_mask_comes_after_the_cap():
    # All scores sit at the lower cap; if masked ones were capped too, the future would get the same weight.
    where = placement(range(6))
    _, _, v = random_heads(queries=6, keys=6)
    q, k = torch.full((1, 6, 4, 8), 100.0), torch.full((1, 6, 2, 8), -100.0)
    first = attend(q, k, v, where, where, window=None, scale=1.0, softcap=50.0)
    torch.testing.assert_close(first[:, 0], v[:, 0].repeat_interleave(2, dim=1))


def test_a_query_that_sees_nothing_gives_numbers_not_nan():
    q, k, v = (tensor.requires_grad_() for tensor in random_heads())
    nowhere = placement(range(9), [-1] * 9)
    out = attend(q, k, v, placement(range(9)), nowhere, window=None, scale=0.3, softcap=50.0)
    out.sum().backward()
    for tensor in (out, q.grad, k.grad, v.grad):
        assert torch.isfinite(tensor).all()


def test_bfloat16_heads_are_normalized_in_float32():
    where = placement(range(512))
    _, k, _ = random_heads(queries=1, keys=512)
    q = torch.zeros(1, 512, 4, 8, dtype=torch.bfloat16)
    out = attend(q, k.bfloat16(), torch.ones_like(k).bfloat16(), where, where, window=None, scale=1.0, softcap=50.0)
    # 512 equal weights: a bfloat16 running sum would stop growing at 256.
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), torch.ones_like(out.float()), atol=0.01, rtol=0)
