"""Trains a linear classifier of texts (quality, safety) from labelled JSONL, for `filter_text --classifier`.

The stage is one task, which holds the hashed n-grams of all labelled texts in memory. The manifest has the calibration
on held-out texts.
"""

import time
from dataclasses import dataclass

from data import classifier
from pipelines.engine.errors import UserError
from pipelines.engine.inputs import ExternalFile, Read
from pipelines.engine.shard_map import Part, ShardOutput, dataset_of, map_shards
from pipelines.engine.stage import Context, Outcome

VERSION = 2
READS = {"labelled": Read(help="JSONL files of texts with labels", many=True)}
WRITES = ("classifier",)
FILE_NAME = "classifier.safetensors"


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is learned, and how closely."""

    text_field: str = "text"
    """Field that holds the text."""
    label_field: str = "label"
    """Field that holds the label, a word or a whole number."""
    kept_label: str = "1"
    """Label whose probability is the score; all other labels count as one."""
    ngrams: int = 2
    """Words in the longest n-gram."""
    weights: int = 1 << 18
    """Number of weights that n-grams are hashed to."""
    inverse_penalty: float = 10.0
    """Inverse of the penalty on large weights (C of the logistic regression); a larger value fits the labelled texts
    more closely."""

    def __post_init__(self) -> None:
        if not 1 <= self.ngrams <= 5:
            raise UserError(f"ngrams is {self.ngrams}; allowed are 1 to 5")
        if not 1 << 10 <= self.weights <= 1 << 26:
            raise UserError(f"weights is {self.weights}; allowed are 1024 to 2**26")
        if not self.inverse_penalty > 0:
            raise UserError(f"inverse_penalty is {self.inverse_penalty}; it must be above 0 (default: 10)")


@dataclass(frozen=True)
class _Train:
    config: Config

    def __call__(self, files: tuple[ExternalFile, ...]) -> ShardOutput:
        config = self.config
        pairs = [
            pair
            for file in files
            for pair in classifier.read_labelled(file.pinned, file.name, config.text_field, config.label_field)
        ]
        features = classifier.Features(ngrams=config.ngrams, weights=config.weights)
        texts = [text for text, _ in pairs]
        labels = [label for _, label in pairs]
        made, measured = classifier.train(texts, labels, config.kept_label, features, config.inverse_penalty)
        return ShardOutput(
            parts={"classifier": Part(data=made.to_bytes(), name=FILE_NAME)},
            facts={"labelled": len(pairs), "calibration": measured},
        )


def run(context: Context, config: Config) -> Outcome:
    files = context.input("labelled").files
    (receipt,) = map_shards(context, "train", [files], _Train(config))
    facts = {name: receipt.facts[name] for name in ("labelled", "calibration")}
    dataset = dataset_of([receipt], "classifier", kept_label=config.kept_label, **facts)
    return Outcome(
        datasets={"classifier": dataset}, log=_throughput(context, files, config, receipt.shards["classifier"][0].name)
    )


def _throughput(context: Context, files: tuple[ExternalFile, ...], config: Config, name: str) -> dict[str, float]:
    """The speed at which one core scores the first 2,000 labelled texts."""
    made = classifier.load(f"{context.directory}/{name}")
    texts: list[str] = []
    for file in files:
        texts += [
            text for text, _ in classifier.read_labelled(file.pinned, file.name, config.text_field, config.label_field)
        ]
    texts = texts[:2000]
    began = time.perf_counter()
    made.score(texts)
    seconds = time.perf_counter() - began
    return {"scored_megabytes_per_second": round(sum(len(text.encode()) for text in texts) / 1e6 / seconds, 3)}
