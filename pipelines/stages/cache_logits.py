"""Runs the teacher once over packed rows and keeps its distribution at each target, as an estimator stores it.

Shard k of LOGITS has the rows of shard k of SEQUENCES, in the same order, each with the sequence_hash of its packed
row. A draw depends on seed, teacher, sequence and position alone. Shards are independent: there is one replica of the
teacher on each node, each replica takes the next shard, and none waits for another.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, get_args

import numpy as np
import pyarrow as pa

from data import schema
from data.absent import absent, present
from data.loader import MADE_AS
from data.logits import PLANES, CodecSpec, Ranking, Targets, encode
from pipelines.account.costs import TeacherPassCost
from pipelines.checkpoints.loaded import (
    LoadedModel,
    batches_of,
    check_same_tokenizer,
    checked_checkpoint,
    open_model,
    setup_of,
)
from pipelines.engine.config import digest, hashed
from pipelines.engine.declaration import Declaration, Places
from pipelines.engine.errors import UserError
from pipelines.engine.inputs import Input, Read
from pipelines.engine.progress import advance
from pipelines.engine.shard_map import Part, ShardOutput, dataset_of, map_shards
from pipelines.engine.stage import Context, Outcome
from pipelines.fit.programs import forward_pass
from pipelines.report.kinds import CacheReport
from training.config import ComputeType, one_of
from training.distill.kind import Kind, NotFiniteError
from training.distill.kinds import KINDS, KindName, kind_of
from training.distill.teacher import capture
from training.setup import Setup

VERSION = 5
READS = {
    "sequences": Read(help="packed rows", dataset="sequences"),
    "teacher": Read(help="checkpoint of the teacher", dataset="checkpoints"),
}
WRITES = ("logits",)
DECLARES = Declaration(
    lease=True,
    places=Places(),
    cost=TeacherPassCost(),
    report=CacheReport(),
    programs=(forward_pass("teacher_pass", "draws"),),
)

ROW_GROUP_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class Config:
    """The estimator and its numbers, and all else that decides the bytes."""

    estimator: KindName = "sample"
    """Estimator of the teacher's distribution: `sample` keeps counts of N draws and is unbiased; `topk` keeps the K
    largest probabilities and the mass of the rest; `full` keeps all probabilities of a small vocabulary, for tests."""
    draws: int = 50
    """Number N of draws at each target, for `sample`."""
    top: int = 50
    """Number K of ids kept at each target, for `topk`."""
    temperature: float = 1.0
    """Temperature of the distribution that is kept, softmax(logits / temperature)."""
    proposal: float = absent(1.0)
    """Power of the distribution that draws come from, for `sample`; with a power other than 1 ids carry importance
    weights."""
    seed: int = 0
    """Seed of the draws."""
    forward_rows: int = 8
    """Rows in one forward pass of the teacher."""
    dtype: ComputeType = absent("float32")
    """Type of the teacher's weights and activations; norms, softmax, logits and draws are float32 in any case."""

    def __post_init__(self) -> None:
        for kind in KINDS.values():  # numbers that this estimator does not use must be valid too
            kind.of(vars(self))
        kind_of(self.estimator)
        one_of("dtype", self.dtype, get_args(ComputeType))
        if self.forward_rows < 1:
            raise UserError(f"forward_rows is {self.forward_rows}; it must be at least 1 (default: 8)")


def kept_kind(config: Config) -> Kind:
    """The kind of distribution that the config names, with the config's numbers."""
    return kind_of(config.estimator).of(vars(config))


