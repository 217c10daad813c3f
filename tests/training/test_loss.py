"""Losses from hidden states, in chunks, equal the plain formula over whole logits in float64: values and gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model import Gemma2, gemma2_tiny
from training import loss_head
from training.config import DistillConfig, Tail
from training.distill.kinds.full import distill_full_loss
from training.distill.kinds.sample import distill_loss
from training.distill.kinds.topk import distill_topk_loss
from training.loss import LossOptions, next_token_loss

V, B, T, K = 97, 3, 20, 6
CONFIG = gemma2_tiny(vocab_size=V)
CHUNK = 10
"""positions: with 3 rows chunks of 3 columns, the last one of 2"""

Batch = dict[str, Tensor]


def in_chunks(**distill: Any) -> LossOptions:
    """Chunks of CHUNK positions, and what `DistillConfig` takes."""
    return LossOptions(distill=DistillConfig(**distill), chunk_positions=CHUNK)


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, V, (B, T), generator=generator, dtype=torch.int32)
    mask = torch.rand(B, T, generator=generator) < 0.7
    mask[:, -1] = False
    return {
        "tokens": tokens,
        "segment_ids": torch.ones_like(tokens),
        "positions": torch.arange(T, dtype=torch.int32).expand(B, T),
        "loss_mask": mask,
    }


@pytest.fixture
def model() -> Gemma2:
    """Hidden states large enough that the soft cap bends the logits."""
    model = Gemma2(CONFIG)
    model.init_weights(3)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(30.0)
    return model


@pytest.fixture
def teacher() -> Tensor:
    """[B, T, V] float64 probabilities, far from flat."""
    generator = torch.Generator().manual_seed(2)
    return (3.0 * torch.randn(B, T, V, generator=generator, dtype=torch.float64)).softmax(-1)


def with_counts(batch: Batch, teacher: Tensor, draws: int) -> tuple[Batch, Tensor]:
    """Draws as ids and counts, two columns of padding with ids that are not 0, and counts / draws over all ids."""
    generator = torch.Generator().manual_seed(4)
    drawn = torch.multinomial(teacher.float().flatten(0, 1), draws, replacement=True, generator=generator)
    dense = torch.zeros(B * T, V, dtype=torch.int32).scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.int32))
    counts, ids = dense.sort(dim=1, descending=True, stable=True)
    counts, ids = counts[:, : draws + 2].unflatten(0, (B, T)), ids[:, : draws + 2].unflatten(0, (B, T))
    return batch | {"target_ids": ids.int(), "target_counts": counts}, dense.unflatten(0, (B, T)).double() / draws


def with_topk(batch: Batch, teacher: Tensor, padding: int = 2) -> Batch:
    """As the loader gives them: where there is no target, no id has a probability."""
    probs, ids = teacher.topk(K, dim=-1)
    mask = batch["loss_mask"]
    log_probs = F.pad(probs.log(), (0, padding), value=-torch.inf).float()
    return batch | {
        "target_ids": torch.where(mask[..., None], F.pad(ids, (0, padding), value=5), 0).int(),
        "target_log_probs": torch.where(mask[..., None], log_probs, -torch.inf),
        "target_tail": torch.where(mask, 1.0 - probs.sum(-1), 1.0).float(),
    }


def plain(
    model: Gemma2, batch: Batch, temperature: float, losses: Callable[[Tensor], Tensor], alpha: float = 0.0
) -> tuple[Tensor, list[Tensor]]:
    """Sum over targets and gradients in float64, of (1 - alpha) T^2 losses + alpha (next token's, at temperature 1).

    `losses` takes log-probabilities [B, T, V] at the temperature.
    """
    exact = Gemma2(CONFIG).double()
    exact.load_state_dict({name: tensor.double() for name, tensor in model.state_dict().items()})
    hidden = exact.hidden(batch["tokens"], batch["positions"], batch["segment_ids"])
    # Not `Gemma2.logits`, which answers in float32.
    products = hidden @ exact.model.embed_tokens.weight.T
    logits = torch.tanh(products / CONFIG.final_softcap) * CONFIG.final_softcap
    soft = temperature**2 * losses((logits / temperature).log_softmax(-1))
    following = batch["tokens"].roll(-1, 1).long()[..., None]
    hard = -logits.log_softmax(-1).gather(-1, following)[..., 0]
    value = (((1.0 - alpha) * soft + alpha * hard) * batch["loss_mask"]).sum()
    return value, list(torch.autograd.grad(value, list(exact.parameters())))


def assert_equal(
    model: Gemma2, batch: Batch, of_chunks: tuple[Tensor, Tensor], exact: tuple[Tensor, list[Tensor]]
) -> None:
    value, count = of_chunks
    assert value.dtype == torch.float32
    assert count.item() == batch["loss_mask"].sum().item()
    torch.testing.assert_close(value.double(), exact[0], rtol=2e-6, atol=0)
    # A factor on the loss has to reach the gradients too.
    gradients = torch.autograd.grad(3.0 * value, list(model.parameters()))
    for name, gradient, expected in zip(dict(model.named_parameters()), gradients, exact[1], strict=True):
        error = (gradient.double() / 3.0 - expected).norm() / expected.norm()
        assert error < 2e-5, f"{name}: relative error {error:.1e}"


def gathered(log_q: Tensor, batch: Batch) -> Tensor:
    return log_q.gather(-1, batch["target_ids"].long())


@pytest.mark.parametrize("chunk", [1, CHUNK, 1000])
def test_next_token_loss_is_cross_entropy_at_masked_targets(model: Gemma2, batch: Batch, chunk: int) -> None:
    following = batch["tokens"].roll(-1, 1).long()[..., None]
    exact = plain(model, batch, 1.0, lambda log_q: -log_q.gather(-1, following)[..., 0])
    assert_equal(model, batch, next_token_loss(model, batch, LossOptions(chunk_positions=chunk)), exact)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.5])
def test_distill_loss_is_cross_entropy_to_counts_over_draws(
    model: Gemma2, batch: Batch, teacher: Tensor, temperature: float
) -> None:
    counted, dense = with_counts(batch, teacher, draws=8)
    exact = plain(model, batch, temperature, lambda log_q: -(dense * log_q).sum(-1))
    of_chunks = distill_loss(model, counted, draws=8, options=in_chunks(temperature=temperature))
    assert_equal(model, batch, of_chunks, exact)


MIXES = [(1.0, 0.3), (2.5, 0.3), (0.7, 0.9)]
"""temperature, alpha"""


@pytest.mark.parametrize(("temperature", "alpha"), MIXES)
def test_alpha_is_the_share_of_the_next_token_at_temperature_1(
    model: Gemma2, batch: Batch, teacher: Tensor, temperature: float, alpha: float
) -> None:
    counted, dense = with_counts(batch, teacher, draws=8)
    exact = plain(model, batch, temperature, lambda log_q: -(dense * log_q).sum(-1), alpha)
    of_chunks = distill_loss(model, counted, draws=8, options=in_chunks(temperature=temperature, alpha=alpha))
    assert_equal(model, batch, of_chunks, exact)
    with torch.no_grad():
        without, _ = distill_loss(model, counted, draws=8, options=in_chunks(temperature=temperature, alpha=alpha))
    torch.testing.assert_close(without, of_chunks[0].detach())
    full = batch | {"target_probs": teacher}
    of_chunks = distill_full_loss(model, full, options=in_chunks(temperature=temperature, alpha=alpha))
    assert_equal(model, batch, of_chunks, plain(model, batch, temperature, lambda q: -(teacher * q).sum(-1), alpha))


@pytest.mark.parametrize("tail", ["bucket", "renormalize", "ground_truth"])
@pytest.mark.parametrize(("temperature", "alpha"), [(1.0, 0.0), (2.5, 0.0), *MIXES])
def test_each_tail_of_topk_is_its_formula(
    model: Gemma2, batch: Batch, teacher: Tensor, tail: Tail, temperature: float, alpha: float
) -> None:
    best = with_topk(batch, teacher)
    probs = best["target_log_probs"].double().exp()[..., :K]
    rest = best["target_tail"].double()
    following = batch["tokens"].roll(-1, 1).long()[..., None]

    def losses(log_q: Tensor) -> Tensor:
        log_top = gathered(log_q, best)[..., :K]
        match tail:
            case "bucket":
                return -(probs * log_top).sum(-1) - rest * torch.log1p(-log_top.exp().sum(-1))
            case "renormalize":
                return -(probs * log_top).sum(-1) / probs.sum(-1).clamp_min(1e-300)
            case "ground_truth":
                return -(probs * log_top).sum(-1) - rest * log_q.gather(-1, following)[..., 0]

    of_chunks = distill_topk_loss(model, best, options=in_chunks(tail=tail, temperature=temperature, alpha=alpha))
    assert_equal(model, batch, of_chunks, plain(model, batch, temperature, losses, alpha))


def test_a_tail_or_an_alpha_that_is_none_is_refused(model: Gemma2, batch: Batch, teacher: Tensor) -> None:
    best = with_topk(batch, teacher)
    with pytest.raises(ValueError, match="tail is 'ghost'; allowed are 'bucket', 'renormalize', 'ground_truth'"):
        distill_topk_loss(model, best, in_chunks(tail="ghost"))
    for alpha in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="it must be at least 0 and below 1"):
            distill_topk_loss(model, best, in_chunks(alpha=alpha))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_full_loss_is_cross_entropy_to_the_whole_distribution(
    model: Gemma2, batch: Batch, teacher: Tensor, temperature: float
) -> None:
    exact = plain(model, batch, temperature, lambda log_q: -(teacher * log_q).sum(-1))
    of_chunks = distill_full_loss(model, batch | {"target_probs": teacher}, options=in_chunks(temperature=temperature))
    assert_equal(model, batch, of_chunks, exact)


def test_topk_of_all_ids_is_the_full_loss(model: Gemma2, batch: Batch, teacher: Tensor) -> None:
    probs, ids = teacher.topk(V, dim=-1)
    everything = {"target_ids": ids.int(), "target_log_probs": probs.log(), "target_tail": torch.zeros(B, T)}
    of_chunks = distill_topk_loss(model, batch | everything, in_chunks())
    assert_equal(model, batch, of_chunks, plain(model, batch, 1.0, lambda log_q: -(teacher * log_q).sum(-1)))


def test_a_tail_that_the_student_gives_nothing_stays_finite(model: Gemma2, batch: Batch, teacher: Tensor) -> None:
    """At temperature 0.02 the student's tail underflows; its logarithm and gradient must not."""
    value, _ = distill_topk_loss(model, with_topk(batch, teacher), options=in_chunks(temperature=0.02))
    assert value.isfinite()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(value, list(model.parameters())))


