"""Caches of logits with false contents, as good forgeries as possible: every hash in them is correct.

    forged(name, runs, cache, folder, seed) -> directory

Three things cannot be forged: the teacher, the packed rows, and the teacher's output on the rows.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from data import storage
from data.logits import PLANES, Ranking, Targets, decode, encode
from data.manifest import Manifest, read_manifest
from pipelines.checkpoints.loaded import LoadedModel, batches_of, checkpoint_of, open_model
from pipelines.engine import config as configs
from pipelines.engine.resources import Resources
from pipelines.engine.runner import run_task
from pipelines.engine.stage import VerdictError, load_stage
from pipelines.engine.task import resolve_texts
from pipelines.stages import cache_logits
from tests.programs.cached_runs import EARLIER, Runs, forge
from tests.programs.in_process import InProcess
from training.backends.torch_backend import TorchBackend
from training.distill.teacher import at_targets, map_logits
from training.setup import Setup

FAULTS = (
    "permuted shard",
    "weights hash of a later teacher",
    "another temperature",
    "renormalized support",
    "positions off by one",
    "swapped tokenizer",
)

HASHES = (
    "weights",
    "tokenizer",
    "tokenizer of the teacher",
    "sequences",
    "soft cap",
    "numbers",
    "files",
    "rows",
    "readable",
)
"""checks of the cache's own statements; of the other checks one draws again, and the rest are statistics"""


def forged(fault: str, runs: Runs, cache: str, folder: Path, seed: int) -> str:
    """A copy of an honest cache in `folder`, with the fault."""
    manifest = read_manifest(cache)
    assert manifest is not None
    rng = np.random.default_rng(seed)

    def by_rows(change: Callable[[list[dict[str, bytes]]], list[dict[str, bytes]]]) -> str:
        return forge(cache, folder, lambda _, table: _with_planes(table, change(_planes(table))))

    def by_targets(change: Callable[[Targets], Targets]) -> str:
        return forge(cache, folder, lambda number, table: _with_targets(runs, manifest, number, table, change))

    if fault == "permuted shard":  # and the hashes of its rows left in place
        return by_rows(lambda rows: [rows[row] for row in rng.permutation(len(rows))])
    if fault == "positions off by one":
        return by_targets(lambda targets: {name: np.roll(part, 1, axis=0) for name, part in targets.items()})
    if fault == "swapped tokenizer":
        names = rng.permutation(manifest.datasets["logits"].facts["vocab_size"]).astype(np.int32)
        return by_targets(lambda targets: {**targets, "target_ids": names[targets["target_ids"]]})
    if fault == "renormalized support":
        return forge(cache, folder, lambda number, table: _renormalized(runs, manifest, number, table))
    if fault == "weights hash of a later teacher":
        return forge(cache, folder, lambda number, table: _captured(runs, manifest, number, table, step=EARLIER))
    assert fault == "another temperature"
    return forge(cache, folder, lambda number, table: _captured(runs, manifest, number, table, temperature=1.1))


def checks(runs: Runs, cache: str, device: str = "cpu", **config: object) -> dict[str, bool | None]:
    """The verdict of `audit_logits`: check -> whether it holds."""
    # a ROOT for each: a forgery has the reference of what it was made from
    root = f"{cache}/audits-{device}"
    task = runs.task("audit_logits", config, root=root, logits=cache, sequences=runs.sequences, teacher=runs.teacher)
    with suppress(VerdictError):
        run_task(task, Resources(device=device), InProcess(), say=lambda _: None)
    manifest = task.manifest()
    assert manifest is not None
    facts = manifest.datasets["verdict"].facts
    passed_by_check = {check["check"]: check["passed"] for check in facts["checks"]}
    assert facts["passed"] == (False not in passed_by_check.values()) == (not facts["failure"])
    return passed_by_check


def kinds_that_fail(passed_by_check: dict[str, bool | None]) -> set[str]:
    """Those of "hashes", "again" and "numbers" that have a failed check."""
    kinds = {
        name: "hashes" if name in HASHES else "again" if name == "made again" else "numbers" for name in passed_by_check
    }
    return {kinds[name] for name, passed in passed_by_check.items() if passed is False}


def teacher_of(runs: Runs, step: int | None = None) -> LoadedModel:
    suffix = "" if step is None else f"@{step}"
    (given,) = resolve_texts(load_stage("cache_logits").reads["teacher"], None, [runs.teacher + suffix], str(runs.root))
    return open_model(checkpoint_of(given), Setup(device="cpu"))


