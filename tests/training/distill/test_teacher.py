"""Captured targets are those of the mask and of the model's own logits."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model import Gemma2, gemma2_tiny
from training.backends.torch_backend import TorchBackend
from training.checkpoints.digests import weights_hash
from training.distill.audit import tally
from training.distill.kinds.sample import Sample, sample_teacher
from training.distill.teacher import capture
from training.evaluation import evaluate


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


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that an operation makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and func is not torch.ops.aten.expand.default:
                self.elements = max(self.elements, tensor.numel())
        return made


def test_neither_capture_nor_audit_nor_evaluation_makes_a_tensor_of_scores_of_all_pairs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    length = 256
    backend, kind = TorchBackend("cpu"), Sample(draws=4)
    monkeypatch.setattr("model.attention.MOST_SCORES", 2**14)
    model = backend.place_model(Gemma2(gemma2_tiny(vocab_size=64)).requires_grad_(False))
    batch = {
        "tokens": np.random.default_rng(0).integers(0, 64, (1, length), dtype=np.int32),
        "positions": np.arange(length, dtype=np.int32)[None],
        "segment_ids": np.ones((1, length), np.int32),
        "loss_mask": np.ones((1, length), bool),
        "sequence_hash": np.array([5], np.uint64),
    }
    with Largest() as largest:
        ((kept,),) = capture(model, backend, [batch], kind, seed=1, teacher_hash="t")
        tally(model, backend, batch, kept, kind)
        evaluate(model, backend, [batch])
    assert 0 < largest.elements < length * length


def test_the_hash_of_weights_sees_every_bit() -> None:
    weights = {"a": torch.zeros(3), "b": torch.ones(2, 2)}
    changed = {"a": torch.tensor([0.0, 0.0, -0.0]), "b": torch.ones(2, 2)}
    assert weights_hash(weights) == weights_hash(dict(reversed(weights.items())))
    assert weights_hash(weights) != weights_hash(changed)
