"""AdamW agrees with PyTorch's own, and the schedule passes through the points that define it."""

import pytest
import torch

from model import Gemma2, gemma2_tiny
from training.config import OptimizerConfig
from training.optim import adamw_, decays, init_state, learning_rate, step_scalars

TARGETS = 7.0


@pytest.mark.parametrize("grad_clip", [0.0, 0.5, 1e6])
def test_adamw_equals_torch_with_decay_on_matrices_only(grad_clip: float) -> None:
    config = OptimizerConfig(learning_rate=0.01, warmup_steps=3, weight_decay=0.2, grad_clip=grad_clip)
    generator = torch.Generator().manual_seed(0)
    ours = {
        "matrix": torch.randn(5, 4, generator=generator),
        "norm.weight": torch.randn(2, 3, generator=generator),  # of two layers in a stack
    }
    theirs = {name: tensor.clone().requires_grad_() for name, tensor in ours.items()}
    reference = torch.optim.AdamW(
        [{"params": [theirs["matrix"]], "weight_decay": 0.2}, {"params": [theirs["norm.weight"]], "weight_decay": 0.0}],
        betas=(config.beta1, config.beta2),
        eps=config.eps,
    )
    state = init_state(ours)
    for step in range(10):
        means = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in ours.items()}
        for name, parameter in theirs.items():
            parameter.grad = means[name].clone()
        expected_norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in theirs.values()])
        if grad_clip:
            torch.nn.utils.clip_grad_norm_(theirs.values(), grad_clip)
        for group in reference.param_groups:
            group["lr"] = learning_rate(config, step, steps=10)
        reference.step()

        norm = adamw_(
            ours,
            [means[name] * TARGETS for name in ours],  # sums, as the loss gives them
            state,
            torch.tensor(step_scalars(config, step, steps=10)),
            torch.tensor(1 / TARGETS),
            config,
        )
        torch.testing.assert_close(norm, expected_norm)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name].detach(), rtol=1e-5, atol=1e-6)


def test_what_decays_are_the_matrices_of_a_model() -> None:
    for name, parameter in Gemma2(gemma2_tiny()).named_parameters():
        assert decays(name, OptimizerConfig()) == (parameter.ndim == 2), name


@pytest.mark.parametrize(("decay", "middle"), [("linear", 0.55), ("cosine", 0.55), ("constant", 1.0)])
def test_the_schedule_rises_then_falls_to_the_final_rate(decay: str, middle: float) -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=4, decay=decay, final_learning_rate_fraction=0.1)  # type: ignore[arg-type]
    rates = [learning_rate(config, step, steps=15) for step in range(15)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[9] == pytest.approx(middle)
    assert rates[14] == pytest.approx(1.0 if decay == "constant" else 0.1)


def test_moments_exist_before_the_first_step_and_are_float32() -> None:
    state = init_state({"weight": torch.ones(3, 2, dtype=torch.bfloat16)})
    assert state.first["weight"].dtype == state.second["weight"].dtype == torch.float32
    assert state.first["weight"].shape == (3, 2)
    assert not state.first["weight"].any()


def test_wsd_stays_and_falls_at_the_end_as_the_root_of_the_progress() -> None:
    config = OptimizerConfig(
        learning_rate=1.0, warmup_steps=2, decay="wsd", cooldown_steps=4, final_learning_rate_fraction=0.0
    )
    rates = [learning_rate(config, step, steps=10) for step in range(10)]
    assert rates[2:6] == [1.0] * 4
    assert rates[6:] == pytest.approx([0.5, 1 - 0.5**0.5, 1 - 0.75**0.5, 0.0])
    assert [learning_rate(config, step, steps=20) for step in range(6)] == rates[:6]  # carried on, it would have stayed


def test_the_average_follows_the_weights_and_groups_decide_what_decays() -> None:
    weights = {"embed.weight": torch.ones(2, 2), "other.weight": torch.ones(2, 2)}
    config = OptimizerConfig(learning_rate=0.5, weight_decay=0.1, no_decay=("embed*",), average_decay=0.75, eps=1.0)
    state = init_state(weights, average=True)
    gradients = [torch.zeros(2, 2), torch.zeros(2, 2)]
    adamw_(weights, gradients, state, torch.tensor(step_scalars(config, 0, 1)), torch.tensor(1.0), config)
    assert weights["embed.weight"].tolist() == [[1, 1], [1, 1]]
    torch.testing.assert_close(weights["other.weight"], torch.full((2, 2), 0.95))
    assert state.average is not None
    torch.testing.assert_close(state.average["other.weight"], torch.full((2, 2), 0.75 + 0.25 * 0.95))


def test_where_keep_is_false_nothing_moves_whatever_the_gradient() -> None:
    weights = {"a.weight": torch.ones(3)}
    config = OptimizerConfig(learning_rate=0.5)
    state = init_state(weights)
    state.first["a.weight"] += 0.5
    state.second["a.weight"] += 0.5
    scalars, keep = torch.tensor(step_scalars(config, 0, 1)), torch.tensor(False)
    adamw_(weights, [torch.full((3,), torch.nan)], state, scalars, torch.tensor(1.0), config, keep=keep)
    assert weights["a.weight"].tolist() == [1.0] * 3
    assert state.first["a.weight"].tolist() == state.second["a.weight"].tolist() == [0.5] * 3
