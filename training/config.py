"""What decides the result of a training run, besides its data: `TrainingConfig`.

The stage that owns the config hashes all of it. `training/setup.py` has what only decides where and how fast the work
is done (device, workers, rows per forward), and `training/job.py` has all that a worker needs. Checks are in
`__post_init__`; nothing here does I/O.
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


MAX_STEPS = 99_999_999
"""most steps of a run: the name of a checkpoint has eight digits"""
MAX_BATCH_ROWS = 2**20
"""most rows of a step; the order of a step's rows is held in memory"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, its learning rate schedule, and the running mean of the weights.

    The Gemma 2 paper (arXiv 2408.00118) discloses no optimizer, schedule, clipping or decay. The defaults are values
    that other papers agree on, each with its source. The default learning rate is for models of a few million
    parameters; published models of billions used 1.5e-4 to 4e-4.
    """

    learning_rate: float = 1e-3
    """Highest learning rate, reached at the end of the warm-up."""
    warmup_steps: int = absent(0)
    """Steps of warm-up, in which the learning rate rises linearly from 0."""
    decay: Decay = "cosine"
    """Shape of the learning rate after the warm-up: `cosine` and `linear` fall over all remaining steps; `constant`
    stays; `wsd` stays and falls in the last `cooldown_steps` (arXiv 2404.06395), so that another run can carry on from
    a step before the cooldown."""
    cooldown_steps: int = absent(0)
    """Steps of the fall at the end, for `wsd`; 10 to 20 % of a run do well (arXiv 2405.18392)."""
    cooldown_shape: CooldownShape = "sqrt"
    """Shape of the fall, for `wsd`: `sqrt` is 1 - sqrt(progress), the better shape in arXiv 2405.18392; or `linear`."""
    final_learning_rate_fraction: float = 0.1
    """Learning rate of the last step, as a fraction of the highest (0.1: arXiv 2203.15556)."""
    beta1: float = 0.9
    """Decay of the running mean of gradients (arXiv 2005.14165)."""
    beta2: float = 0.95
    """Decay of the running mean of squared gradients (arXiv 2005.14165)."""
    eps: float = 1e-8
    """Constant added to the root of the second moment (arXiv 2005.14165)."""
    weight_decay: float = 0.1
    """Decoupled decay of the weights, times the learning rate (arXiv 2005.14165)."""
    no_decay: tuple[str, ...] = ("*norm.weight",)
    """Weights that do not decay, as patterns of their names; with "*embed_tokens.weight" the embedding does not
    decay."""
    grad_clip: float = 1.0
    """Largest global norm of the mean gradient; 0: no clipping (arXiv 2005.14165)."""
    average_decay: float = absent(0.0)
    """Decay per step of a running mean of the weights, kept in float32 and saved beside the weights; 0: no running
    mean."""

    def __post_init__(self) -> None:
        one_of("decay", self.decay, get_args(Decay))
        if not 0.0 < self.learning_rate < math.inf:
            raise UserError(
                f"learning_rate is {self.learning_rate}; it must be above 0, so that the run learns, and finite "
                "(default: 1e-3)"
            )
        at_least("warmup_steps", self.warmup_steps, 0)
        at_least("weight_decay", self.weight_decay, 0.0)
        at_least("grad_clip", self.grad_clip, 0.0)
        for name in ("beta1", "beta2"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 0 and below 1")
        if self.eps <= 0:
            raise UserError(f"eps is {self.eps}; it must be above 0 (default: 1e-8)")
        one_of("cooldown_shape", self.cooldown_shape, get_args(CooldownShape))
        if (self.decay == "wsd") != (self.cooldown_steps > 0):
            raise UserError(
                f"decay is {self.decay!r} and cooldown_steps is {self.cooldown_steps}; 'wsd' needs at least 1 step of "
                "cooldown, and the other shapes take 0"
            )
        if not 0.0 <= self.average_decay < 1.0:
            raise UserError(f"average_decay is {self.average_decay}; it must be at least 0 (0: no average) and below 1")
        if not 0.0 <= self.final_learning_rate_fraction <= 1.0:
            raise UserError(f"final_learning_rate_fraction is {self.final_learning_rate_fraction}; allowed are 0 to 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """How a student learns from the teacher's cached distribution; formulas are in `training/distill/kinds/`."""

    alpha: float = absent(0.0)
    """Share of the next-token loss in the loss; the rest is the loss to the teacher."""
    temperature: float = 1.0
    """Temperature T that divides the student's logits, the same T as divided the cached teacher's; the loss to the
    teacher is multiplied by T^2."""
    tail: Tail = "bucket"
    """Treatment of the mass outside of the K ids, for top-k: `bucket` gives it to all other ids together, `renormalize`
    (biased) to none, `ground_truth` to the true next token."""

    def __post_init__(self) -> None:
        one_of("tail", self.tail, get_args(Tail))
        if not 0.0 <= self.alpha < 1.0:
            raise UserError(
                f"alpha is {self.alpha}; it must be at least 0 and below 1: to train without a teacher set objective "
                "'next_token'"
            )
        if not 0.0 < self.temperature < math.inf:
            raise UserError(f"temperature is {self.temperature}; it must be above 0 and finite (default: 1, no change)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Everything that decides the trained weights, besides the data."""

    model: Gemma2Config
    """Sizes of the model."""
    objective: Objective = "next_token"
    """Objective of the training: `next_token` predicts the data, `distill` matches the cached teacher distribution at
    the same targets."""
    distill: DistillConfig = dataclasses.field(default_factory=DistillConfig)
    """Settings of objective `distill`: share of the next-token loss, temperature, and the tail of top-k."""
    steps: int
    """Optimizer steps of the run."""
    global_batch: int
    """Rows (sequences) in a step, over all workers."""
    seed: int = 0
    """Seed of the initial weights."""
    checkpoint_every_steps: int = 100
    """Steps between checkpoints; the last step always has a checkpoint."""
    keep_last: int | None = absent(None)
    """Number of newest checkpoints that are kept; older checkpoints lose their weights; None: all are kept."""
    keep_every_steps: int = absent(0)
    """Interval, in steps, of the checkpoints that are kept in addition to `keep_last`; 0: none."""
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    """AdamW and its schedule."""
    compute_dtype: ComputeType = "float32"
    """Type of weights and activations in forward and backward; stored weights, sums of gradients and moments stay
    float32."""
    z_loss: float = absent(0.0)
    """Weight of log(Z)^2 at each target, with Z the denominator of the softmax (1e-4 in PaLM, arXiv 2204.02311); the
    term acts on the gradient, and the reported loss leaves it out."""
    spike_sigmas: float = absent(0.0)
    """Standard deviations above the running mean of the loss from which on a step is bad; 0: only a step whose loss or
    gradient is not finite is bad."""

    def __post_init__(self) -> None:
        one_of("objective", self.objective, get_args(Objective))
        if self.objective != "distill" and self.distill != DistillConfig():
            raise UserError(
                f"objective {self.objective!r} takes no {self.distill}; set --objective distill, or leave these "
                "fields out"
            )
        for name, most in (("steps", MAX_STEPS), ("global_batch", MAX_BATCH_ROWS)):
            at_least(name, getattr(self, name), 1)
            if getattr(self, name) > most:
                raise UserError(f"{name} is {getattr(self, name)}; allowed are 1 to {most:,}")
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
                f"more than the run's {self.steps} steps; give fewer of them, or more --steps"
            )


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{name} is {value!r}; allowed are {', '.join(map(repr, allowed))}")


def at_least(name: str, value: float, least: float) -> None:
    if not least <= value < math.inf:
        raise UserError(f"{name} is {value}; it must be finite and at least {least}")
