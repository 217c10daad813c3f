"""The part of a run that the report shows: the base class of the reports that stages declare, and their figures.

`pipelines/report/kinds.py` has the reports of the stages that run a model.
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
    """number of parameters; None: not known"""
    steps: Sequence[int]
    """steps that have a checkpoint"""
    tokens_seen: int | None
    """number of target tokens that the model was trained on; None: not known"""
    setting: str
    """text and settings of the training without the objective: models with equal ones are comparable"""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The losses of a checkpoint on held-out rows."""

    heldout: str
    """reference of the held-out rows"""
    targets: int
    """number of target tokens"""
    loss: float
    """loss in nats per target token"""
    perplexity: float
    bits_per_byte: float
    unigram: Mapping[str, float]
    """loss, perplexity and bits per byte of the unigram baseline; empty if it was not computed"""


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
    """number of draws per target; 0: nothing was drawn, the most likely ids were kept"""
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
    """The part of a run that the report shows. The defaults suit a stage that makes documents or rows."""

    units: Mapping[str, str] = field(default_factory=dict)
    """dataset -> name of one of its rows, if it differs from that in `pipelines/report/words.py`"""
    tokens_fact: str = ""
    """fact of a dataset that has the number of tokens; empty: the sum over all datasets of the run"""

    @property
    def evaluates(self) -> bool:
        """Whether a run of the stage evaluates a checkpoint."""
        return False

    def made(self, run: Finished) -> str:
        """The results of the run in words; empty: the report prints the rows of each dataset."""
        return ""

    def tokens(self, run: Finished) -> int | None:
        """The tokens that the run made; for a stage that runs a model, the predicted targets. None: not known."""
        datasets = run.manifest.datasets.values()
        if self.tokens_fact:
            return next(
                (int(made.facts[self.tokens_fact]) for made in datasets if self.tokens_fact in made.facts), None
            )
        return sum(dataset.tokens for dataset in datasets) or None

    def model(self, run: Finished) -> TrainedModel | None:
        """The model that the run trained; None: the run trained no model."""
        return None

    def evaluation(self, run: Finished) -> Evaluated | None:
        """The checkpoint that the run evaluated; None: the run evaluated no checkpoint."""
        return None

    def cache(self, name: str, run: Finished) -> CacheFigures | None:
        """The cache of logits that the run made, under `name`, its step; None: the run made no cache."""
        return None

    def written(self, run: Finished) -> Written | None:
        """The texts that a model wrote in the run; None: the run wrote no texts."""
        return None
