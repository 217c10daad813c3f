"""The two feeds against each other, and the tokenizer against plain SentencePiece on Python's standard library."""

import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import sentencepiece

from data.order import MixturePhase, SequenceDataset
from data.packing import Document, pack_documents
from data.shards import write_table
from data.tokenizer import Tokenizer, train_tokenizer
from infra.ray_session import RaySession
from model import gemma2_tiny
from tests.benchmarks.model_speed import Benchmark
from training.config import TrainingConfig
from training.feed import direct_feed
from training.job import TrainJob

LENGTH, ROWS, BATCH, STEPS = 1024, 2048, 16, 100
TEXT_BYTES = 2_000_000


def benchmarks() -> Iterator[Benchmark]:
    yield _tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        session = RaySession()
        session.start()
        yield _feeds(Path(folder))
        session.close()


def _tokenizer() -> Benchmark:
    library = Path(sysconfig.get_paths()["stdlib"])
    texts, size = [], 0
    for path in sorted(library.glob("*.py")):
        texts.append(path.read_text(encoding="utf-8", errors="ignore"))
        size += len(texts[-1].encode())
        if size > TEXT_BYTES:
            break
    model = train_tokenizer(texts, 8192)
    ours, plain = Tokenizer.from_bytes(model), sentencepiece.SentencePieceProcessor(model_proto=model)
    return Benchmark(
        what="encode documents, markers spelled out",
        amount=size,
        unit="B",
        ours=lambda: [ours.encode_document(text) for text in texts],
        rival_name="sentencepiece",
        rival=lambda: [plain.encode(text) for text in texts],
    )


def _feeds(folder: Path) -> Benchmark:
    from training.worker.on_worker import ray_feed

    random = np.random.default_rng(0)
    documents = (
        Document(id=f"{k:032x}", tokens=random.integers(3, 64, 3000, dtype=np.int32), text_bytes=3000)
        for k in range(ROWS * LENGTH // 3000)
    )
    table = pack_documents(documents, LENGTH)
    write_table(str(folder), "rows.parquet", table, row_group_rows=64)
    dataset = SequenceDataset(name="rows", shard_rows=(table.num_rows,), row_group_rows=64)
    job = TrainJob(
        config=TrainingConfig(model=gemma2_tiny(vocab_size=64), steps=STEPS, global_batch=BATCH),
        checkpoints_uri=str(folder / "checkpoints"),
        sequences=((dataset, (str(folder / "rows.parquet"),)),),
        phases=(MixturePhase(start_step=0, weights=(("rows", 1.0),)),),
        sequence_length=LENGTH,
        vocab_size=64,
    )
    direct, through_ray = direct_feed(job), ray_feed(job, 0, 1)
    return Benchmark(
        what=f"feed, {STEPS} steps of {BATCH} x {LENGTH}, start included",
        amount=STEPS * BATCH,
        unit="rows",
        ours=lambda: sum(len(batch["tokens"]) for _, batch in direct(0, STEPS)),
        rival_name="Ray Data feed",
        rival=lambda: sum(len(batch["tokens"]) for _, batch in through_ray(0, STEPS)),
    )