def _captured(
    runs: Runs,
    manifest: Manifest,
    number: int,
    table: pa.Table,
    step: int | None = None,
    temperature: float | None = None,
) -> pa.Table:
    """The shard as drawn from another teacher or temperature, by the key of the honest shard."""
    config = _config(manifest)
    if temperature is not None:
        config = replace(config, temperature=temperature)
    honest = teacher_of(runs).weights_sha256
    ranking, batches = _shard(runs, manifest, number)
    spec = cache_logits.kept_kind(config).codec(len(ranking.ids))
    rows = [
        encode(row, spec, ranking)
        for _, many in cache_logits.captured(teacher_of(runs, step), batches, config, honest)
        for row in many
    ]
    return _with_planes(table, rows)


def _renormalized(runs: Runs, manifest: Manifest, number: int, table: pa.Table) -> pa.Table:
    """Counts of p_i / sum p over the kept ids, without a tail, instead of drawn counts. They sum to the draws."""
    config, teacher = _config(manifest), teacher_of(runs)
    ranking, batches = _shard(runs, manifest, number)
    spec = cache_logits.kept_kind(config).codec(len(ranking.ids))
    rows = []
    for batch, many in cache_logits.captured(teacher, batches, config, teacher.weights_sha256):
        with torch.no_grad():
            made = map_logits(teacher.model, TorchBackend("cpu"), batch, {}, lambda logits, *_: (logits,))
        logits = torch.from_numpy(at_targets(batch, made)[0])
        start = 0
        for targets in many:
            ids = targets["target_ids"]
            p = torch.softmax(logits[start : start + len(ids)], -1).gather(1, torch.from_numpy(ids).long()).numpy()
            start += len(ids)
            if config.estimator == "sample":
                share = np.where(targets["target_counts"] > 0, p, 0)
                share = share / share.sum(axis=1, keepdims=True)
                targets = {"target_ids": ids, "target_counts": _as_counts(share, config.draws)}
            else:
                logs = np.log(p / p.sum(axis=1, keepdims=True))
                targets = {"target_ids": ids, "target_log_probs": logs, "target_tail": np.zeros(len(ids), np.float32)}
            rows.append(encode(targets, spec, ranking))
    return _with_planes(table, rows)


def _as_counts(shares: np.ndarray, draws: int) -> np.ndarray:
    """Whole numbers that sum to the draws, by largest remainders."""
    exact = shares * draws
    counts = np.floor(exact).astype(np.int32)
    order = np.argsort(-(exact - counts), axis=1)
    left = draws - counts.sum(axis=1, keepdims=True)
    np.put_along_axis(counts, order, np.take_along_axis(counts, order, 1) + (np.arange(shares.shape[1]) < left), 1)
    return counts


def _with_targets(
    runs: Runs,
    manifest: Manifest,
    number: int,
    table: pa.Table,
    change: Callable[[Targets], Targets],
) -> pa.Table:
    ranking, _ = _shard(runs, manifest, number)
    facts = manifest.datasets["logits"].facts
    spec = cache_logits.kept_kind(_config(manifest)).codec(len(ranking.ids))
    rows = []
    for row in _planes(table):
        targets = decode([row], spec, ranking).padded(facts["max_unique"])
        rows.append(encode(change(targets), spec, ranking))
    return _with_planes(table, rows)


def _shard(runs: Runs, manifest: Manifest, number: int) -> tuple[Ranking, list[tuple[int, dict[str, np.ndarray]]]]:
    sequences = read_manifest(runs.sequences)
    assert sequences is not None
    uri = storage.join(runs.sequences, sequences.datasets["sequences"].shards[number].name)
    batches = batches_of(uri, _config(manifest).forward_rows)
    vocab_size = manifest.datasets["logits"].facts["vocab_size"]
    return Ranking.of_tokens(np.concatenate([batch["tokens"][:count] for count, batch in batches]), vocab_size), batches


def _config(manifest: Manifest) -> cache_logits.Config:
    return configs.from_dict(cache_logits.Config, manifest.config, "the cache")


def _planes(table: pa.Table) -> list[dict[str, bytes]]:
    return [{name: row[name] for name in PLANES} for row in table.to_pylist()]


def _with_planes(table: pa.Table, rows: list[dict[str, bytes]]) -> pa.Table:
    for name in PLANES:
        place = table.schema.get_field_index(name)
        column = pa.array([row[name] for row in rows], pa.binary())
        table = table.set_column(place, table.schema.field(name), column)
    return table
