"""One pass of the teacher over packed rows: at each target N draws from its distribution, kept as ids and counts.

Shard k of LOGITS has the rows of shard k of SEQUENCES, in their order, each with the sequence_hash it was computed
on. A draw depends on seed, teacher, sequence and position alone.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from data import schema
from data.logits import CodecSpec, encode_counts
from pipelines.models import batches_of, check_same_tokenizer, checkpoint_of, open_model
from pipelines.progress import advance
from pipelines.shard_map import Part, ShardOutput, dataset_of, map_shards
from pipelines.stage import Context, Outcome, Read
from training.backend import resolve_device
from training.config import Device
from training.teacher import teacher_targets

VERSION = 1
READS = {
    "sequences": Read(help="packed rows", dataset="sequences"),
    "teacher": Read(help="checkpoint of the teacher", dataset="checkpoints"),
}
WRITES = ("logits",)


@dataclass(frozen=True, kw_only=True)
class Config:
    """The estimator and its numbers, and what else decides the bytes."""

    estimator: Literal["sample"] = "sample"
    """`sample`: counts / N of N draws with replacement, an unbiased estimate of the teacher's distribution"""
    draws: int = 50
    """N, the draws at each target"""
    seed: int = 0
    """of the draws"""
    forward_rows: int = 8
    """rows in one forward pass of the teacher"""
    dtype: Literal["float32"] = "float32"
    """type the teacher computes in"""

    def __post_init__(self) -> None:
        if not 1 <= self.draws <= 65535:
            raise ValueError(f"draws is {self.draws}; allowed are 1 to 65535, usually 50")
        if self.forward_rows < 1:
            raise ValueError(f"forward_rows is {self.forward_rows}; at least 1")


@dataclass(frozen=True)
class _Cache:
    config: Config
    checkpoint: str
    device: Device
    vocab_size: int

    def __call__(self, uri: str) -> ShardOutput:
        teacher = open_model(self.checkpoint, self.device)
        if teacher.model.config.vocab_size != self.vocab_size:
            raise ValueError(
                f"the teacher's vocabulary has {teacher.model.config.vocab_size} ids and that of the sequences "
                f"{self.vocab_size}; "
                "take a teacher that was trained with the tokenizer of these sequences (import_model --vocab-size "
                "256000 leaves out the padding rows of an embedding of 256128)"
            )
        spec = CodecSpec(vocab_size=self.vocab_size, draws=self.config.draws)
        rows = []
        stored = targets = widest = 0
        for count, batch in batches_of(uri, self.config.forward_rows):
            found = teacher_targets(
                teacher.model,
                teacher.backend,
                batch,
                draws=self.config.draws,
                seed=self.config.seed,
                teacher_hash=teacher.weights_sha256,
            )
            for (ids, counts), sequence_hash in zip(found[:count], batch["sequence_hash"], strict=False):
                unique, packed = encode_counts(ids, counts, spec)
                rows.append({"sequence_hash": int(sequence_hash), "unique": unique.tolist(), "packed": packed})
                stored += int(unique.sum())
                targets += len(unique)
                widest = max(widest, int(unique.max(initial=0)))
            advance(count)
        return ShardOutput(
            parts={"logits": Part(table=pa.Table.from_pylist(rows, schema.LOGITS), row_group_rows=64)},
            facts={
                "stored_ids": stored,
                "targets": targets,
                "max_unique": widest,
                "teacher_sha256": teacher.weights_sha256,
                "final_softcap": teacher.model.config.final_softcap,
            },
        )


def run(context: Context, config: Config) -> Outcome:
    """Raises ValueError where teacher and sequences are of different tokenizers."""
    sequences, teacher = context.input("sequences"), context.input("teacher")
    check_same_tokenizer(sequences, teacher)
    device = resolve_device(context.resources.device)
    vocab_size = sequences.data.facts["vocab_size"]
    work = _Cache(config, checkpoint_of(teacher), device, vocab_size)
    receipts = map_shards(
        context,
        "cache",
        sequences.uris(),
        work,
        whole_node=True,
        setup={"device": device},
        unit="row",
        sizes=[shard.rows for shard in sequences.data.shards],
    )
    logits = dataset_of(
        receipts,
        "logits",
        draws=config.draws,
        vocab_size=vocab_size,
        stored_ids=sum(receipt.facts["stored_ids"] for receipt in receipts),
        targets=sum(receipt.facts["targets"] for receipt in receipts),
        max_unique=int(np.max([receipt.facts["max_unique"] for receipt in receipts])),
        teacher_reference=teacher.reference,
        teacher_sha256=receipts[0].facts["teacher_sha256"],
        final_softcap=receipts[0].facts["final_softcap"],
        sequences_reference=sequences.reference,
        sequences_content=sequences.content(),
    )
    return Outcome(
        datasets={"logits": logits},
        tokenizer_sha256=sequences.manifest.tokenizer_sha256,
        setup={"device": device},
        log={"row_tokens": sequences.data.rows * sequences.data.facts["sequence_length"]},
    )