@dataclass(frozen=True)
class _Cache:
    config: Config
    checkpoint: str
    setup: Setup
    spec: CodecSpec

    def __call__(self, uri: str) -> ShardOutput:
        teacher = open_model(self.checkpoint, self.setup, self.config.dtype)
        batches = batches_of(uri, self.config.forward_rows)
        ranking = Ranking.of_tokens(
            np.concatenate([batch["tokens"][:count] for count, batch in batches]), self.spec.vocab_size
        )
        rows: list[dict[str, Any]] = []
        stored = targets = widest = 0
        for batch, kept in captured(teacher, batches, self.config, teacher.weights_sha256):
            for row, sequence_hash in zip(kept, batch["sequence_hash"].tolist(), strict=False):
                encoded = encode(row, self.spec, ranking)
                rows.append({"sequence_hash": sequence_hash, **encoded})
                unique = np.frombuffer(encoded["unique"], self.spec.unique_type)
                stored += int(unique.sum())
                targets += len(unique)
                widest = max(widest, int(unique.max(initial=0)))
            advance(len(kept))
        if rows:
            rows[0]["ranking"] = ranking.to_bytes()
        made_as = made_as_of(teacher.weights_sha256, self.config, self.spec)
        table = pa.Table.from_pylist(rows, schema.LOGITS)
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), MADE_AS: made_as})
        part = Part(table=table, row_group_rows=ROW_GROUP_ROWS, opaque_columns=(*PLANES, "ranking"))
        return ShardOutput(
            parts={"logits": part},
            facts={
                "stored_ids": stored,
                "targets": targets,
                "max_unique": widest,
                "teacher_sha256": teacher.weights_sha256,
                "made_as": made_as,
                "final_softcap": teacher.model.config.final_softcap,
            },
        )


def made_as_of(teacher_sha256: str, config: Config, spec: CodecSpec) -> str:
    """Digest of all that decides the numbers of a cache besides the rows; the digest leaves absent options out."""
    return digest([teacher_sha256, hashed(config), present(spec)])


def captured(
    teacher: LoadedModel, batches: list[tuple[int, dict[str, np.ndarray]]], config: Config, teacher_hash: str
) -> Iterator[tuple[dict[str, np.ndarray], list[Targets]]]:
    """(batch, the targets that the estimator keeps for each of its real rows), over the batches of `batches_of`."""
    kept = capture(
        teacher.model,
        teacher.backend,
        (batch for _, batch in batches),
        kept_kind(config),
        seed=config.seed,
        teacher_hash=teacher_hash,
    )
    try:
        for (count, batch), rows in zip(batches, kept, strict=True):
            yield batch, rows[:count]
    except NotFiniteError as error:
        raise UserError(f"{teacher.uri}: {error}") from error


def checked_teacher(teacher: Input, setup: Setup, forward_rows: int, vocab_size: int) -> str:
    """The teacher's directory. Raises UserError if the teacher and the sequences have different vocabularies."""
    uri, sizes = checked_checkpoint(teacher, setup, forward_rows)
    if sizes.vocab_size != vocab_size:
        raise UserError(
            f"the teacher's vocabulary has {sizes.vocab_size} ids and the sequences' vocabulary has "
            f"{vocab_size}; give a teacher that was trained with the tokenizer of these sequences (import_model "
            "--vocab-size 256000 leaves out the padding rows of an embedding of 256128)"
        )
    return uri


def run(context: Context, config: Config) -> Outcome:
    """Raises UserError if teacher and sequences have different tokenizers."""
    sequences, teacher = context.input("sequences"), context.input("teacher")
    check_same_tokenizer(sequences, teacher)
    spec = kept_kind(config).codec(sequences.data.facts["vocab_size"])
    setup = setup_of(context)
    work = _Cache(config, checked_teacher(teacher, setup, config.forward_rows, spec.vocab_size), setup, spec)
    receipts = map_shards(
        context,
        "cache",
        sequences.uris(),
        work,
        whole_node=True,
        setup=setup.forward_record(),
        unit="row",
        sizes=[shard.rows for shard in sequences.data.shards],
    )
    logits = dataset_of(
        receipts,
        "logits",
        codec=asdict(spec),
        vocab_size=spec.vocab_size,
        draws=spec.draws,
        stored_ids=sum(receipt.facts["stored_ids"] for receipt in receipts),
        targets=sum(receipt.facts["targets"] for receipt in receipts),
        max_unique=int(np.max([receipt.facts["max_unique"] for receipt in receipts])),
        teacher_reference=teacher.reference,
        teacher_sha256=receipts[0].facts["teacher_sha256"],
        made_as=receipts[0].facts["made_as"],
        final_softcap=receipts[0].facts["final_softcap"],
        sequences_reference=sequences.reference,
        sequences_content=sequences.content(),
    )
    return Outcome(
        datasets={"logits": logits},
        tokenizer_sha256=sequences.manifest.tokenizer_sha256,
        setup=setup.forward_record(),
        log={"row_tokens": sequences.data.rows * sequences.data.facts["sequence_length"]},
    )
