"""What a kind of cached distribution is: the one object that capture, cache, loader, loss and audit ask.

    logits [P, V] of the teacher -> keep (on the device) -> targets (on the host) -> data/logits.py, as `codec` says
    cached bytes -> data/logits.py -> `padding` -> columns of a batch -> loss
    logits [P, V] and what a cache kept -> statistics (on the device) -> Tally -> checks

An instance has the numbers of one cache, such as how many draws. Decoding, padding and the loss of a cache need no more
than its `CodecSpec`, so they are of the class. A new kind is a module in training/distill/kinds/ and its name in one
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
    """Statistics of audited targets. Two parts of a cache are added up to one."""

    positions: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    """name -> sum over positions"""
    largest: dict[str, float] = field(default_factory=dict)
    """name -> largest value of any position"""

    def add(self, other: "Tally") -> None:
        self.positions += other.positions
        for name, value in other.sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        for name, value in other.largest.items():
            self.largest[name] = max(self.largest.get(name, 0.0), value)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How far an honest cache may be from its teacher."""

    alpha: float
    """chance that an honest cache fails the tests of its draws"""
    log_prob_difference: float
    """nats that log p of a kept id may be off"""
    lost_mass: float
    """probability that the most likely ids may have beyond the ids kept, and that a tail may be off"""


@dataclass(frozen=True, kw_only=True)
class Check:
    """A statistic of a cache; it passes up to its limit."""

    name: str
    value: float
    limit: float
    detail: str
    """What was compared with what, for a person to read."""


@dataclass(frozen=True, kw_only=True)
class Kind(ABC):
    """A kind of cached distribution, with its numbers."""

    name: ClassVar[str]
    """its name on the command line and in manifests"""
    padding: ClassVar[Padding] = SPARSE
    """how a batch holds its targets"""
    has_tail: ClassVar[bool] = False
    """whether the loss asks `DistillConfig.tail` what becomes of the mass outside of the kept ids"""
    sums: ClassVar[tuple[str, ...]]
    """names of the first columns of `statistics`: those that are added up over positions"""
    largest: ClassVar[tuple[str, ...]] = ()
    """names of its last columns: those whose largest value counts"""

    temperature: float = 1.0
    """T: the distribution is softmax(logits / T)"""

    def __post_init__(self) -> None:
        check_positive("temperature", self.temperature)

    @classmethod
    def of(cls, numbers: Mapping[str, Any]) -> Self:
        """The kind with those of the numbers that it has, by name. Raises UserError if they are out of range."""
        return cls(**{number.name: numbers[number.name] for number in fields(cls)})

    @classmethod
    def described(cls, facts: Mapping[str, Any]) -> str:
        """What a cache holds at each target, for a model card; `facts` of its manifest."""
        return f"what the estimator {cls.name!r} keeps of the teacher's distribution"

    @abstractmethod
    def codec(self, vocab_size: int) -> CodecSpec:
        """How its bytes are written. Raises UserError if the vocabulary does not allow them."""

    def noise(
        self, batch: Mapping[str, np.ndarray], places: Sequence[np.ndarray], seed: int, teacher_hash: str
    ) -> dict[str, np.ndarray]:
        """Random numbers for `keep`, one row a target. `places`: for each row of the batch, where its targets are."""
        return {}

    @abstractmethod
    def keep(self, logits_PV: Tensor, noise: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """What leaves the device, [P, ...] each; the last of them is finite only where the logits are."""

    @abstractmethod
    def targets(self, *kept: np.ndarray) -> Targets:
        """What was kept at some positions, by the names of data/logits.py."""

    @classmethod
    @abstractmethod
    def loss(cls, model: TableModel, batch: Batch, codec: CodecSpec, options: LossOptions) -> tuple[Tensor, Tensor]:
        """Loss to the columns that `padding` makes, summed over targets, and their number."""

    @abstractmethod
    def statistics(self, logits_PV: Tensor, kept: Mapping[str, Tensor], coins_V: Tensor) -> Tensor:
        """float64 [P, columns]: a column for each of `sums`, then of `largest`.

        kept: what the cache holds at these positions. coins_V: +1 or -1 for each id, drawn for the audit.
        """

    @abstractmethod
    def checks(self, total: Tally, limits: Limits) -> list[Check]:
        """Whether a cache with these statistics is an honest estimate of its teacher."""


def check_positive(name: str, value: float) -> None:
    if not 0.0 < value < math.inf:
        raise UserError(f"{name} is {value}; it has to be above 0 and finite, usually 1")


def check_number(name: str, value: int) -> None:
    if not 1 <= value <= 65535:
        raise UserError(f"{name} is {value}; allowed are 1 to 65535, usually 50")


def check_finite(values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise UserError("the teacher's logits are not finite; check its weights")
