"""What a cache of logits costs: bytes a stored id against the bounds, decoding against training, capture against the
teacher's bare forward pass.

Sizes are of whole Parquet files, hashes and rankings included. Ids are drawn at the frequencies that Gemma's tokens
have in Python's standard library, from teachers of stated entropy: each target's distribution is a Zipf law over ids
that the text itself gives. There are two bounds. One takes all sets of that many ids, and all splits of the draws, as
equally likely (to compare with 18 + 6 bits). The second knows the frequency of each id and of each count.
"""

import os
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from scipy.special import gammaln

from data import schema, shards
from data.loader import LogitsReader
from data.logits import PLANES, CodecSpec, Ranking, Targets, encode
from data.tokenizer import Tokenizer
from model import Gemma2
from tests.benchmarks import step_run
from tests.benchmarks.step_speed import Row
from tests.programs.places import REPOSITORY
from training.backends.base import Backend
from training.backends.make import make_backend
from training.distill.kinds.sample import Sample, count_draws
from training.distill.kinds.topk import TopK
from training.distill.teacher import capture
from training.logit_slices import SLICE_POSITIONS
from training.setup import Setup

GEMMA = REPOSITORY / ".cache" / "gemma_tokenizer.model"
VOCAB, DRAWS, ROWS, LENGTH, CANDIDATES = 256_000, 50, 32, 1024, 400
ZIPF = {6: 2.45, 12: 1.70, 25: 1.12, 35: 0.72}
"""approximate number of distinct ids of 50 draws -> exponent of the teacher's law"""
TEXT_BYTES = 6_000_000
TRAINING = {"32k": 1549, "256k": 237}
"""tokens a second that training reads on this machine (docs/benchmarks.md)"""
ROUNDS = 5


def rows() -> Iterator[Row]:
    """Sizes, decoding, capture."""
    tokens = _real_tokens()
    with tempfile.TemporaryDirectory() as folder:
        for distinct, exponent in ZIPF.items():
            uri, row = _sampled(tokens, exponent, Path(folder) / f"{distinct}.parquet")
            yield row
            if distinct == 12:
                yield from _decoding(uri)
        for top in (12, 50):
            yield _topk(tokens, top, Path(folder) / f"top{top}.parquet")
    for vocabulary, length in ((32_000, 512), (256_000, 256)):
        yield _capture(vocabulary, 1, length)


def _real_tokens() -> np.ndarray:
    path = Path(os.environ.get("GEMMA_TOKENIZER", GEMMA))
    if not path.exists():
        raise ValueError(f"no Gemma tokenizer at {path}; `make tokenizer` fetches it, or GEMMA_TOKENIZER names it")
    tokenizer = Tokenizer.load(str(path))
    texts, size = [], 0
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if size > TEXT_BYTES:
            break
        texts.append(file.read_bytes().decode(errors="ignore").encode())
        size += len(texts[-1])
    tokens, _ = tokenizer.encode_documents(texts)
    return tokens


def _law(exponent: float) -> np.ndarray:
    weights = (1.0 + np.arange(CANDIDATES)) ** -exponent
    return weights / weights.sum()


def _sampled(tokens: np.ndarray, exponent: float, path: Path) -> tuple[str, Row]:
    rng, law = np.random.default_rng(0), _law(exponent)
    kept, entropies = [], []
    for _ in range(ROWS):
        candidates = tokens[rng.integers(0, len(tokens), (LENGTH, CANDIDATES))]
        drawn = rng.choice(CANDIDATES, (LENGTH, DRAWS), p=law)
        kept.append(count_draws(np.take_along_axis(candidates, drawn, 1)))
        entropies += [_entropy(np.bincount(np.unique(row, return_inverse=True)[1], law)) for row in candidates[:50]]
    spec = Sample(draws=DRAWS).codec(VOCAB)
    size = _written(kept, spec, tokens, path)
    ids = sum(int((row["target_counts"] > 0).sum()) for row in kept)
    targets = ROWS * LENGTH
    uniform, known = _bounds(kept, tokens)
    row = Row(
        what=f"sample, {DRAWS} draws, teacher of {np.mean(entropies):.2f} nats: {ids / targets:.1f} ids a target",
        ours=f"{size / ids:.2f} B an id, {size / targets:.1f} B a target",
        rival=f"bound, ids and counts unknown: {uniform / ids:.2f}; frequencies known: {known / ids:.2f} B an id",
        ratio=f"{size / uniform:.2f}x, {size / known:.2f}x",
    )
    return str(path), row


def _topk(tokens: np.ndarray, top: int, path: Path) -> Row:
    rng, law = np.random.default_rng(0), _law(ZIPF[12])
    kept = []
    for _ in range(ROWS):
        candidates = tokens[rng.integers(0, len(tokens), (LENGTH, CANDIDATES))]
        targets: Targets = {
            "target_ids": np.zeros((LENGTH, top), np.int32),
            "target_log_probs": np.full((LENGTH, top), -np.inf, np.float32),
            "target_tail": np.zeros(LENGTH, np.float32),
        }
        for place, row in enumerate(candidates):
            ids, which = np.unique(row, return_inverse=True)
            shares = np.bincount(which, law)
            best = np.argsort(-shares)[:top]
            targets["target_ids"][place, : len(best)] = ids[best]
            targets["target_log_probs"][place, : len(best)] = np.log(shares[best])
            targets["target_tail"][place] = max(0.0, 1 - shares[best].sum())
        kept.append(targets)
    size = _written(kept, TopK(top=top).codec(VOCAB), tokens, path)
    return Row(
        what=f"topk, K = {top}, the teacher of 12 ids a target",
        ours=f"{size / (ROWS * LENGTH * top):.2f} B an id, {size / (ROWS * LENGTH):.1f} B a target",
        rival="18-bit id and float16: 4.25 B an id",
        ratio=f"{size / (ROWS * LENGTH * top * 4.25):.2f}x",
    )


