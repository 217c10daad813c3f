"""The most likely ids, and the mass of all other ids, are those of float64."""

import numpy as np
import pytest
import torch

from training.distill.log_probs import top_k_teacher


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
    with pytest.raises(ValueError, match=r"allowed are 1 to \d"):
        top_k_teacher(logits, vocab + 1)
