"""What decides the result of a training run, besides its data: `TrainingConfig`.

The stage that owns it hashes it whole. What only says where and how fast the work is done (device, workers, rows per
forward) is in `training/setup.py`, and all that a worker needs is in `training/job.py`. Checks are in `__post_init__`;
no I/O here.
"""

import dataclasses
import math
from typing import Literal, get_args

from data.absent import absent
from model import Gemma2Config
from training.errors import UserError

Decay = Literal["cosine", "linear", "constant", "wsd"]
CooldownShape = Literal["sqrt", "linear"]
ComputeType = Literal["float32", "bfloat16"]
BadStep = Literal["stop", "skip"]
Objective = Literal["next_token", "distill"]
Tail = Literal["bucket", "renormalize", "ground_truth"]
FeedKind = Literal["direct", "ray"]
Remat = Literal["none", "projections", "full"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, its learning rate schedule, and the running mean of the weights.

    The Gemma 2 paper (arXiv 2408.00118) discloses no optimizer, schedule, clipping or decay: these defaults are those
    that other papers agree on, each with its source, and the learning rate is one for models of a few million
    parameters; published models of billions used 1.5e-4 to 4e-4.
    """

    learning_rate: float = 1e-3
    """highest learning rate, reached after the warm-up"""
    warmup_steps: int = absent(0)
    """steps of linear rise from 0"""
    decay: Decay = "cosine"
    """the learning rate after the warm-up: falls by `cosine`, or `linear`, over all remaining steps; `constant`; `wsd`:
    stays, and falls in the last `cooldown_steps` (arXiv 2404.06395): one can carry on from before the cooldown"""
    cooldown_steps: int = absent(0)
    """for `wsd`: steps of the fall at the end; 10 to 20 % of a run do well (arXiv 2405.18392)"""
    cooldown_shape: CooldownShape = "sqrt"
    """for `wsd`: the fall is 1 - sqrt(progress), the better one in arXiv 2405.18392, or linear"""
    final_learning_rate_fraction: float = 0.1
    """learning rate of the last step, as a fraction of the highest (0.1: arXiv 2203.15556)"""
    beta1: float = 0.9
    """decay of the running mean of gradients (arXiv 2005.14165)"""
    beta2: float = 0.95
    """decay of the running mean of squared gradients (arXiv 2005.14165)"""
    eps: float = 1e-8
    """added to the root of the second moment (arXiv 2005.14165)"""
    weight_decay: float = 0.1
    """decoupled decay of the weights, times the learning rate (arXiv 2005.14165)"""
    no_decay: tuple[str, ...] = ("*norm.weight",)
    """weights that do not decay, as patterns of their names; add "*embed_tokens.weight" to leave the embedding alone"""
    grad_clip: float = 1.0
    """largest global norm of the mean gradient; 0 does not clip (arXiv 2005.14165)"""
    average_decay: float = absent(0.0)
    """decay a step of a running mean of the weights, kept in float32 and saved beside them; 0 keeps none"""

    def __post_init__(self) -> None:
        one_of("decay", self.decay, get_args(Decay))
        at_least("learning_rate", self.learning_rate, 0.0)
        at_least("warmup_steps", self.warmup_steps, 0)
        at_least("weight_decay", self.weight_decay, 0.0)
        at_least("grad_clip", self.grad_clip, 0.0)
        for name in ("beta1", "beta2"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise UserError(f"{name} is {getattr(self, name)}; allowed is 0 <= {name} < 1")
        if self.eps <= 0:
            raise UserError(f"eps is {self.eps}; it has to be above 0")
        one_of("cooldown_shape", self.cooldown_shape, get_args(CooldownShape))
        if (self.decay == "wsd") != (self.cooldown_steps > 0):
            raise UserError(
                f"decay is {self.decay!r} and cooldown_steps is {self.cooldown_steps}; 'wsd' needs at least 1 step of "
                "cooldown, the others take none"
            )
        if not 0.0 <= self.average_decay < 1.0:
            raise UserError(f"average_decay is {self.average_decay}; allowed is 0 (no average) to less than 1")
        if not 0.0 <= self.final_learning_rate_fraction <= 1.0:
            raise UserError(f"final_learning_rate_fraction is {self.final_learning_rate_fraction}; allowed is 0 to 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """What a student makes of the teacher's cached distribution; formulas in `training/distill/kinds/`."""

    alpha: float = absent(0.0)
    """share of the next token in the loss; the rest is the teacher's"""
    temperature: float = 1.0
    """T that divides the student's logits, as it did the teacher's when they were cached; the teacher's part of the
    loss is multiplied by T^2"""
    tail: Tail = "bucket"
    """of top-k: where the mass outside of the K ids goes: to all other ids as one (`bucket`), nowhere (`renormalize`,
    biased), or to the true next token (`ground_truth`)"""

    def __post_init__(self) -> None:
        one_of("tail", self.tail, get_args(Tail))
        if not 0.0 <= self.alpha < 1.0:
            raise UserError(
                f"alpha is {self.alpha}; allowed is 0 <= alpha < 1, and objective 'next_token' needs no teacher"
            )
        if not 0.0 < self.temperature < math.inf:
            raise UserError(f"temperature is {self.temperature}; it has to be above 0 and finite, 1 changes nothing")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Everything that decides the weights that come out, besides the data."""

    model: Gemma2Config
    """sizes of the model"""
    objective: Objective = "next_token"
    """`next_token`: predict the data; `distill`: match the cached teacher distribution at the same targets"""
    distill: DistillConfig = dataclasses.field(default_factory=DistillConfig)
    """of objective `distill`: the share of the next token, temperature, and the tail of top-k"""
    steps: int
    """optimizer steps"""
    global_batch: int
    """rows (sequences) in a step, over all workers"""
    seed: int = 0
    """of the initial weights"""
    checkpoint_every_steps: int = 100
    """steps between checkpoints; the last step always has one"""
    keep_last: int | None = absent(None)
    """checkpoints kept at the end of the run's list; the weights of older ones go; None keeps all"""
    keep_every_steps: int = absent(0)
    """beside those, checkpoints of every multiple of so many steps are kept; 0: none"""
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    """AdamW and its schedule"""
    compute_dtype: ComputeType = "float32"
    """of weights and activations in forward and backward; weights, gradients' sums and moments stay float32"""
    z_loss: float = absent(0.0)
    """weight of log(Z)^2 at each target, Z the softmax' denominator (1e-4 in PaLM, arXiv 2204.02311); it acts on the
    gradient, the reported loss is without it"""
    spike_sigmas: float = absent(0.0)
    """a step is bad where its loss lies so many standard deviations above its running mean; 0: only where loss or
    gradient are not finite"""

    def __post_init__(self) -> None:
        one_of("objective", self.objective, get_args(Objective))
        if self.objective != "distill" and self.distill != DistillConfig():
            raise UserError(
                f"objective {self.objective!r} takes no {self.distill}; set --objective distill, or leave it"
            )
        at_least("steps", self.steps, 1)
        at_least("global_batch", self.global_batch, 1)
        at_least("checkpoint_every_steps", self.checkpoint_every_steps, 1)
        at_least("keep_every_steps", self.keep_every_steps, 0)
        at_least("z_loss", self.z_loss, 0.0)
        at_least("spike_sigmas", self.spike_sigmas, 0.0)
        one_of("compute_dtype", self.compute_dtype, get_args(ComputeType))
        if self.keep_last is not None:
            at_least("keep_last", self.keep_last, 1)
        if self.optimizer.warmup_steps + self.optimizer.cooldown_steps > self.steps:
            raise UserError(
                f"warmup_steps {self.optimizer.warmup_steps} and cooldown_steps {self.optimizer.cooldown_steps} are "
                f"more than the run's {self.steps} steps; warm up and cool down for fewer"
            )


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{name} is {value!r}; allowed are {', '.join(map(repr, allowed))}")


def at_least(name: str, value: float, least: float) -> None:
    if not least <= value < math.inf:
        raise UserError(f"{name} is {value}; the least allowed is {least}, and it has to be finite")
