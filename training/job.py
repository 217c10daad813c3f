"""What a worker is handed: a run's config, its data, and where and how to run it. Picklable, for Ray ships it."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, get_args

from data.absent import present
from data.logits import CodecSpec
from data.order import MixturePhase, SequenceDataset
from training.backends.make import check_setup
from training.config import BadStep, FeedKind, TrainingConfig, at_least, one_of
from training.errors import UserError
from training.setup import Setup


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainJob:
    """A training run as handed to its workers: config, data, and where and how to run it. Picklable."""

    config: TrainingConfig
    """what to train"""
    checkpoints_uri: str
    """directory of the checkpoints; a run continues from the newest committed one in it"""
    sequences: tuple[tuple[SequenceDataset, tuple[str, ...]], ...]
    """the SEQUENCES datasets to draw from, each with the URIs of its shards in order"""
    phases: tuple[MixturePhase, ...]
    """mixture weights from which step on; the first starts at step 0"""
    order_seed: int = 0
    """of the order of rows in epochs after the first"""
    sequence_length: int
    """tokens in a row"""
    vocab_size: int
    """of the tokenizer that made the sequences: no id in them reaches it"""
    logits: tuple[tuple[str, ...], ...] | None = None
    """for `distill`: for each dataset the URIs of its LOGITS shards, in the order of its SEQUENCES shards"""
    codec: CodecSpec | None = None
    """for `distill`: what the logits are, and how to read them"""
    logits_made_as: tuple[str, ...] | None = None
    """for `distill`: for each dataset the digest that its LOGITS files carry (default: any)"""
    max_unique: int | None = None
    """for `distill`: most distinct ids at one target, the width the targets are padded to (default: the draws)"""
    input_fingerprints: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """input name -> fingerprint; kept in each checkpoint, and a run refuses to continue where they differ"""
    initial_uri: str | None = None
    """checkpoint whose weights to start from; None: weights drawn from the config's seed"""
    carried_uri: str | None = None
    """checkpoint to carry on from: weights, moments, step and place in the order"""
    setup: Setup = dataclasses.field(default_factory=Setup)
    """device, workers, mesh and what else says where and how the model runs"""
    chip_flops: float | None = None
    """dense bfloat16 operations a second of one TPU chip, which MFU is measured against; None: not known, no MFU"""
    gpu_flops: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """part of a GPU's own name -> the same for that GPU; the first part that fits counts, and without any, no MFU"""
    feed: FeedKind = "direct"
    """`direct`: the worker reads its rows itself; `ray`: a Ray Data pipeline reads them"""
    on_bad_step: BadStep = "stop"
    """where loss or gradient are not finite, or the loss spikes: `stop` the run, saying which rows they were, or `skip`
    the update and go on; either way the weights stay as they were"""
    logs_uri: str | None = None
    """directory of the logs with clock times (metrics as JSON lines); without it none are written"""
    tensorboard: bool = False
    """whether event files for TensorBoard are written there too (local directories only)"""
    lease_uri: str | None = None
    """file that has to contain `lease_token` when a checkpoint is committed; without it nothing is checked"""
    lease_token: str | None = None
    """what marks the lease as ours"""

    def __post_init__(self) -> None:
        one_of("feed", self.feed, get_args(FeedKind))
        one_of("on_bad_step", self.on_bad_step, get_args(BadStep))
        check_setup(self.setup)
        at_least("sequence_length", self.sequence_length, 2)
        if not self.sequences:
            raise UserError("no sequences to train on: name at least one SEQUENCES dataset")
        if self.vocab_size > self.config.model.vocab_size:
            raise UserError(
                f"the sequences hold ids up to {self.vocab_size - 1} and the model has a vocabulary of "
                f"{self.config.model.vocab_size}; set the model's vocab_size to {self.vocab_size} or more"
            )
        if self.config.objective == "distill":
            if self.logits is None or self.codec is None:
                raise UserError(
                    "objective 'distill' needs the teacher's cached logits and what they are, and got "
                    f"logits={'given' if self.logits is not None else None}, codec={self.codec}; "
                    "run cache_logits on these sequences and name its output, or use objective 'next_token'"
                )
            if self.codec.vocab_size != self.config.model.vocab_size:
                raise UserError(
                    f"the logits are of {self.codec.vocab_size} ids and the student's vocabulary has "
                    f"{self.config.model.vocab_size}: the rest would be taken for ids of probability 0; set the "
                    f"model's vocab_size to {self.codec.vocab_size}"
                )
            if self.codec.temperature != self.config.distill.temperature:
                raise UserError(
                    f"the logits are of the teacher at temperature {self.codec.temperature:g}, and the student would "
                    f"learn at {self.config.distill.temperature:g}; set --distill.temperature "
                    f"{self.codec.temperature:g}, or run cache_logits at {self.config.distill.temperature:g}"
                )
            if len(self.logits) != len(self.sequences):
                raise UserError(
                    f"{len(self.sequences)} SEQUENCES datasets and {len(self.logits)} LOGITS datasets; "
                    "name one LOGITS dataset for each SEQUENCES dataset, in the same order"
                )
        if self.config.global_batch % self.setup.row_parts:
            raise UserError(
                f"global_batch {self.config.global_batch} is not divisible by {self.setup.row_parts} workers; "
                "change one so that each worker has the same number of rows"
            )
        width = self.setup.microbatch_rows
        if width is not None and (width < 1 or self.worker_rows % width):
            raise UserError(
                f"microbatch_rows {width} does not divide the {self.worker_rows} rows of a worker; "
                f"allowed are the divisors of {self.worker_rows}"
            )

    @property
    def worker_rows(self) -> int:
        """Rows of one worker in a step."""
        return self.config.global_batch // self.setup.row_parts

    @property
    def draws(self) -> int | None:
        """N of sampled logits."""
        return self.codec.draws if self.codec else None

    def identity(self) -> dict[str, Any]:
        """What has to be equal for a checkpoint of this run to be continued, as JSON values without absent options."""
        identity = {
            "config": present(self.config),
            "datasets": [present(dataset) for dataset, _ in self.sequences],
            "phases": [present(phase) for phase in self.phases],
            "order_seed": self.order_seed,
            "sequence_length": self.sequence_length,
            "logits": present(self.codec) if self.codec else None,
            "input_fingerprints": dict(self.input_fingerprints),
        }
        plain: dict[str, Any] = json.loads(json.dumps(identity))
        return plain