def _written(kept: list[Targets], spec: CodecSpec, tokens: np.ndarray, path: Path) -> int:
    """Writes a shard of logits for these rows, which are a part of the text. Returns its size."""
    ranking = Ranking.of_tokens(tokens[: ROWS * LENGTH], VOCAB)
    made = [{"sequence_hash": number, **encode(row, spec, ranking)} for number, row in enumerate(kept)]
    made[0]["ranking"] = ranking.to_bytes()
    table = pa.Table.from_pylist(made, schema.LOGITS)
    data = shards.parquet_bytes(table, 64, (*PLANES, "ranking"))
    path.write_bytes(data)
    return len(data)


def _entropy(shares: np.ndarray) -> float:
    return float(-(shares * np.log(shares)).sum())


def _bounds(kept: list[Targets], tokens: np.ndarray) -> tuple[float, float]:
    """Bytes: of sets of ids and splits of draws all equally likely; and at the frequencies of ids and counts."""
    unique = np.concatenate([(row["target_counts"] > 0).sum(axis=1) for row in kept])
    ids = np.concatenate([row["target_ids"][row["target_counts"] > 0] for row in kept])
    counts = np.concatenate([row["target_counts"][row["target_counts"] > 0] for row in kept])
    uniform = (_log2_choose(VOCAB, unique) + _log2_choose(DRAWS - 1, unique - 1)).sum()
    share = np.bincount(tokens, minlength=VOCAB) / len(tokens)
    known = -np.log2(share[ids]).sum() - (gammaln(unique + 1) / np.log(2)).sum()
    return float(uniform / 8), float((known + _empirical(counts) + _empirical(unique)) / 8)


def _log2_choose(n: int, k: np.ndarray) -> np.ndarray:
    return (gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)) / np.log(2)


def _empirical(values: np.ndarray) -> float:
    """Bits of an ideal code for the values at their own frequencies."""
    share = np.bincount(values) / len(values)
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum() * len(values))


def _decoding(uri: str) -> Iterator[Row]:
    reader = LogitsReader([uri], Sample(draws=DRAWS).codec(VOCAB))
    everything = [(0, row) for row in range(ROWS)]

    def read() -> None:
        for _, targets in reader.read(everything):
            reader.columns_of(targets)

    speed = ROWS * LENGTH / _median([read])[0]
    for vocabulary, eaten in TRAINING.items():
        yield Row(
            what=f"decode into the loss's arrays, 12 ids a target, rows of {LENGTH}",
            ours=f"{speed:,.0f} tok/s",
            rival=f"a train step at V = {vocabulary}: {eaten:,} tok/s",
            ratio=f"{speed / eaten:,.0f}x",
        )


def _capture(vocabulary: int, count: int, length: int) -> Row:
    """CPU seconds of one thread, which other work on the machine changes little."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model, backend = Gemma2(step_run.config(vocabulary)), make_backend(Setup(device="cpu"))
    model.requires_grad_(False)
    backend.place_model(model)
    tokens = np.random.default_rng(0).integers(500, vocabulary, (count, length), dtype=np.int32)
    mask = np.ones(tokens.shape, bool)
    batch = {
        "tokens": tokens,
        "segment_ids": np.ones_like(tokens),
        "positions": np.tile(np.arange(length, dtype=np.int32), (count, 1)),
        "loss_mask": mask,
        "sequence_hash": np.arange(count, dtype=np.uint64),
    }
    spec, ranking = Sample(draws=DRAWS).codec(vocabulary), Ranking.of_tokens(tokens, vocabulary)

    def ours() -> None:
        for many in capture(model, backend, [batch, batch], Sample(draws=DRAWS), seed=0, teacher_hash="t"):
            for row in many:
                encode(row, spec, ranking)

    def bare() -> None:
        for _ in range(2):
            _forward(model, backend, batch)

    ours_seconds, bare_seconds = _median([ours, bare], time.process_time)
    torch.set_num_threads(threads)
    return Row(
        what=f"capture, d256 L4, V = {vocabulary:,}, {count} x {length}, draws and encoding, CPU seconds of a thread",
        ours=f"{2 * tokens.size / ours_seconds:,.0f} tok/s",
        rival=f"the bare forward pass: {2 * tokens.size / bare_seconds:,.0f} tok/s",
        ratio=f"{ours_seconds / bare_seconds:.2f}x the time",
    )


@torch.no_grad()
def _forward(model: Gemma2, backend: Backend, batch: dict[str, np.ndarray]) -> None:
    """Computes logits of every position, in slices as capture does, and keeps none."""
    columns = backend.to_device({name: batch[name] for name in ("tokens", "positions", "segment_ids")})
    hidden_RD = model.hidden(columns["tokens"], columns["positions"], columns["segment_ids"]).flatten(0, 1)
    backend.step_boundary()
    index = np.arange(len(hidden_RD), dtype=np.int32).reshape(-1, SLICE_POSITIONS)
    for chunk in index:
        of = backend.to_device({"index": chunk})
        model.logits(hidden_RD.index_select(0, of["index"]))[-1, -1].item()
        backend.step_boundary()


def _median(calls: list[Callable[[], None]], clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Seconds of each function, called in turns, after one call of each to warm up."""
    times: list[list[float]] = [[] for _ in calls]
    for number in range(ROUNDS + 1):
        for place, call in enumerate(calls):
            began = clock()
            call()
            if number:
                times[place].append(clock() - began)
    return [statistics.median(of) for of in times]
