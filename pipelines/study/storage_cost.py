"""Bytes per token of each arm's targets in the cache's own format, with capture, codec and Parquet of `cache_logits`.

They are measured on rows of the study. Its vocabulary is small, so an id costs less than in a vocabulary of 256,000.
Every byte of the file counts: ids, counts or logarithms, lengths, hashes of rows, the ranking, checksums.
"""

import json
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa

from data import schema, shards, storage
from data.logits import PLANES, Ranking, encode
from model import Gemma2
from pipelines.study.arms import Arm
from pipelines.study.sizes import Sizes
from pipelines.study.text import Text
from training.backends.torch_backend import TorchBackend
from training.checkpoints.digests import weights_hash
from training.distill.kind import Kind
from training.distill.kinds.sample import Sample
from training.distill.kinds.topk import TopK
from training.distill.teacher import capture

NAME = "bytes.json"
ROWS = 256
"""number of rows that are encoded together, as a row group"""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The average cost of one target of an arm."""

    bytes: float
    """bytes in the cache, with all columns"""
    ids: float
    """number of different ids"""
    tail: float
    """probability of the teacher outside of the top-k; 0 for a sample, which misses nothing on average"""


def measure_costs(arms: tuple[Arm, ...], sizes: Sizes, text: Text, teacher: Gemma2, directory: str) -> dict[str, Cost]:
    """Measures and stores the costs. Arms that store nothing, and the whole distribution, are left out."""
    digest = weights_hash(teacher.state_dict())
    of_kind: dict[Kind, Cost] = {}
    costs = {}
    for arm in arms:
        if arm.draws or arm.kept:
            kind = Sample(draws=arm.draws) if arm.draws else TopK(top=arm.kept)
            if kind not in of_kind:
                of_kind[kind] = _cost(kind, sizes, text, teacher, digest)
            costs[arm.name] = of_kind[kind]
    document = {name: asdict(cost) for name, cost in costs.items()}
    storage.write_bytes(storage.join(directory, NAME), json.dumps(document).encode())
    return costs


def read_costs(directory: str) -> dict[str, Cost]:
    """Arm name -> cost; empty if nothing was measured."""
    uri = storage.join(directory, NAME)
    return (
        {name: Cost(**cost) for name, cost in json.loads(storage.read_bytes(uri)).items()}
        if storage.exists(uri)
        else {}
    )


def _cost(kind: Kind, sizes: Sizes, text: Text, teacher: Gemma2, digest: str) -> Cost:
    rows = min(ROWS, len(text.students) // sizes.batch_rows * sizes.batch_rows)
    batches = [
        text.students.batch(slice(start, start + sizes.batch_rows)) for start in range(0, rows, sizes.batch_rows)
    ]
    spec = kind.codec(sizes.vocab_size)
    ranking = Ranking.of_tokens(np.concatenate([batch["tokens"] for batch in batches]), sizes.vocab_size)
    encoded = []
    ids, tail = 0, 0.0
    kept = capture(teacher, TorchBackend("cpu"), batches, kind, seed=0, teacher_hash=digest)
    for batch, targets in zip(batches, kept, strict=True):
        for row, sequence_hash in zip(targets, batch["sequence_hash"].tolist(), strict=True):
            ids += int((row["target_counts"] > 0).sum() if "target_counts" in row else row["target_ids"].size)
            tail += float(row["target_tail"].sum()) if "target_tail" in row else 0.0
            encoded.append({"sequence_hash": sequence_hash, **encode(row, spec, ranking)})
    encoded[0]["ranking"] = ranking.to_bytes()
    table = pa.Table.from_pylist(encoded, schema.LOGITS)
    stored = len(shards.parquet_bytes(table, len(encoded), (*PLANES, "ranking")))
    count = sum(int(batch["loss_mask"].sum()) for batch in batches)
    return Cost(bytes=stored / count, ids=ids / count, tail=tail / count)
