"""Captured targets are those of the mask and of the model's own logits."""

import numpy as np
import torch

from model import Gemma2, gemma2_tiny
from training.backends.torch_backend import TorchBackend
from training.distill.kinds.sample import Sample, sample_teacher
from training.distill.teacher import capture, weights_hash


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
    (targets_of_rows,) = capture(model, TorchBackend("cpu"), [batch], Sample(draws=10), seed=1, teacher_hash="t")
    with torch.no_grad():
        logits = model(torch.from_numpy(batch["tokens"])).numpy()
    for row, kept in enumerate(targets_of_rows):
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
