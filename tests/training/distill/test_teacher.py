"""Draws follow the teacher's distribution, and depend on nothing but their key, their position and their logits."""

from typing import Any

import numpy as np
import pytest
import torch

from model import Gemma2, gemma2_tiny
from training.backends.torch_backend import TorchBackend
from training.distill.teacher import Estimator, capture, draw_ids, sample_teacher, top_k_teacher, weights_hash

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


def test_targets_of_a_batch_are_those_of_the_mask_and_of_the_models_logits() -> None:
    model = Gemma2(gemma2_tiny(vocab_size=64))
    rng = np.random.default_rng(5)
    mask = rng.random((3, 12)) < 0.5
    batch = {
        "tokens": rng.integers(0, 64, (3, 12), dtype=np.int32),
        "positions": np.tile(np.arange(12, dtype=np.int32), (3, 1)),
        "segment_ids": np.ones((3, 12), np.int32),
        "loss_mask": mask,
        "sequence_hash": np.array([5, 6, 7], np.uint64),
    }
    (found,) = capture(model, TorchBackend("cpu"), [batch], Estimator(draws=10), seed=1, teacher_hash="t")
    with torch.no_grad():
        logits = model(torch.from_numpy(batch["tokens"])).numpy()
    for row, kept in enumerate(found):
        (targets,) = np.nonzero(mask[row])
        expected = sample_teacher(
            logits[row, targets], draws=10, seed=1, teacher_hash="t", sequence_hash=5 + row, positions=targets
        )
        np.testing.assert_array_equal(kept["target_ids"], expected[0])
        np.testing.assert_array_equal(kept["target_counts"], expected[1])


def test_the_hash_of_weights_sees_every_bit() -> None:
    weights = {"a": torch.zeros(3), "b": torch.ones(2, 2)}
    changed = {"a": torch.tensor([0.0, 0.0, -0.0]), "b": torch.ones(2, 2)}
    assert weights_hash(weights) == weights_hash(dict(reversed(weights.items())))
    assert weights_hash(weights) != weights_hash(changed)


def test_importance_weights_make_another_proposal_unbiased() -> None:
    logits = torch.from_numpy(np.random.default_rng(2).normal(scale=2.0, size=200).astype(np.float32)).repeat(4000, 1)
    uniforms = torch.rand(4000, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
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


@pytest.mark.parametrize(("vocab", "k"), [(300, 1), (300, 12), (1024, 50), (100, 100), (64, 50)])
def test_the_most_likely_ids_and_the_rest_are_those_of_float64(vocab: int, k: int) -> None:
    logits = torch.from_numpy(np.random.default_rng(3).normal(scale=4.0, size=(130, vocab)).astype(np.float32))
    for temperature in (1.0, 0.5):
        ids, log_probs, tail = top_k_teacher(logits, k, temperature)
        log_p = torch.log_softmax(logits.double() / temperature, -1)
        best = log_p.topk(k)
        assert ids.dtype == torch.int32
        assert torch.equal(ids.long(), best.indices)
        torch.testing.assert_close(log_probs.double(), best.values, atol=2e-6, rtol=1e-6)
        rest = log_p.exp().scatter(1, best.indices, 0.0).sum(-1)
        torch.testing.assert_close(tail.double(), rest, atol=1e-12, rtol=1e-5)  # its digits, however small it is
    with pytest.raises(ValueError, match="allowed are 1 to the vocabulary"):
        top_k_teacher(logits, vocab + 1)


def test_chunks_and_parts_for_the_caches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from training.distill import teacher

    logits = torch.from_numpy(np.random.default_rng(4).normal(size=(90, 700)).astype(np.float32))
    uniforms = torch.rand(90, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole = draw_ids(logits, uniforms)
    monkeypatch.setattr(teacher, "CACHED_ELEMENTS", 7 * 700)
    for one, other in zip(whole, draw_ids(logits, uniforms), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "change", [{"name": "best"}, {"draws": 0}, {"top": 0}, {"temperature": 0.0}, {"proposal": -1.0}]
)
def test_an_estimator_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(change.values())))):
        Estimator(**change)
