"""Measures how well a checkpoint predicts held-out rows: loss per token, perplexity and bits per byte.

With `--sequences` the metrics include a unigram baseline: the token frequencies of the training rows, with one added to
the count of each id.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

import numpy as np
import pyarrow as pa

from data.absent import absent
from pipelines.account.costs import HeldoutPassCost
from pipelines.checkpoints.loaded import batches_of, check_same_tokenizer, checked_checkpoint, open_model, setup_of
from pipelines.engine.declaration import Declaration, Places
from pipelines.engine.errors import UserError
from pipelines.engine.inputs import Read
from pipelines.engine.progress import advance
from pipelines.engine.shard_map import Part, ShardOutput, dataset_of, map_shards
from pipelines.engine.stage import Context, Outcome
from pipelines.fit.programs import forward_pass
from pipelines.report.kinds import EvaluationReport
from training.config import ComputeType, one_of
from training.evaluation import evaluate
from training.setup import Setup

VERSION = 1
READS = {
    "checkpoint": Read(help="checkpoint to evaluate", dataset="checkpoints"),
    "heldout": Read(help="held-out rows, which were not trained on", dataset="heldout"),
    "sequences": Read(help="training rows, for the unigram baseline", dataset="sequences", optional=True),
}
WRITES = ("metrics",)
DECLARES = Declaration(
    lease=True,
    places=Places(),
    cost=HeldoutPassCost(),
    report=EvaluationReport(),
    programs=(forward_pass("evaluation_pass", "losses"),),
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """How the rows are evaluated."""

    forward_rows: int = 8
    """Rows in one forward pass."""
    dtype: ComputeType = absent("float32")
    """Type of weights and activations; norms, softmax, logits and losses are float32 in any case."""

    def __post_init__(self) -> None:
        if self.forward_rows < 1:
            raise UserError(f"forward_rows is {self.forward_rows}; it must be at least 1 (default: 8)")
        one_of("dtype", self.dtype, get_args(ComputeType))


@dataclass(frozen=True)
class _Evaluate:
    config: Config
    checkpoint: str
    setup: Setup
    sequences: tuple[str, ...]
    vocab_size: int

    def __call__(self, uris: list[str]) -> ShardOutput:
        loaded = open_model(self.checkpoint, self.setup, self.config.dtype)
        sums = evaluate(loaded.model, loaded.backend, self._batches(uris))
        if not math.isfinite(sums["loss_sum"]):
            raise UserError(
                f"{self.checkpoint}: the model's logits are not finite (its loss is {sums['loss_sum']}); check its "
                "weights, or evaluate an earlier step"
            )
        figures = _figures(sums["loss_sum"], sums)
        if self.sequences:
            baseline = _unigram_loss_sum(self.sequences, uris, self.vocab_size)
            figures |= {f"unigram_{name}": value for name, value in _figures(baseline, sums).items()}
        table = pa.table({"metric": list(figures), "value": pa.array(list(figures.values()), pa.float64())})
        facts = {**figures, "targets": int(sums["targets"]), "text_bytes": int(sums["text_bytes"]), "step": loaded.step}
        return ShardOutput(parts={"metrics": Part(table=table)}, facts=facts)

    def _batches(self, uris: list[str]) -> Iterator[dict[str, np.ndarray]]:
        for uri in uris:
            for count, batch in batches_of(uri, self.config.forward_rows):
                yield batch
                advance(count)


def run(context: Context, config: Config) -> Outcome:
    """Raises UserError if there are no held-out rows, or if the tokenizers differ."""
    checkpoint, heldout = context.input("checkpoint"), context.input("heldout")
    check_same_tokenizer(checkpoint, heldout)
    if not heldout.data.facts["targets"] or not heldout.data.facts["text_bytes"]:
        raise UserError(
            f"{heldout.reference} has no held-out rows: none of its documents is among the 2 % that are held out; "
            "collect more text"
        )
    sequences = context.inputs.get("sequences", [])
    for source in sequences:
        check_same_tokenizer(source, heldout)
    setup, vocab_size = setup_of(context), heldout.data.facts["vocab_size"]
    uri, sizes = checked_checkpoint(checkpoint, setup, config.forward_rows)
    if sizes.vocab_size < vocab_size:
        raise UserError(
            f"the held-out rows hold ids up to {vocab_size - 1}, beyond the model's vocabulary of {sizes.vocab_size}; "
            "evaluate the model on rows made with its own tokenizer"
        )
    work = _Evaluate(config, uri, setup, tuple(uri for source in sequences for uri in source.uris()), vocab_size)
    (receipt,) = map_shards(
        context,
        "evaluate",
        [heldout.uris()],
        work,
        whole_node=True,
        setup=setup.forward_record(),
        unit="row",
        sizes=[heldout.data.rows],
    )
    return Outcome(
        datasets={"metrics": dataset_of([receipt], "metrics", **receipt.facts)},
        tokenizer_sha256=heldout.manifest.tokenizer_sha256,
        setup=setup.forward_record(),
        log={"row_tokens": heldout.data.rows * heldout.data.facts["sequence_length"]},
        said="loss {loss_per_token:.3f} nats/token, perplexity {perplexity:.1f}".format(**receipt.facts),
    )


def _figures(loss_sum: float, sums: dict[str, float]) -> dict[str, float]:
    """Nats per token, perplexity, and bits per byte (training/evaluation.py has the formula)."""
    loss = loss_sum / sums["targets"]
    return {
        "loss_per_token": loss,
        "perplexity": math.exp(loss),
        "bits_per_byte": loss * sums["non_bos_tokens"] / sums["text_bytes"] / math.log(2),
    }


def _unigram_loss_sum(sequences: tuple[str, ...], heldout: list[str], vocab_size: int) -> float:
    """The baseline's loss in nats, summed over the held-out targets.

    Its probabilities are the frequencies of the training targets, with one added to the count of each id.
    """
    trained = sum((_target_counts([uri], vocab_size) for uri in sequences), np.zeros(vocab_size, np.int64))
    log_probability = np.log((trained + 1) / (trained.sum() + vocab_size))
    return float(-(_target_counts(heldout, vocab_size) * log_probability).sum())


def _target_counts(uris: list[str], vocab_size: int) -> np.ndarray:
    """How often each id is a target."""
    counts = np.zeros(vocab_size, np.int64)
    for uri in uris:
        for _, batch in batches_of(uri, 1024):
            following = np.roll(batch["tokens"], -1, axis=1)[batch["loss_mask"]]
            counts += np.bincount(following, minlength=vocab_size)
    return counts
