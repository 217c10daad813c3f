"""What a stage takes: the base class of the costs that stages declare, and the plan of a recipe that a cost looks at.

    recipe -> Planned steps -> Cost.estimate -> Work -> pipelines/account (places, prices)       before
    finished run            -> Cost.measure  -> Work -> the same                                 after

`pipelines/account/costs.py` has the costs that several stages share.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from infra.prices import Constant, Prices
from pipelines.engine.finished import Finished

if TYPE_CHECKING:
    from model import Gemma2Config


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a step takes, before places and prices."""

    tokens: float = 0.0
    """tokens of the rows or of the text that it goes through"""
    flops: float = 0.0
    """operations of a model, without recomputation"""
    read_bytes: float = 0.0
    """UTF-8 bytes of text that cores go through at the stage's speed"""
    stored: Mapping[str, float] = field(default_factory=dict)
    """kind of data -> bytes"""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Packed rows that a step makes."""

    count: int = 0
    """training rows"""
    heldout: int = 0
    """held-out rows"""
    length: int = 0
    """tokens in a row"""


@dataclass(frozen=True, eq=False, kw_only=True)
class Planned:
    """A step of a recipe before it runs, with the steps that feed it and the steps that it feeds."""

    name: str
    stage: str
    config: Any
    """the stage's Config"""
    cost: "Cost"
    """what its stage declares"""
    inputs: Mapping[str, Sequence["Planned"]]
    """input -> steps that feed it; files from outside are not listed"""
    readers: list["Planned"] = field(default_factory=list)
    """steps that read one of its datasets"""

    def source(self, name: str) -> "Planned | None":
        """The first step that feeds the input; None where only files from outside do."""
        return next(iter(self.inputs.get(name, ())), None)

    def rows(self, name: str) -> list[Rows]:
        """Packed rows of the steps that feed the input."""
        return [step.cost.rows(step) for step in self.inputs.get(name, ())]

    def following(self) -> list["Planned"]:
        """Every step that rests on this one, each once."""
        followers: dict[int, Planned] = {}
        unread = list(self.readers)
        while unread:
            step = unread.pop()
            if id(step) not in followers:
                followers[id(step)] = step
                unread += step.readers
        return list(followers.values())


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a stage takes, for `plan --prices` and `account`. A stage that costs something overrides what it knows."""

    speed: Constant | None = None
    """MB of text a second and core, which a file of prices replaces as `speed.<stage>`; None: it reads no text"""

    @property
    def trains(self) -> bool:
        """Whether it learns weights: the published carbon is that of training alone."""
        return False

    def estimate(self, step: Planned, prices: Prices) -> Work:
        """Before the step has run, from its config and its sources."""
        return Work()

    def measure(self, run: Finished) -> Work:
        """After it has run: tokens and operations of its model. No tokens: those of its datasets count."""
        return Work()

    def rows(self, step: Planned) -> Rows:
        """Packed rows that it makes."""
        return Rows()

    def drawn_rows(self, config: Any) -> int:
        """Packed rows that it trains on, over all its steps."""
        return 0

    def model(self, config: Any) -> "Gemma2Config | None":
        """Sizes of the model whose checkpoints it writes; None where it writes none."""
        return None

    def kept_pass(self, step: Planned) -> "Gemma2Config | None":
        """The teacher whose pass it keeps for the training steps that read it; None where it keeps none."""
        return None
