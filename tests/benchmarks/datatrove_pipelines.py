"""python -m tests.benchmarks.datatrove_pipelines WORK TEXT OUT [TOKENIZER] in .venv-rival: datatrove on TEXT's Parquet.

WORK: `tokenize` (DocumentTokenizer, a tokenizer.json), `deduplicate` (its four MinHash stages, 5-word shingles, 14
bands of 8) or `filter` (Gopher repetition, Gopher quality, C4, FineWeb, its thresholds). Two processes, Parquet in and
out. It runs first on one document of each file (the start), then on all. Prints wall and CPU seconds, without the
start.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the pipeline already works in two processes

PROCESSES = 2


def main(work: str, text: str, out: str, tokenizer: str = "") -> None:
    from loguru import logger

    logger.remove()
    seconds, cpu_seconds = [], []
    for limit in (1, -1):
        began, cpu_began = time.perf_counter(), _cpu_seconds()
        WORKS[work](Path(text), Path(out) / str(limit), limit, tokenizer)
        seconds.append(time.perf_counter() - began)
        cpu_seconds.append(_cpu_seconds() - cpu_began)
    start = {"start_seconds": seconds[0], "start_cpu_seconds": cpu_seconds[0]}
    print(json.dumps({**start, "seconds": seconds[1] - seconds[0], "cpu_seconds": cpu_seconds[1] - cpu_seconds[0]}))


def _cpu_seconds() -> float:
    """CPU seconds of this process and of its children that have ended."""
    return sum(os.times()[:4])


def run(steps: Sequence[Any], out: Path, name: str, tasks: int) -> None:
    from datatrove.executor import LocalPipelineExecutor

    LocalPipelineExecutor(
        list(steps), tasks=tasks, workers=PROCESSES, logging_dir=str(out / "logs" / name), start_method="fork"
    ).run()


def reader(text: Path, limit: int) -> Any:
    from datatrove.pipeline.readers import ParquetReader

    return ParquetReader(str(text), limit=limit, read_metadata=False)


def writer(out: Path) -> Any:
    from datatrove.pipeline.writers import ParquetWriter

    return ParquetWriter(str(out / "text"), compression="zstd")


def tokenize(text: Path, out: Path, limit: int, tokenizer: str) -> None:
    from datatrove.pipeline.tokens import DocumentTokenizer

    made = DocumentTokenizer(str(out / "tokens"), tokenizer, eos_token="<eos>", shuffle_documents=False)
    run([reader(text, limit), made], out, "tokenize", PROCESSES)


def deduplicate(text: Path, out: Path, limit: int, tokenizer: str) -> None:
    from datatrove.pipeline.dedup.minhash import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )

    config = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)
    signatures, buckets, clusters = (str(out / name) for name in ("signatures", "buckets", "clusters"))
    run([reader(text, limit), MinhashDedupSignature(signatures, config)], out, "signatures", PROCESSES)
    run([MinhashDedupBuckets(signatures, buckets, config=config)], out, "buckets", config.num_buckets)
    run([MinhashDedupCluster(buckets, clusters, config)], out, "clusters", 1)
    run([reader(text, limit), MinhashDedupFilter(clusters), writer(out)], out, "filter", PROCESSES)


def filters(text: Path, out: Path, limit: int, tokenizer: str) -> None:
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )

    asked = [GopherRepetitionFilter(), GopherQualityFilter(), C4QualityFilter(), FineWebQualityFilter()]
    run([reader(text, limit), *asked, writer(out)], out, "filter", PROCESSES)


WORKS: dict[str, Callable[[Path, Path, int, str], None]] = {
    "tokenize": tokenize,
    "deduplicate": deduplicate,
    "filter": filters,
}


if __name__ == "__main__":
    main(*sys.argv[1:])
