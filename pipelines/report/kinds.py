"""The parts of the report that stages declare: a training, an evaluation, a cache of logits, generated texts."""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data import shards, storage
from data.manifest import Dataset, listed
from pipelines.engine.errors import UserError
from pipelines.engine.finished import Finished
from pipelines.engine.reported import CacheFigures, Evaluated, Evaluation, Report, TrainedModel, Written
from pipelines.report.words import count

ELEMENT_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
"""type of weights in a header of safetensors -> bytes of an element"""
MOST_HEADER_BYTES = 100_000_000
"""longest header that safetensors allows"""


@dataclass(frozen=True, kw_only=True)
class TrainingReport(Report):
    """The report on a run that writes `checkpoints` and `metrics`."""

    def made(self, run: Finished) -> str:
        steps = run.manifest.datasets["checkpoints"].facts["steps"]
        return f"{count(steps[-1], 'step')}, {count(len(steps), 'checkpoint')}"

    def tokens(self, run: Finished) -> int | None:
        seen: int | None = run.log.get("tokens_seen")
        return seen

    def model(self, run: Finished) -> TrainedModel | None:
        manifest = run.manifest
        config = {name: value for name, value in manifest.config.items() if name != "objective"}
        return TrainedModel(
            objective=str(manifest.config.get("objective", "")),
            shape=_shape(manifest.config.get("model", {})),
            parameters=_parameters(run.directory, manifest.datasets["checkpoints"]),
            steps=manifest.datasets["checkpoints"].facts["steps"],
            tokens_seen=self.tokens(run),
            setting=json.dumps([config, manifest.inputs.get("sequences")], sort_keys=True),
        )


@dataclass(frozen=True, kw_only=True)
class EvaluationReport(Report):
    """The report on a run that reads `checkpoint` and `heldout` and writes `metrics` with held-out losses as facts."""

    tokens_fact: str = "targets"

    @property
    def evaluates(self) -> bool:
        return True

    def made(self, run: Finished) -> str:
        return "held-out figures"

    def evaluation(self, run: Finished) -> Evaluated | None:
        facts = run.manifest.datasets["metrics"].facts
        (checkpoint,), (heldout,) = run.inputs["checkpoint"], run.inputs["heldout"]
        names = ("loss_per_token", "perplexity", "bits_per_byte")
        evaluation = Evaluation(
            heldout=heldout.reference,
            targets=int(facts["targets"]),
            loss=facts["loss_per_token"],
            perplexity=facts["perplexity"],
            bits_per_byte=facts["bits_per_byte"],
            unigram={name: facts[f"unigram_{name}"] for name in names if f"unigram_{name}" in facts},
        )
        return Evaluated(checkpoint=checkpoint, step=int(facts["step"]), evaluation=evaluation)


@dataclass(frozen=True, kw_only=True)
class CacheReport(Report):
    """The report on a run that writes `logits`."""

    tokens_fact: str = "targets"

    def cache(self, name: str, run: Finished) -> CacheFigures | None:
        logits = run.manifest.datasets["logits"]
        keys = ("draws", "targets", "stored_ids", "max_unique", "vocab_size")
        return CacheFigures(name=name, bytes=logits.bytes, **{key: int(logits.facts[key] or 0) for key in keys})


@dataclass(frozen=True, kw_only=True)
class GenerationReport(Report):
    """The report on a run that reads `checkpoint` and writes `text` with the prompt in its metadata."""

    tokens_fact: str = "new_tokens"

    def made(self, run: Finished) -> str:
        return count(run.manifest.datasets["text"].rows, "text")

    def written(self, run: Finished) -> Written | None:
        (checkpoint,) = run.inputs["checkpoint"]
        texts = []
        for shard in run.manifest.datasets["text"].shards:
            table = shards.read_table(listed(run.directory, shard), ["text", "metadata"])
            for row in table.to_pylist():
                prompt = str(json.loads(row["metadata"]).get("prompt", ""))
                texts.append((prompt, row["text"].removeprefix(prompt)))
        return Written(checkpoint=checkpoint, texts=texts)


def _shape(model: Mapping[str, Any]) -> str:
    return f"{model['layers']} layers, {model['d_model']} wide" if {"layers", "d_model"} <= model.keys() else ""


def _parameters(directory: str, checkpoints: Dataset) -> int | None:
    """The parameters of the last checkpoint, from its files' headers (safetensors: 8 bytes of length, then JSON).

    Raises UserError, naming the file, for a header that is damaged.
    """
    names = [shard.name for shard in checkpoints.shards]
    folders = [name.rpartition("/")[0] for name in names]
    weights = [
        name for name in names if folders and name.startswith(f"{max(folders)}/model") and name.endswith(".safetensors")
    ]
    total = 0
    for name in weights:
        uri = storage.join(directory, name)
        try:
            with storage.open_input(uri) as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(min(length, MOST_HEADER_BYTES)))
            total += sum(_elements(tensor) for key, tensor in header.items() if key != "__metadata__")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
            raise UserError(f"{uri} is damaged ({error!r}); remove the run that wrote it and run that again") from error
    return total or None


def _elements(tensor: Mapping[str, Any]) -> int:
    """The elements of a tensor, by its entry in a header. Raises UserError for an entry that contradicts itself."""
    count = math.prod(tensor["shape"])
    start, end = tensor["data_offsets"]
    if end - start != count * ELEMENT_BYTES[tensor["dtype"]]:
        raise UserError(f"a tensor of shape {tensor['shape']} has {end - start} bytes")
    return count
