"""What a training run is given to read, as plain data: whoever knows runs and manifests fills it in."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from data.absent import with_absent
from data.logits import CodecSpec
from training.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputDataset:
    """A dataset of a finished run."""

    reference: str
    """how the user's command names it, for messages and for the record in checkpoints"""
    content: str
    """digest of its bytes"""
    tokenizer_sha256: str | None
    """tokenizer whose ids it holds"""
    uris: tuple[str, ...]
    """its files in order"""
    shard_rows: tuple[int, ...]
    """rows of each file"""
    facts: Mapping[str, Any]
    """what its manifest says of it"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputCheckpoint:
    """A checkpoint of a finished run."""

    reference: str
    """how the user's command names it, for messages and for the record in checkpoints"""
    content: str
    """digest of the files of its run"""
    tokenizer_sha256: str | None
    """tokenizer of the rows that it was trained on"""
    uri: str
    """its directory"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingInputs:
    """All that a run of training reads."""

    sequences: tuple[InputDataset, ...]
    """packed rows, one dataset a source"""
    logits: tuple[InputDataset, ...] = ()
    """the teacher's cached logits of each of the datasets of rows, in their order; empty: no teacher"""
    initial: InputCheckpoint | None = None
    """checkpoint whose weights to start from"""
    carried: InputCheckpoint | None = None
    """checkpoint to carry on from"""

    @property
    def checkpoints(self) -> tuple[InputCheckpoint, ...]:
        """Those that are given."""
        return tuple(checkpoint for checkpoint in (self.initial, self.carried) if checkpoint is not None)

    def fingerprints(self) -> dict[str, str]:
        """Reference -> digest of the bytes, of every input."""
        entries: list[InputDataset | InputCheckpoint] = [*self.sequences, *self.logits, *self.checkpoints]
        return {entry.reference: entry.content for entry in entries}


def check_one_tokenizer(first: InputDataset | InputCheckpoint, second: InputDataset | InputCheckpoint) -> None:
    """Raises UserError, naming both, where two inputs hold ids of different tokenizers."""
    if first.tokenizer_sha256 != second.tokenizer_sha256:
        raise UserError(
            f"{first.reference} is of tokenizer {first.tokenizer_sha256}, {second.reference} of tokenizer "
            f"{second.tokenizer_sha256}; ids of one mean nothing to the other: give inputs that were made with one "
            "tokenizer"
        )


def codec_of(logits: InputDataset) -> CodecSpec:
    """How to read cached logits, from their manifest. Raises UserError where they are of an earlier format."""
    try:
        return CodecSpec(**with_absent(CodecSpec, logits.facts["codec"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{logits.reference} does not say how its bytes are to be read ({error}): it is of an earlier version; "
            "run cache_logits again"
        ) from error


def check_logits(sequences: InputDataset, logits: InputDataset) -> tuple[CodecSpec, int]:
    """What cached logits are, and the most ids at one target.

    Raises UserError, naming both, where they were computed on other rows or with another vocabulary.
    """
    facts = logits.facts
    check_one_tokenizer(sequences, logits)
    if facts["sequences_content"] != sequences.content:
        raise UserError(
            f"{logits.reference} was computed on {facts['sequences_reference']} ({facts['sequences_content']}), not on "
            f"{sequences.reference} ({sequences.content}); run cache_logits on the latter, or train on the former"
        )
    spec = codec_of(logits)
    if spec.vocab_size != sequences.facts["vocab_size"]:
        raise UserError(
            f"{logits.reference} is of {spec.vocab_size} ids, {sequences.reference} of "
            f"{sequences.facts['vocab_size']}; run cache_logits on these sequences"
        )
    return spec, facts["max_unique"]
