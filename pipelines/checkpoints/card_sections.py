"""Sections of the model card on the origin of a checkpoint's weights, which stages declare."""

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow.compute as pc

from data.manifest import Manifest, listed
from data.shards import read_table
from pipelines.engine.inputs import Input

LOSS_STEPS = 100
"""number of last steps over which a card's training loss is the mean"""


def imported_weights(checkpoint: Input, step: int, runs: Mapping[str, Input]) -> Iterator[str]:
    """The section on weights that were not trained by this project."""
    (weights,) = checkpoint.manifest.inputs["weights"]
    yield f"- Imported, not trained here: files `{weights['reference']}`"


def trained_weights(checkpoint: Input, step: int, runs: Mapping[str, Input]) -> Iterator[str]:
    """The section on weights of a training run on packed rows, from its config and metrics."""
    manifest = checkpoint.manifest
    config = manifest.config
    yield f"- Objective: {_objective(manifest, runs)}"
    yield f"- Steps: {step:,} of {config['steps']:,}, {config['global_batch']:,} rows each; AdamW, {_optimizer(config)}"
    loss, steps, tokens_seen = _last_loss(checkpoint, step)
    yield f"- Tokens seen: {tokens_seen:,} targets"
    yield f"- Loss: {loss:.4f} nats a target, the mean over the last {steps} steps"
    if manifest.setup:
        yield f"- Device: {manifest.setup['device']}, workers: {manifest.setup['workers']}"


def _objective(manifest: Manifest, runs: Mapping[str, Input]) -> str:
    if manifest.config["objective"] == "next_token":
        return "the next token"
    from training.distill.kinds import kind_of  # imports torch

    facts = [runs[cached["reference"]].data.facts for cached in manifest.inputs["logits"]]
    # the oldest caches held draws and named no codec
    kept = sorted(
        {kind_of(entry.get("codec", {"estimator": "sample"})["estimator"]).described(entry) for entry in facts}
    )
    return f"distillation: cross-entropy to {', '.join(kept)} at each target (its least value is the teacher's entropy)"


def _optimizer(config: Mapping[str, Any]) -> str:
    optimizer = config["optimizer"]
    return (
        f"learning rate {optimizer['learning_rate']:g} ({optimizer['decay']} after {optimizer['warmup_steps']} "
        f"steps of warm-up), weight decay {optimizer['weight_decay']:g}"
    )


def _last_loss(run: Input, step: int) -> tuple[float, int, int]:
    """The mean loss over the last steps up to `step`, the number of these steps, and the targets seen."""
    last: list[tuple[int, float, int, int]] = []
    for shard in run.manifest.datasets["metrics"].shards:
        table = read_table(listed(run.directory, shard), ["step", "loss_sum", "targets", "tokens_seen"])
        table = table.filter(pc.field("step") <= step)
        last += zip(*(column.to_pylist() for column in table.columns), strict=True)
    last = sorted(last)[-LOSS_STEPS:]
    targets = sum(row[2] for row in last)
    return sum(row[1] for row in last) / max(1, targets), len(last), last[-1][3]
