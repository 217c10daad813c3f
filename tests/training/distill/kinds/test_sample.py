"""Draws follow the teacher's distribution, and depend on nothing but their key, their position and their logits."""

import numpy as np
import pytest
import torch

from training.distill import blocks
from training.distill.kinds.sample import BELOW_ONE, draw_ids, sample_teacher

KEY = {"seed": 3, "teacher_hash": "a" * 64, "sequence_hash": 2**63 + 11}


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize(
    "vocab", [5, 100, 1000]
)  # fewer ids than blocks hold, a last block that is not full, many blocks
def test_counts_over_draws_are_unbiased(vocab: int) -> None:
    positions, draws = 2000, 50
    logits = np.random.default_rng(vocab).normal(scale=2.0, size=vocab).astype(np.float32)
    ids, counts = sample_teacher(np.tile(logits, (positions, 1)), draws=draws, positions=np.arange(positions), **KEY)
    total = np.bincount(ids.ravel(), counts.ravel(), minlength=vocab)
    trials = positions * draws
    probabilities = softmax(logits)
    common = probabilities * trials >= 20
    z = (total - trials * probabilities) / np.sqrt(trials * probabilities * (1 - probabilities))
    assert common.sum() > min(vocab, 100) / 2
    assert np.abs(z[common]).max() < 4.5
    # The sum of squares of about-normal values: its own mean and variance are known.
    squares = (z[common] ** 2).sum()
    assert abs(squares - common.sum()) < 5 * np.sqrt(2 * common.sum())


def test_ids_ascend_counts_sum_to_draws_and_the_rest_is_zero() -> None:
    logits = np.random.default_rng(0).normal(size=(70, 300)).astype(np.float32)
    ids, counts = sample_teacher(logits, draws=20, positions=np.arange(70), **KEY)
    assert (counts.sum(axis=1) == 20).all()
    assert ids.shape == counts.shape
    assert ids.shape[1] <= 20
    for row_ids, row_counts in zip(ids, counts, strict=True):
        unique = np.count_nonzero(row_counts)
        assert (np.diff(row_ids[:unique]) > 0).all()
        assert not row_ids[unique:].any()
        assert not row_counts[unique:].any()


def test_a_position_is_drawn_alike_alone_and_among_others() -> None:
    logits = np.random.default_rng(1).normal(size=(90, 512)).astype(np.float32)
    places = np.arange(0, 180, 2)
    ids, counts = sample_teacher(logits, draws=30, positions=places, **KEY)
    for some in ([7], [88, 3, 40], list(range(20, 75))):
        few_ids, few_counts = sample_teacher(logits[some], draws=30, positions=places[some], **KEY)
        width = few_ids.shape[1]
        np.testing.assert_array_equal(ids[some, :width], few_ids)
        np.testing.assert_array_equal(counts[some, :width], few_counts)


@pytest.mark.parametrize("change", [{"seed": 4}, {"teacher_hash": "b" * 64}, {"sequence_hash": 12}])
def test_another_key_draws_otherwise(change: dict[str, int]) -> None:
    logits = np.zeros((4, 512), np.float32)
    ids, _ = sample_teacher(logits, draws=30, positions=np.arange(4), **KEY)
    others, _ = sample_teacher(logits, draws=30, positions=np.arange(4), **(KEY | change))
    assert ids.shape != others.shape or (ids != others).any()


def test_a_certain_teacher_is_drawn_with_certainty() -> None:
    logits = np.full((2, 1000), -30.0, np.float32)
    logits[0, 0] = logits[1, 999] = 30.0
    ids, counts = sample_teacher(logits, draws=63, positions=np.array([0, 1]), **KEY)
    assert ids.tolist() == [[0], [999]]
    assert counts.tolist() == [[63], [63]]


def test_logits_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        sample_teacher(np.full((1, 10), np.nan, np.float32), draws=5, positions=np.array([0]), **KEY)


def test_importance_weights_make_another_proposal_unbiased() -> None:
    logits = torch.from_numpy(np.random.default_rng(2).normal(scale=2.0, size=200).astype(np.float32)).repeat(4000, 1)
    uniforms = torch.rand(4000, 50, 3, generator=torch.Generator().manual_seed(0))
    for proposal, temperature in ((0.8, 1.0), (1.2, 1.0), (0.9, 2.0)):
        p = torch.softmax(logits[0].double() / temperature, -1)
        q = torch.softmax(logits[0].double() * proposal / temperature, -1)
        ids, log_weights, _ = draw_ids(logits, uniforms, temperature, proposal)
        torch.testing.assert_close(log_weights.double(), (p / q).log()[ids.long()], atol=2e-6, rtol=0)
        estimate = torch.zeros(200, dtype=torch.float64).scatter_add_(
            0, ids.flatten().long(), log_weights.flatten().double().exp()
        )
        z = (estimate / ids.numel() - p) / ((p * (p / q) - p * p) / ids.numel()).sqrt()
        assert z[p > 1e-4].abs().max() < 4.5
        assert abs(float((z[p > 1e-4] ** 2).mean()) - 1) < 0.5


def test_chunks_and_parts_for_the_caches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.from_numpy(np.random.default_rng(4).normal(size=(90, 700)).astype(np.float32))
    uniforms = torch.rand(90, 30, 3, generator=torch.Generator().manual_seed(1))
    whole = draw_ids(logits, uniforms)
    monkeypatch.setattr(blocks, "CACHED_ELEMENTS", 7 * 700)
    for undivided, other in zip(whole, draw_ids(logits, uniforms), strict=True):
        assert torch.equal(undivided, other)


def test_what_an_almost_certain_teacher_leaves_is_drawn_as_often_as_it_should_be() -> None:
    logits = torch.full((1, 4096), -100.0)
    logits[0, 77] = 0.0
    logits[0, [1005, 4000]] = torch.tensor([2.0**-21, 2.0**-22]).log()
    grid = torch.arange(8192.0) / 8192
    uniforms = torch.stack([grid * 2.0**-19, grid, grid], -1)[None]
    ids, _, _ = draw_ids(logits, uniforms)
    counts = torch.bincount(ids[0].long(), minlength=4096)
    # of the first 2^-19 of all draws, 2^-21 and 2^-22 belong to the two ids
    for place, expected in ((1005, 2048), (4000, 1024), (77, 5120)):
        assert abs(int(counts[place]) - expected) <= 2
    assert counts.sum() == 8192


@pytest.mark.parametrize("seed", range(5))
def test_no_draw_finds_an_id_that_the_teacher_excludes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(scale=4.0, size=(40, 700)).astype(np.float32))
    logits[torch.from_numpy(rng.random((40, 700)) < 0.6)] = -1e5
    ends = torch.tensor([0.0, 2.0**-32, float(BELOW_ONE)])
    uniforms = torch.cartesian_prod(ends, ends, ends).expand(40, -1, -1)
    ids, _, _ = draw_ids(logits, uniforms)
    assert (logits.gather(1, ids.long()) > -1e5).all()
