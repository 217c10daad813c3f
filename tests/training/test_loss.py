"""Losses equal the plain formula over full logits, in value and in gradient."""

import pytest
import torch
import torch.nn.functional as F

from model import Gemma2, gemma2_tiny
from training import loss as loss_module
from training.loss import distill_loss, next_token_loss

CONFIG = gemma2_tiny(vocab_size=97)


@pytest.fixture(autouse=True)
def several_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    pass


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 97, (3, 20), generator=generator, dtype=torch.int32)
    mask = torch.rand(3, 20, generator=generator) < 0.7
    mask[:, -1] = False
    return {
        "tokens": tokens,
        "segment_ids": torch.ones_like(tokens),
        "positions": torch.arange(20, dtype=torch.int32).expand(3, 20),
        "loss_mask": mask,
    }


def gradients(model: Gemma2, value: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(value, list(model.parameters())))


def test_next_token_loss_is_cross_entropy_at_masked_targets(batch: dict[str, torch.Tensor]) -> None:
    model = Gemma2(CONFIG)
    value, count = next_token_loss(model, batch)
    mask = batch["loss_mask"]
    logits = model(batch["tokens"], batch["positions"], batch["segment_ids"])
    expected = F.cross_entropy(
        logits[:, :-1][mask[:, :-1]], batch["tokens"][:, 1:][mask[:, :-1]].long(), reduction="sum"
    )
    assert count.item() == mask.sum().item()
    torch.testing.assert_close(value, expected)
    # A factor on the loss has to reach the gradients too.
    torch.testing.assert_close(gradients(model, 3.0 * value), gradients(model, 3.0 * expected), rtol=1e-4, atol=1e-4)


def test_distill_loss_is_cross_entropy_to_counts_over_draws(batch: dict[str, torch.Tensor]) -> None:
    model = Gemma2(CONFIG)
    generator = torch.Generator().manual_seed(2)
    drawn = torch.randint(0, 97, (3, 20, 8), generator=generator)
    dense = torch.zeros(3, 20, 97).scatter_add_(2, drawn, torch.ones(3, 20, 8))
    ids = torch.zeros(3, 20, 10, dtype=torch.int32)  # two columns of padding
    counts = torch.zeros(3, 20, 10, dtype=torch.int32)
    for row in range(3):
        for place in range(20):
            (found,) = dense[row, place].nonzero(as_tuple=True)
            ids[row, place, : len(found)] = found.int()
            counts[row, place, : len(found)] = dense[row, place, found].int()
    value, count = distill_loss(model, batch | {"target_ids": ids, "target_counts": counts}, draws=8)
    logits = model(batch["tokens"], batch["positions"], batch["segment_ids"])
    mask = batch["loss_mask"]
    expected = F.cross_entropy(logits[mask], dense[mask] / 8, reduction="sum")
    assert count.item() == mask.sum().item()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradients(model, value), gradients(model, expected), rtol=1e-4, atol=1e-4)


def test_the_loss_without_gradients_is_the_same(batch: dict[str, torch.Tensor]) -> None:
    model = Gemma2(CONFIG)
    with_gradients, _ = next_token_loss(model, batch)
    with torch.no_grad():
        without, _ = next_token_loss(model, batch)
    torch.testing.assert_close(without, with_gradients.detach())


def test_what_the_mask_hides_changes_nothing(batch: dict[str, torch.Tensor]) -> None:
    model = Gemma2(CONFIG)
    before, _ = next_token_loss(model, batch)
    batch["loss_mask"][:, -2] = False  # the last token is now no target, and no other query sees it
    without, _ = next_token_loss(model, batch)
    batch["tokens"][:, -1] = 5
    assert torch.equal(next_token_loss(model, batch)[0], without)
    assert without < before
