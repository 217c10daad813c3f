"""Costs that stages declare: text on CPU cores, passes of a model, training.

The rows of a training follow from steps and batch, the bytes of text from rows by `text.bytes_per_token`. Operations
are those of `model/flops.py`, without recomputation. Evaluation counts its held-out rows.

Workers of data stages load this module with their stage, so torch and the model are imported inside the functions that
need them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from infra.prices import MEASURED, Constant, Prices
from pipelines.engine.cost import Cost, Planned, Rows, Work
from pipelines.engine.finished import Finished

if TYPE_CHECKING:
    from model import Gemma2Config


def core_speed(megabytes: float, source: str = MEASURED, date: str = "2026-11") -> Constant:
    """The megabytes of text that one core processes in a second, with the source and date of the figure."""
    return Constant(value=megabytes, unit="MB/s a core", source=source, date=date)


def packed_tokens(step: Planned) -> float:
    """The tokens of all packed rows that later steps make from the output of `step`."""
    rows = [following.cost.rows(following) for following in step.following()]
    return sum(packed.count * packed.length for packed in rows)


@dataclass(frozen=True, kw_only=True)
class TextCost(Cost):
    """The cost of a stage that reads text and writes text."""

    reads: Literal["raw", "kept"] = "kept"
    """text that the stage reads: all text (raw), or the text that filters keep (kept)"""
    leaves: Literal["raw", "kept"] = "kept"
    """text that the stage stores: all text (raw), or the text that filters keep (kept)"""

    def estimate(self, step: Planned, prices: Prices) -> Work:
        kept = packed_tokens(step) * prices["text.bytes_per_token"]
        sizes = {"kept": kept, "raw": kept / prices["text.kept_fraction"]}
        read = sizes[self.reads]
        return Work(
            tokens=read / prices["text.bytes_per_token"],
            read_bytes=read,
            stored={"text": sizes[self.leaves] * prices["text.stored_fraction"]},
        )


@dataclass(frozen=True, kw_only=True)
class TokenizeCost(Cost):
    """The cost of a stage that reads text and writes tokens."""

    def estimate(self, step: Planned, prices: Prices) -> Work:
        tokens = packed_tokens(step)
        return Work(
            tokens=tokens,
            read_bytes=tokens * prices["text.bytes_per_token"],
            stored={"tokens": tokens * prices["tokens.bytes_per_token"]},
        )


@dataclass(frozen=True, kw_only=True)
class PackCost(Cost):
    """The cost of a stage that reads tokens and writes packed rows.

    Its Config has `sequence_length`, `max_rows` and `max_heldout_rows`.
    """

    def rows(self, step: Planned) -> Rows:
        """The largest number of rows that a training step draws, up to `max_rows`."""
        drawn = max((reader.cost.drawn_rows(reader.config) for reader in step.readers), default=0)
        most: int | None = step.config.max_rows
        count = min([drawn or most or 0, *([most] if most else [])])
        return Rows(count=count, heldout=step.config.max_heldout_rows or 0, length=step.config.sequence_length)

    def estimate(self, step: Planned, prices: Prices) -> Work:
        packed = self.rows(step)
        tokens = packed.count * packed.length
        return Work(
            tokens=tokens,
            read_bytes=tokens * prices["text.bytes_per_token"],
            stored={"sequences": tokens * prices["sequences.bytes_per_token"]},
        )


@dataclass(frozen=True, kw_only=True)
class TrainingCost(Cost):
    """The cost of training on packed rows (`sequences`). The Config is a TrainingConfig."""

    @property
    def trains(self) -> bool:
        return True

    def drawn_rows(self, config: Any) -> int:
        return int(config.steps * config.global_batch)

    def model(self, config: Any) -> Gemma2Config | None:
        model: Gemma2Config = config.model
        return model

    def estimate(self, step: Planned, prices: Prices) -> Work:
        from model import parameter_count
        from model.flops import train_flops_per_token

        length = next((packed.length for packed in step.rows("sequences")), 0)
        tokens = self.drawn_rows(step.config) * length
        kept = -(-step.config.steps // step.config.checkpoint_every_steps)
        parameters = sum(parameter_count(step.config.model))
        return Work(
            tokens=tokens,
            flops=tokens * train_flops_per_token(step.config.model, length),
            stored={"checkpoints": kept * parameters * prices["checkpoint.bytes_per_parameter"]},
        )

    def measure(self, run: Finished) -> Work:
        from model.flops import train_flops_per_token

        length = run.inputs["sequences"][0].data.facts["sequence_length"]
        steps = float(run.log.get("steps", run.config.steps) - run.log.get("first_step", 0))
        tokens = steps * run.config.global_batch * length
        return Work(tokens=tokens, flops=tokens * train_flops_per_token(run.config.model, length))


@dataclass(frozen=True, kw_only=True)
class TeacherPassCost(Cost):
    """The cost of one forward pass of `teacher` over every packed row (`sequences`), whose logits are stored."""

    def kept_pass(self, step: Planned) -> Gemma2Config | None:
        teacher = step.source("teacher")
        return teacher.cost.model(teacher.config) if teacher else None

    def estimate(self, step: Planned, prices: Prices) -> Work:
        from model.flops import forward_flops_per_token

        rows, teacher = step.rows("sequences"), self.kept_pass(step)
        length = rows[0].length if rows else 0
        tokens = sum(packed.count for packed in rows) * length
        return Work(
            tokens=tokens,
            flops=tokens * forward_flops_per_token(teacher, length) if teacher else 0.0,
            stored={"logits": tokens * prices["logits.ids_per_target"] * prices["logits.bytes_per_id"]},
        )

    def measure(self, run: Finished) -> Work:
        from model import Gemma2Config
        from model.flops import forward_flops_per_token

        tokens = float(run.log.get("row_tokens", 0))
        model = run.inputs["teacher"][0].manifest.config.get("model")
        if model is None:
            return Work(tokens=tokens)
        length = run.inputs["sequences"][0].data.facts["sequence_length"]
        return Work(tokens=tokens, flops=tokens * forward_flops_per_token(Gemma2Config(**model), length))


@dataclass(frozen=True, kw_only=True)
class HeldoutPassCost(Cost):
    """The cost of one forward pass of `checkpoint` over the held-out rows (`heldout`)."""

    def estimate(self, step: Planned, prices: Prices) -> Work:
        from model.flops import forward_flops_per_token

        packed, evaluated = next(iter(step.rows("heldout")), Rows()), step.source("checkpoint")
        model = evaluated.cost.model(evaluated.config) if evaluated else None
        tokens = packed.heldout * packed.length
        return Work(tokens=tokens, flops=tokens * forward_flops_per_token(model, packed.length) if model else 0.0)


@dataclass(frozen=True, kw_only=True)
class ImportCost(Cost):
    """The cost of importing weights, stored as published in bfloat16. Default of the Config's model: 27B, the paper's
    teacher."""

    def model(self, config: Any) -> Gemma2Config | None:
        from model import gemma2_27b

        model: Gemma2Config | None = config.model
        return model or gemma2_27b()

    def estimate(self, step: Planned, prices: Prices) -> Work:
        from model import parameter_count

        model = self.model(step.config)
        return Work(stored={"checkpoints": 2.0 * sum(parameter_count(model)) if model else 0.0})