def test_bfloat16_weights_are_summed_in_float32(model: Gemma2, batch: Batch) -> None:
    """The head takes bfloat16 hidden states as they are: its own loss equals float64's from the same hidden states."""
    rounded = model.to(torch.bfloat16)
    value, _ = next_token_loss(rounded, batch, in_chunks())
    hidden = rounded.hidden(batch["tokens"], batch["positions"], batch["segment_ids"]).double()
    products = hidden @ rounded.model.embed_tokens.weight.double().T
    log_q = (torch.tanh(products / CONFIG.final_softcap) * CONFIG.final_softcap).log_softmax(-1)
    losses = -log_q.gather(-1, batch["tokens"].roll(-1, 1).long()[..., None])[..., 0]
    torch.testing.assert_close(value.double(), (losses * batch["loss_mask"]).sum(), rtol=2e-6, atol=0)


def test_the_loss_without_gradients_is_the_same(model: Gemma2, batch: Batch) -> None:
    with_gradients, _ = next_token_loss(model, batch, in_chunks())
    with torch.no_grad():
        without, _ = next_token_loss(model, batch, in_chunks())
    torch.testing.assert_close(without, with_gradients.detach())


def test_logits_of_the_whole_batch_never_exist(model: Gemma2, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    product = loss_head.product

    def recorded(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
        sizes.append(len(left))
        return product(left, right, out)

    monkeypatch.setattr(loss_head, "product", recorded)
    value, _ = next_token_loss(model, batch, in_chunks())
    torch.autograd.grad(value, list(model.parameters()))
    assert max(sizes) <= CHUNK < B * T


def test_what_the_mask_hides_changes_nothing(model: Gemma2, batch: Batch) -> None:
    before, _ = next_token_loss(model, batch)
    batch["loss_mask"][:, -2] = False  # the last token is now no target, and no other query sees it
    without, _ = next_token_loss(model, batch)
    batch["tokens"][:, -1] = 5
    assert torch.equal(next_token_loss(model, batch)[0], without)
    assert without < before


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_no_temperature_is_refused(model: Gemma2, batch: Batch, wrong: float) -> None:
    with pytest.raises(ValueError, match=r"temperature is .* above 0 and finite"):
        next_token_loss_at(model, batch, wrong)


def next_token_loss_at(model: Gemma2, batch: Batch, temperature: float) -> None:
    counts = {"target_ids": batch["tokens"][..., None], "target_counts": torch.ones_like(batch["tokens"])[..., None]}
    distill_loss(model, batch | counts, draws=1, options=in_chunks(temperature=temperature))


def test_an_empty_chunk_is_refused(model: Gemma2, batch: Batch) -> None:
    with pytest.raises(ValueError, match="chunk_positions is 0; it must be at least 1"):
        next_token_loss(model, batch, LossOptions(chunk_positions=0))


def test_z_loss_acts_on_the_gradient_and_not_on_the_reported_loss(model: Gemma2, batch: Batch) -> None:
    weight = 0.01
    exact = Gemma2(CONFIG).double()
    exact.load_state_dict({name: tensor.double() for name, tensor in model.state_dict().items()})
    hidden = exact.hidden(batch["tokens"], batch["positions"], batch["segment_ids"])
    logits = torch.tanh(hidden @ exact.model.embed_tokens.weight.T / CONFIG.final_softcap) * CONFIG.final_softcap
    following = batch["tokens"].roll(-1, 1).long()[..., None]
    cross_entropy = -logits.log_softmax(-1).gather(-1, following)[..., 0]
    with_z = cross_entropy + weight * logits.logsumexp(-1).square()
    gradients = list(torch.autograd.grad((with_z * batch["loss_mask"]).sum(), list(exact.parameters())))
    reported = (cross_entropy * batch["loss_mask"]).sum()
    assert_equal(model, batch, next_token_loss(model, batch, LossOptions(z_loss=weight)), (reported, gradients))
