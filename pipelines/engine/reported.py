"""What the report shows of a run: the base class of the reports that stages declare, and the figures that they return.

`pipelines/report/kinds.py` has the reports of stages that run a model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipelines.engine.finished import Finished
from pipelines.engine.inputs import Input


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A model that a run trained."""

    objective: str
    shape: str
    """width and layers in words"""
    parameters: int | None
    steps: Sequence[int]
    """steps that have a checkpoint"""
    tokens_seen: int | None
    setting: str
    """all that makes models comparable but the objective: the same text, the same setting"""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A checkpoint on held-out rows."""

    heldout: str
    """reference of the rows"""
    targets: int
    loss: float
    """nats a target token"""
    perplexity: float
    bits_per_byte: float
    unigram: Mapping[str, float]
    """the same three of the unigram baseline; empty where none was computed"""


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """A checkpoint and its evaluation."""

    checkpoint: Input
    step: int
    evaluation: Evaluation


@dataclass(frozen=True, kw_only=True)
class CacheFigures:
    """A cache of a teacher's logits."""

    name: str
    draws: int
    """0 where nothing was drawn: the most likely ids were kept"""
    targets: int
    stored_ids: int
    max_unique: int
    vocab_size: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Written:
    """Texts that a model wrote."""

    checkpoint: Input
    texts: Sequence[tuple[str, str]]
    """(prompt, continuation)"""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the report shows of a run. The defaults are those of a stage that makes documents or rows."""

    units: Mapping[str, str] = field(default_factory=dict)
    """dataset -> what one of its rows is called, where it is not as in `pipelines/report/words.py`"""
    tokens_fact: str = ""
    """fact of a dataset that counts the tokens; empty: the tokens of all its datasets"""

    @property
    def evaluates(self) -> bool:
        """Whether its runs are evaluations of a checkpoint."""
        return False

    def made(self, run: Finished) -> str:
        """What it made, in words; empty: the rows of each dataset."""
        return ""

    def tokens(self, run: Finished) -> int | None:
        """Tokens that it made; of a stage that runs a model, targets that were predicted. None: not known."""
        datasets = run.manifest.datasets.values()
        if self.tokens_fact:
            return next(
                (int(made.facts[self.tokens_fact]) for made in datasets if self.tokens_fact in made.facts), None
            )
        return sum(dataset.tokens for dataset in datasets) or None

    def model(self, run: Finished) -> TrainedModel | None:
        """The model that it trained."""
        return None

    def evaluation(self, run: Finished) -> Evaluated | None:
        """The checkpoint that it evaluated."""
        return None

    def cache(self, name: str, run: Finished) -> CacheFigures | None:
        """The cache of logits that it made, under the name of its step."""
        return None

    def written(self, run: Finished) -> Written | None:
        """The texts that a model wrote in it."""
        return None
