"""What a training run reads, as plain data; the caller, which knows runs and manifests, fills it in."""

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
    """Name of the dataset in the user's command, for messages and for the record in checkpoints."""
    content: str
    """Digest of its bytes."""
    tokenizer_sha256: str | None
    """Hash of the tokenizer whose ids it holds."""
    uris: tuple[str, ...]
    """Its files in order."""
    shard_rows: tuple[int, ...]
    """Rows of each file."""
    facts: Mapping[str, Any]
    """Facts of the dataset in its manifest."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputCheckpoint:
    """A checkpoint of a finished run."""

    reference: str
    """Name of the checkpoint in the user's command, for messages and for the record in checkpoints."""
    content: str
    """Digest of the files of its run."""
    tokenizer_sha256: str | None
    """Hash of the tokenizer of the rows that it was trained on."""
    uri: str
    """Its directory."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingInputs:
    """All that a run of training reads."""

    sequences: tuple[InputDataset, ...]
    """Packed rows, one dataset for each source."""
    logits: tuple[InputDataset, ...] = ()
    """Cached logits of the teacher, one dataset for each of `sequences`, in their order; empty: no teacher."""
    initial: InputCheckpoint | None = None
    """Checkpoint whose weights the run starts from."""
    carried: InputCheckpoint | None = None
    """Checkpoint to carry on from."""

    @property
    def checkpoints(self) -> tuple[InputCheckpoint, ...]:
        """The checkpoints that are given."""
        return tuple(checkpoint for checkpoint in (self.initial, self.carried) if checkpoint is not None)

    def fingerprints(self) -> dict[str, str]:
        """Reference -> digest of the bytes, of every input."""
        entries: list[InputDataset | InputCheckpoint] = [*self.sequences, *self.logits, *self.checkpoints]
        return {entry.reference: entry.content for entry in entries}


def check_one_tokenizer(first: InputDataset | InputCheckpoint, second: InputDataset | InputCheckpoint) -> None:
    """Raises UserError, naming both, if two inputs hold ids of different tokenizers."""
    if first.tokenizer_sha256 != second.tokenizer_sha256:
        raise UserError(
            f"{first.reference} has tokenizer {first.tokenizer_sha256}, and {second.reference} has tokenizer "
            f"{second.tokenizer_sha256}; an id means another text in each: give inputs that were made with the same "
            "tokenizer"
        )


def codec_of(logits: InputDataset) -> CodecSpec:
    """How to read cached logits, from their manifest. Raises UserError if they have an earlier format."""
    try:
        return CodecSpec(**with_absent(CodecSpec, logits.facts["codec"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{logits.reference} has no readable codec in its manifest ({error}): an earlier version wrote it; "
            "run cache_logits again"
        ) from error


def check_logits(sequences: InputDataset, logits: InputDataset) -> tuple[CodecSpec, int]:
    """The codec of cached logits, and the largest number of ids at one target.

    Raises UserError, naming both inputs, if the logits were computed on other rows or with another vocabulary.
    """
    facts = logits.facts
    check_one_tokenizer(sequences, logits)
    if facts["sequences_content"] != sequences.content:
        raise UserError(
            f"{logits.reference} was computed on {facts['sequences_reference']} ({facts['sequences_content']}), not on "
            f"{sequences.reference} ({sequences.content}); run cache_logits on the second, or train on the first"
        )
    spec = codec_of(logits)
    if spec.vocab_size != sequences.facts["vocab_size"]:
        raise UserError(
            f"{logits.reference} has a vocabulary of {spec.vocab_size} ids, and {sequences.reference} has one of "
            f"{sequences.facts['vocab_size']}; run cache_logits on these sequences"
        )
    return spec, facts["max_unique"]
