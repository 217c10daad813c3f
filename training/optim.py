"""AdamW as plain functions over lists of tensors, the same code on every device.

What changes from step to step (learning rate, bias corrections) is computed on the host in float64 and handed in as
one small device tensor, so a compiler sees the same program at every step and compiles it once. The moments exist
from step 0 for the same reason. Cost: two float32 tensors of state for each parameter.

AdamW: Loshchilov and Hutter, "Decoupled weight decay regularization" (arXiv 1711.05101), algorithm 2.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from training.config import OptimizerConfig

CLIP_EPS = 1e-6  # as in torch.nn.utils.clip_grad_norm_, so that the two agree to the last bits


@dataclasses.dataclass
class OptimizerState:
    """The moments of AdamW, by the names of the parameters."""

    first: dict[str, Tensor]
    """running mean of the gradients"""
    second: dict[str, Tensor]
    """running mean of the squared gradients"""


def init_state(parameters: Mapping[str, Tensor]) -> OptimizerState:
    """Zero moments beside each parameter, in float32 whatever the parameter's type."""

    def zeros() -> dict[str, Tensor]:
        return {name: torch.zeros_like(p, dtype=torch.float32, requires_grad=False) for name, p in parameters.items()}

    return OptimizerState(first=zeros(), second=zeros())


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Of step `step` (from 0) of `steps`: a linear rise that ends at the highest rate, then the decay.

    The first step after the warm-up has the highest rate, the last one the final rate.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / (config.warmup_steps + 1)
    span = steps - 1 - config.warmup_steps
    progress = min(1.0, (step - config.warmup_steps) / span) if span > 0 else 0.0
    match config.decay:
        case "constant":
            left = 1.0
        case "linear":
            left = 1.0 - progress
        case "cosine":
            left = 0.5 * (1.0 + math.cos(math.pi * progress))
    final = config.final_learning_rate_fraction
    return config.learning_rate * (final + (1.0 - final) * left) if config.decay != "constant" else config.learning_rate


def step_scalars(config: OptimizerConfig, step: int, steps: int) -> list[float]:
    """What `adamw_` needs to know of step `step` (from 0): learning rate, decay and bias corrections.

    As [lr * weight_decay, lr / (1 - beta1^t), sqrt(1 - beta2^t)] with t = step + 1.
    """
    rate = learning_rate(config, step, steps)
    return [
        rate * config.weight_decay,
        rate / (1.0 - config.beta1 ** (step + 1)),
        math.sqrt(1.0 - config.beta2 ** (step + 1)),
    ]


def global_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The L2 norm over all elements of all gradients, float32."""
    norms = torch._foreach_norm(list(gradients), 2, dtype=torch.float32)
    return torch.linalg.vector_norm(torch.stack(list(norms)))


def decays(name: str) -> bool:
    """Whether the parameter is a matrix; by name, since a stack of norm scales has two dimensions too."""
    return not name.endswith("norm.weight")


@torch.no_grad()
def adamw_(
    parameters: Mapping[str, Tensor],
    gradients: Sequence[Tensor],
    state: OptimizerState,
    scalars: Tensor,
    gradient_scale: Tensor,
    config: OptimizerConfig,
) -> Tensor:
    """One step of AdamW in place. Returns the norm of the mean gradient before clipping.

    `gradients` are SUMS over targets, in the order of `parameters`; `gradient_scale` is 1 / number of targets, so the
    division happens once. `scalars` is `step_scalars(...)` on the device. Matrices decay, norm scales do not.
    Float32 gradients are used up: their memory holds the update, so that no other is needed.
    """
    names = list(parameters)
    norm = global_norm(gradients) * gradient_scale
    scale = gradient_scale
    if config.grad_clip:
        scale = scale * torch.clamp(config.grad_clip / (norm + CLIP_EPS), max=1.0)
    mean = [gradient.float() for gradient in gradients]
    torch._foreach_mul_(mean, scale)
    first = [state.first[name] for name in names]
    second = [state.second[name] for name in names]
    decay, rate, correction = scalars.unbind()

    torch._foreach_lerp_(first, mean, 1.0 - config.beta1)
    torch._foreach_mul_(second, config.beta2)
    torch._foreach_addcmul_(second, mean, mean, 1.0 - config.beta2)
    update = mean
    torch._foreach_copy_(update, second)
    torch._foreach_sqrt_(update)
    torch._foreach_div_(update, correction)
    torch._foreach_add_(update, config.eps)
    torch._foreach_reciprocal_(update)
    torch._foreach_mul_(update, first)
    torch._foreach_mul_(update, rate)
    if config.weight_decay:
        matrices = [parameter for name, parameter in parameters.items() if decays(name)]
        torch._foreach_mul_(matrices, 1.0 - decay)
    torch._foreach_sub_(list(parameters.values()), update)
    return norm
