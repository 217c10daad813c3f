"""A kind of cached distribution: the one object that capture, cache, loader, loss and audit use.

    logits [P, V] of the teacher -> keep (on the device) -> targets (on the host) -> data/logits.py, as `codec` says
    cached bytes -> data/logits.py -> `padding` -> columns of a batch -> loss
    logits [P, V] and what a cache kept -> statistics (on the device) -> Tally -> checks

An instance has the numbers of one cache, such as the number of draws. Decoding, padding and the loss of a cache need
only its `CodecSpec`, so they belong to the class. A new kind is a module in training/distill/kinds/ and its name in one
import there.

Shapes: B batch, T time, P positions, V vocabulary, K ids kept at a position.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

import numpy as np
from torch import Tensor

from data.logits import CodecSpec, Targets
from data.padding import SPARSE, Padding
from model import TableModel
from training.errors import UserError
from training.loss import Batch, LossOptions


@dataclass(kw_only=True)
class Tally:
    """Statistics of audited targets. The tallies of two parts of a cache can be added."""

    positions: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    """Sums over positions, by name."""
    largest: dict[str, float] = field(default_factory=dict)
    """Largest values over positions, by name."""

    def add(self, other: "Tally") -> None:
        self.positions += other.positions
        for name, value in other.sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        for name, value in other.largest.items():
            self.largest[name] = max(self.largest.get(name, 0.0), value)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much an honest cache may differ from its teacher."""

    alpha: float
    """Chance that an honest cache fails the statistical tests of its draws."""
    log_prob_difference: float
    """Largest difference of log p of a kept id, in nats."""
    lost_mass: float
    """Largest difference, as a probability, between the mass of the most likely ids and the mass of the kept ids, and
    between tails."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """A statistic of a cache; it passes if it is at most its limit."""

    name: str
    value: float
    limit: float
    detail: str
    """Description of the comparison, for a person to read."""


@dataclass(frozen=True, kw_only=True)
class Kind(ABC):
    """A kind of cached distribution, with its numbers."""

    name: ClassVar[str]
    """Name on the command line and in manifests."""
    padding: ClassVar[Padding] = SPARSE
    """Layout of its targets in a batch."""
    has_tail: ClassVar[bool] = False
    """Whether the loss uses `DistillConfig.tail` for the mass outside of the kept ids."""
    sums: ClassVar[tuple[str, ...]]
    """Names of the first columns of `statistics`, which are added up over positions."""
    largest: ClassVar[tuple[str, ...]] = ()
    """Names of the last columns of `statistics`, whose largest value counts."""

    temperature: float = 1.0
    """Temperature T of the distribution softmax(logits / T)."""

    def __post_init__(self) -> None:
        check_positive("temperature", self.temperature)

    @classmethod
    def of(cls, numbers: Mapping[str, Any]) -> Self:
        """The kind with the numbers that it uses, by name. Raises UserError if a number is out of range."""
        return cls(**{number.name: numbers[number.name] for number in fields(cls)})

    @classmethod
    def described(cls, facts: Mapping[str, Any]) -> str:
        """The contents of a cache at each target, for a model card; `facts` are those of its manifest."""
        return f"what the estimator {cls.name!r} keeps of the teacher's distribution"

    @abstractmethod
    def codec(self, vocab_size: int) -> CodecSpec:
        """How the bytes of a cache are written. Raises UserError if the vocabulary does not allow them."""

    def noise(
        self, batch: Mapping[str, np.ndarray], places: Sequence[np.ndarray], seed: int, teacher_hash: str
    ) -> dict[str, np.ndarray]:
        """Random numbers for `keep`, one row for each target. `places`: the positions of the targets of each row."""
        return {}

    @abstractmethod
    def keep(self, logits_PV: Tensor, noise: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """The tensors that leave the device, [P, ...] each; the last tensor is finite only if the logits are finite."""

    @abstractmethod
    def targets(self, *kept: np.ndarray) -> Targets:
        """The kept values of some positions, by the names of data/logits.py."""

    @classmethod
    @abstractmethod
    def loss(cls, model: TableModel, batch: Batch, codec: CodecSpec, options: LossOptions) -> tuple[Tensor, Tensor]:
        """Loss to the columns that `padding` makes, summed over targets, and the number of targets."""

    @abstractmethod
    def statistics(self, logits_PV: Tensor, kept: Mapping[str, Tensor], coins_V: Tensor) -> Tensor:
        """float32 [P, columns]: a column for each name in `sums`, then for each name in `largest`.

        kept: the cache's values at these positions. coins_V: +1 or -1 for each id, drawn for the audit.
        """

    @abstractmethod
    def checks(self, total: Tally, limits: Limits) -> list[Check]:
        """Whether a cache with these statistics is an honest estimate of its teacher."""


def check_positive(name: str, value: float) -> None:
    if not 0.0 < value < math.inf:
        raise UserError(f"{name} is {value}; it must be above 0 and finite (default: 1)")


def check_number(name: str, value: int) -> None:
    if not 1 <= value <= 65535:
        raise UserError(f"{name} is {value}; allowed are 1 to 65535 (default: 50)")


class NotFiniteError(UserError):
    """Logits that are not finite; a stage adds the name of the checkpoint."""


def check_finite(values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise NotFiniteError("the teacher's logits are not finite; check the teacher's weights")
