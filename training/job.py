"""The job that a worker receives: a run's config, its data, and where and how to run it. Picklable, for Ray."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, get_args

from data.absent import present
from data.changes import Changes
from data.logits import CodecSpec
from data.order import MixturePhase, SequenceDataset
from training.backends.make import check_divides, check_setup
from training.config import BadStep, FeedKind, TrainingConfig, at_least, one_of
from training.errors import UserError
from training.setup import Setup


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainJob:
    """A training run in the form that its workers receive: config, data, and where and how to run it. Picklable."""

    config: TrainingConfig
    """Config of the training."""
    checkpoints_uri: str
    """Directory of the checkpoints; a run is resumed from the newest committed checkpoint in it."""
    sequences: tuple[tuple[SequenceDataset, tuple[str, ...]], ...]
    """SEQUENCES datasets to draw from, each with the URIs of its shards in order."""
    phases: tuple[MixturePhase, ...]
    """Phases of the mixture: weights, and the step from which on they hold; the first phase starts at step 0."""
    order_seed: int = 0
    """Seed of the order of rows in epochs after the first."""
    sequence_length: int
    """Tokens in a row."""
    vocab_size: int
    """Vocabulary of the tokenizer that made the sequences: every id in them is below this number."""
    logits: tuple[tuple[str, ...], ...] | None = None
    """URIs of the LOGITS shards of each dataset, in the order of its SEQUENCES shards, for `distill`."""
    codec: CodecSpec | None = None
    """Kind of the logits and how to read them, for `distill`."""
    logits_made_as: tuple[str, ...] | None = None
    """Digest that the LOGITS files of each dataset carry, for `distill` (default: any)."""
    max_unique: int | None = None
    """Largest number of distinct ids at one target, the width that targets are padded to, for `distill` (default: the
    number of draws)."""
    input_fingerprints: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Fingerprint of each input by name; each checkpoint keeps them, and a run refuses to continue if they differ."""
    initial_uri: str | None = None
    """Checkpoint whose weights the run starts from; None: weights drawn from the config's seed."""
    carried_uri: str | None = None
    """Checkpoint to carry on from, with its weights, moments, step and place in the order."""
    setup: Setup = dataclasses.field(default_factory=Setup)
    """Device, workers, mesh and all else that decides where and how the model runs."""
    chip_flops: float | None = None
    """Dense bfloat16 operations per second of one TPU chip, which MFU is measured against; None: unknown, no MFU."""
    gpu_flops: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Dense bfloat16 operations per second of GPUs, by a part of the GPU's own name; the first part that fits counts,
    and if none fits there is no MFU."""
    feed: FeedKind = "direct"
    """Reader of the rows: `direct` is the worker itself, `ray` is a Ray Data pipeline."""
    on_bad_step: BadStep = "stop"
    """Reaction to a step whose loss or gradient is not finite, or whose loss is a spike: `stop` ends the run and names
    the rows of the step, `skip` leaves the update out and goes on; in both cases the weights stay as they were."""
    logs_uri: str | None = None
    """Directory of the logs with clock times (metrics as JSON lines); None: no logs are written."""
    tensorboard: bool = False
    """Whether event files for TensorBoard are written to `logs_uri` too (local directories only)."""
    changes: Changes | None = None
    """The driver's own way to change the run's directory, which its lease protects; None: no lease is checked."""

    def __post_init__(self) -> None:
        one_of("feed", self.feed, get_args(FeedKind))
        one_of("on_bad_step", self.on_bad_step, get_args(BadStep))
        check_setup(self.setup)
        check_divides(self.setup, self.config.model)
        at_least("sequence_length", self.sequence_length, 2)
        if not self.sequences:
            raise UserError("got no sequences to train on; name at least one SEQUENCES dataset")
        if self.vocab_size > self.config.model.vocab_size:
            raise UserError(
                f"the sequences hold ids up to {self.vocab_size - 1}, and the model has a vocabulary of "
                f"{self.config.model.vocab_size}; set the model's vocab_size to {self.vocab_size} or more"
            )
        if self.config.objective == "distill":
            if self.logits is None or self.codec is None:
                raise UserError(
                    f"got logits={'given' if self.logits is not None else None}, codec={self.codec} for objective "
                    "'distill', which needs the teacher's cached logits and their codec; "
                    "run cache_logits on these sequences and name its output, or use objective 'next_token'"
                )
            if self.codec.vocab_size != self.config.model.vocab_size:
                raise UserError(
                    f"the logits are for {self.codec.vocab_size} ids, and the student's vocabulary has "
                    f"{self.config.model.vocab_size}: the rest would count as ids of probability 0; set the "
                    f"model's vocab_size to {self.codec.vocab_size}"
                )
            if self.codec.temperature != self.config.distill.temperature:
                raise UserError(
                    f"the logits were cached at temperature {self.codec.temperature:g}, and the student would "
                    f"learn at temperature {self.config.distill.temperature:g}; set --distill.temperature "
                    f"{self.codec.temperature:g}, or run cache_logits at {self.config.distill.temperature:g}"
                )
            if len(self.logits) != len(self.sequences):
                raise UserError(
                    f"got {len(self.sequences)} SEQUENCES datasets and {len(self.logits)} LOGITS datasets; "
                    "name one LOGITS dataset for each SEQUENCES dataset, in the same order"
                )
        if self.config.global_batch % self.setup.row_parts:
            raise UserError(
                f"global_batch {self.config.global_batch} is not divisible by {self.setup.row_parts} workers; "
                "change one of the two so that each worker has the same number of rows"
            )
        width = self.setup.microbatch_rows
        if width is not None and (width < 1 or self.worker_rows % width):
            raise UserError(
                f"microbatch_rows {width} does not divide the {self.worker_rows} rows of a worker; "
                f"give a divisor of {self.worker_rows}"
            )

    @property
    def worker_rows(self) -> int:
        """Rows of one worker in a step."""
        return self.config.global_batch // self.setup.row_parts

    @property
    def draws(self) -> int | None:
        """The number N of draws of sampled logits; None for other logits."""
        return self.codec.draws if self.codec else None

    def identity(self) -> dict[str, Any]:
        """What must be equal for a run to be resumed from a checkpoint, as JSON values without absent options."""
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
