"""Costs that stages declare: of text on cores, of a model's passes, of training.

Rows of training follow from steps and batch, text from rows by `text.bytes_per_token`. Operations are those of
`model/flops.py`, without recomputation. Evaluation counts its held-out rows.

What is of a model imports torch, so it is imported where it is needed: workers of the data plane load this module with
their stage.
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
    """MB of text that one core goes through in a second, and who measured that."""
    return Constant(value=megabytes, unit="MB/s a core", source=source, date=date)


def packed_tokens(step: Planned) -> float:
    """Tokens of all packed rows that are made, in the end, of what the step makes."""
    rows = [following.cost.rows(following) for following in step.following()]
    return sum(packed.count * packed.length for packed in rows)


@dataclass(frozen=True, kw_only=True)
class TextCost(Cost):
    """Text in, text out."""

    reads: Literal["raw", "kept"] = "kept"
    """whether it goes through all of the text, or through what filters keep"""
    leaves: Literal["raw", "kept"] = "kept"
    """the same of the text that it stores"""

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
    """Text in, tokens out."""

    def estimate(self, step: Planned, prices: Prices) -> Work:
        tokens = packed_tokens(step)
        return Work(
            tokens=tokens,
            read_bytes=tokens * prices["text.bytes_per_token"],
            stored={"tokens": tokens * prices["tokens.bytes_per_token"]},
        )


@dataclass(frozen=True, kw_only=True)
class PackCost(Cost):
    """Tokens in, packed rows out. The Config has `sequence_length`, `max_rows` and `max_heldout_rows`."""

    def rows(self, step: Planned) -> Rows:
        """The most that any training step draws, up to `max_rows`."""
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
    """Steps of training on packed rows (`sequences`). The Config is a TrainingConfig."""

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
    """One forward pass of `teacher` over every packed row (`sequences`), of which logits are kept."""

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
    """One forward pass of `checkpoint` over the held-out rows (`heldout`)."""

    def estimate(self, step: Planned, prices: Prices) -> Work:
        from model.flops import forward_flops_per_token

        packed, evaluated = next(iter(step.rows("heldout")), Rows()), step.source("checkpoint")
        model = evaluated.cost.model(evaluated.config) if evaluated else None
        tokens = packed.heldout * packed.length
        return Work(tokens=tokens, flops=tokens * forward_flops_per_token(model, packed.length) if model else 0.0)


@dataclass(frozen=True, kw_only=True)
class ImportCost(Cost):
    """Weights from outside, kept as published: bfloat16. Without sizes in the Config they are the paper's teacher."""

    def model(self, config: Any) -> Gemma2Config | None:
        from model import gemma2_27b

        model: Gemma2Config | None = config.model
        return model or gemma2_27b()

    def estimate(self, step: Planned, prices: Prices) -> Work:
        from model import parameter_count

        model = self.model(step.config)
        return Work(stored={"checkpoints": 2.0 * sum(parameter_count(model)) if model else 0.0})
