"""The work of a stage: the base class of the costs that stages declare, and the planned steps that a cost reads.

    recipe -> Planned steps -> Cost.estimate -> Work -> pipelines/account (places, prices)       before the run
    finished run            -> Cost.measure  -> Work -> pipelines/account (places, prices)       after the run

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
    """The work of one step, before its machines and prices are known."""

    tokens: float = 0.0
    """tokens of the rows or of the text that the step processes"""
    flops: float = 0.0
    """floating-point operations of the model, without recomputation"""
    read_bytes: float = 0.0
    """UTF-8 bytes of text that CPU cores process at the stage's speed"""
    stored: Mapping[str, float] = field(default_factory=dict)
    """kind of data -> bytes that the step stores"""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Numbers of packed rows that a step makes."""

    count: int = 0
    """number of training rows"""
    heldout: int = 0
    """number of held-out rows"""
    length: int = 0
    """number of tokens in a row"""


@dataclass(frozen=True, eq=False, kw_only=True)
class Planned:
    """A step of a recipe before it runs, with the steps that it reads and the steps that read it."""

    name: str
    stage: str
    config: Any
    """Config of the stage"""
    cost: "Cost"
    """cost that the stage declares"""
    inputs: Mapping[str, Sequence["Planned"]]
    """input -> steps whose datasets it takes; files from outside are not listed"""
    readers: list["Planned"] = field(default_factory=list)
    """steps that read a dataset of this step"""

    def source(self, name: str) -> "Planned | None":
        """The first step whose dataset the input takes; None if the input takes only files from outside."""
        return next(iter(self.inputs.get(name, ())), None)

    def rows(self, name: str) -> list[Rows]:
        """Numbers of packed rows of each step whose dataset the input takes."""
        return [step.cost.rows(step) for step in self.inputs.get(name, ())]

    def following(self) -> list["Planned"]:
        """Every step that depends on this step, directly or indirectly, each once."""
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
    """The cost of a stage, for `plan --prices` and `account`. A stage overrides the methods that apply to it."""

    speed: Constant | None = None
    """megabytes of text per second and core, which a price file replaces as `speed.<stage>`; None: reads no text"""

    @property
    def trains(self) -> bool:
        """Whether the stage trains weights: the published carbon covers training alone."""
        return False

    def estimate(self, step: Planned, prices: Prices) -> Work:
        """The work before the step has run, from its config and its sources."""
        return Work()

    def measure(self, run: Finished) -> Work:
        """The work after the run: tokens and operations of its model. If tokens is 0, those of its datasets count."""
        return Work()

    def rows(self, step: Planned) -> Rows:
        """The packed rows that the step makes."""
        return Rows()

    def drawn_rows(self, config: Any) -> int:
        """The number of packed rows that the stage trains on, over all training steps."""
        return 0

    def model(self, config: Any) -> "Gemma2Config | None":
        """The sizes of the model whose checkpoints the stage writes; None if it writes no checkpoints."""
        return None

    def kept_pass(self, step: Planned) -> "Gemma2Config | None":
        """The teacher whose forward pass the step stores for the training steps that read it; None: it stores none."""
        return None
