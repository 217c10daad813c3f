"""AdamW as plain functions over lists of tensors, the same code on every device.

Values that change from step to step (learning rate, bias corrections) are computed on the host in float64 and passed in
as one small device tensor. So a compiler gets the same program at every step and compiles it once. The moments exist
from step 0 for the same reason. Cost: two float32 tensors of state for each parameter.

AdamW: Loshchilov and Hutter, "Decoupled weight decay regularization" (arXiv 1711.05101), algorithm 2.
"""

import dataclasses
import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from training.config import OptimizerConfig

SPIKE_AFTER = 50  # steps before a loss can be a spike: at first the loss falls fast
SPIKE_SHARE = 0.05  # share of a new loss in the running mean and variance: they follow about 20 steps
CLIP_EPS = 1e-6  # as in torch.nn.utils.clip_grad_norm_, so that the two agree to the last bits


@dataclasses.dataclass
class OptimizerState:
    """The moments of AdamW, by the names of the parameters."""

    first: dict[str, Tensor]
    """Running mean of the gradients."""
    second: dict[str, Tensor]
    """Running mean of the squared gradients."""
    average: dict[str, Tensor] | None = None
    """Running mean of the weights; None: it is not kept."""
    loss_statistics: Tensor | None = None
    """Steps, running mean and variance of the loss, float32 [3]; None: the run does not look for spikes."""


def zeros_like(parameter: Tensor) -> Tensor:
    """A moment at step 0: float32 whatever the parameter's type."""
    return torch.zeros_like(parameter, dtype=torch.float32, requires_grad=False)


def init_state(
    parameters: Mapping[str, Tensor],
    average: bool = False,
    statistics: bool = False,
    zeros: Callable[[Tensor], Tensor] = zeros_like,
) -> OptimizerState:
    """Zero moments beside each parameter; an average and statistics on request. On a mesh, `zeros` is the backend's."""
    return OptimizerState(
        first={name: zeros(parameter) for name, parameter in parameters.items()},
        second={name: zeros(parameter) for name, parameter in parameters.items()},
        average={name: p.detach().float().clone() for name, p in parameters.items()} if average else None,
        loss_statistics=torch.zeros(3, device=next(iter(parameters.values())).device) if statistics else None,
    )


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The learning rate of step `step` (from 0) of `steps`: a linear rise to the highest rate, then the decay.

    The first step after the warm-up has the highest rate, the last step the final rate. `wsd` stays at the highest rate
    until the last `cooldown_steps`.
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
        case "wsd":
            cooled = max(0.0, (step + 1 - (steps - config.cooldown_steps)) / config.cooldown_steps)
            left = 1.0 - (math.sqrt(cooled) if config.cooldown_shape == "sqrt" else cooled)
    final = config.final_learning_rate_fraction
    return config.learning_rate * (final + (1.0 - final) * left) if config.decay != "constant" else config.learning_rate


def step_scalars(config: OptimizerConfig, step: int, steps: int) -> list[float]:
    """What `adamw_` needs for step `step` (from 0): learning rate, decay and bias corrections.

    They are [lr * weight_decay, lr / (1 - beta1^t), sqrt(1 - beta2^t)] with t = step + 1.
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


def decays(name: str, config: OptimizerConfig) -> bool:
    """Whether the parameter decays; decided by name, since a stack of norm scales has two dimensions, like a matrix."""
    return not any(fnmatch.fnmatchcase(name, pattern) for pattern in config.no_decay)


@torch.no_grad()
def adamw_(
    parameters: Mapping[str, Tensor],
    gradients: Sequence[Tensor],
    state: OptimizerState,
    scalars: Tensor,
    gradient_scale: Tensor,
    config: OptimizerConfig,
    norm: Tensor | None = None,
    keep: Tensor | None = None,
) -> Tensor:
    """One step of AdamW in place. Returns the norm of the mean gradient before clipping.

    `gradients` are SUMS over targets, in the order of `parameters`; `gradient_scale` is 1 / number of targets, so the
    division happens once. `scalars` is `step_scalars(...)` on the device. `norm` is the norm to return, if the caller
    has it already. `keep` is a bool on the device: if it is false nothing changes, whatever the gradients are. Float32
    gradients are overwritten: their memory holds the update, so that no further memory is needed.
    """
    names = list(parameters)
    if norm is None:
        norm = global_norm(gradients) * gradient_scale
    if keep is None:
        keep = torch.ones((), dtype=torch.bool, device=norm.device)
    kept = keep.float()
    scale = gradient_scale
    if config.grad_clip:
        scale = scale * torch.clamp(config.grad_clip / (norm + CLIP_EPS), max=1.0)
    mean = [gradient.float() for gradient in gradients]
    torch._foreach_mul_(mean, scale)
    _clear_unless(keep, mean)
    first = [state.first[name] for name in names]
    second = [state.second[name] for name in names]
    decay, rate, correction = scalars.unbind()

    torch._foreach_mul_(first, 1.0 - kept * (1.0 - config.beta1))
    torch._foreach_add_(first, mean, alpha=1.0 - config.beta1)
    torch._foreach_mul_(second, 1.0 - kept * (1.0 - config.beta2))
    torch._foreach_addcmul_(second, mean, mean, 1.0 - config.beta2)
    update = mean
    torch._foreach_copy_(update, second)
    torch._foreach_sqrt_(update)
    torch._foreach_div_(update, correction)
    torch._foreach_add_(update, config.eps)
    torch._foreach_reciprocal_(update)
    torch._foreach_mul_(update, first)
    torch._foreach_mul_(update, rate * kept)
    decaying = [parameter for name, parameter in parameters.items() if decays(name, config)]
    if config.weight_decay and decaying:
        torch._foreach_mul_(decaying, 1.0 - decay * kept)
    torch._foreach_sub_(list(parameters.values()), update)
    if state.average is not None:
        weights = [parameter.float() for parameter in parameters.values()]
        torch._foreach_lerp_([state.average[name] for name in names], weights, 1.0 - config.average_decay)
    return norm


def _clear_unless(keep: Tensor, tensors: Sequence[Tensor]) -> None:
    """Sets the tensors to zero if `keep` is false.

    A product with zero would not do: values that are not finite would stay so.
    """
    if keep.device.type == "cpu":  # the value is known here, and a masked fill costs as much as the rest of the update
        if not keep:
            torch._foreach_zero_(list(tensors))
        return
    for tensor in tensors:
        tensor.masked_fill_(~keep, 0.0)


def loss_is_spike(statistics: Tensor, loss: Tensor, sigmas: float) -> Tensor:
    """Whether the loss is `sigmas` standard deviations above its running mean (never in the first SPIKE_AFTER steps).

    `statistics` is `OptimizerState.loss_statistics`.
    """
    steps, mean, variance = statistics.unbind()
    return (steps >= SPIKE_AFTER) & (loss > mean + sigmas * variance.sqrt())


def update_statistics_(statistics: Tensor, loss: Tensor, keep: Tensor) -> None:
    """Adds the loss to the running mean and variance (at first the plain mean and variance) unless `keep` is false."""
    steps, mean, variance = statistics.unbind()
    share = torch.clamp(1.0 / (steps + 1.0), min=SPIKE_SHARE)
    difference = loss - mean
    grown = torch.stack(
        [steps + 1.0, mean + share * difference, (1.0 - share) * (variance + share * difference * difference)]
    )
    statistics.copy_(torch.where(keep, grown, statistics))
