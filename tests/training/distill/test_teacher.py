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
from training.distill.kind import Kind
from training.distill.kinds.sample import Sample, sample_teacher
from training.distill.kinds.topk import TopK
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


class Made(TorchDispatchMode):
    """The number of elements of the largest tensor that an operation makes, and the types of all tensors."""

    elements = 0

    def __init__(self) -> None:
        super().__init__()
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and func is not torch.ops.aten.expand.default:
                self.elements = max(self.elements, tensor.numel())
                self.types.add(tensor.dtype)
        return made


@pytest.mark.parametrize("kind", [Sample(draws=4, proposal=0.9), TopK(top=3)])
def test_capture_audit_and_evaluation_make_neither_scores_of_all_pairs_nor_all_logits_nor_float64(
    monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    length, vocabulary = 512, 900
    backend = TorchBackend("cpu")
    monkeypatch.setattr("model.attention.MOST_SCORES", 2**14)
    model = backend.place_model(Gemma2(gemma2_tiny(vocab_size=vocabulary)).requires_grad_(False))
    batch = {
        "tokens": np.random.default_rng(0).integers(0, vocabulary, (1, length), dtype=np.int32),
        "positions": np.arange(length, dtype=np.int32)[None],
        "segment_ids": np.ones((1, length), np.int32),
        "loss_mask": np.ones((1, length), bool),
        "sequence_hash": np.array([5], np.uint64),
    }
    with Made() as made:
        ((kept,),) = capture(model, backend, [batch], kind, seed=1, teacher_hash="t")
        tally(model, backend, batch, kept, kind)
        evaluate(model, backend, [batch])
    assert 0 < made.elements < length * length < length * vocabulary
    assert torch.float64 not in made.types


def test_the_hash_of_weights_sees_every_bit() -> None:
    weights = {"a": torch.zeros(3), "b": torch.ones(2, 2)}
    changed = {"a": torch.tensor([0.0, 0.0, -0.0]), "b": torch.ones(2, 2)}
    assert weights_hash(weights) == weights_hash(dict(reversed(weights.items())))
    assert weights_hash(weights) != weights_hash(changed)
