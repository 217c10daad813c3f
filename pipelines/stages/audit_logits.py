"""Re-runs the teacher on a seeded sample of a cache of logits and gives a verdict; a failed verdict is exit code 1.

The stage checks three things: the hashes of weights, tokenizer and rows; on the device that made the cache, whether
the same bytes come out again; on any device, whether the cache is an honest estimate of the teacher
(training/distill/audit.py). The sample consists of whole forward passes, at least one for each shard, so that targets
are drawn again in the batches in which they were drawn.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

import data.errors
from data import schema, shards, storage
from data.loader import LogitsReader
from data.logits import CodecSpec, Ragged, Ranking, Targets, decode, encode
from data.manifest import Dataset
from data.schema import sequence_hashes
from pipelines.checkpoints.loaded import batches_of, dataset_given, open_model, setup_of
from pipelines.engine import config as configs
from pipelines.engine.declaration import Declaration, Places
from pipelines.engine.errors import UserError
from pipelines.engine.inputs import Input, Read
from pipelines.engine.progress import advance
from pipelines.engine.shard_map import Receipt, ShardOutput, map_shards
from pipelines.engine.stage import FAILURE, Context, Outcome
from pipelines.stages import cache_logits
from training.distill.audit import tally
from training.distill.kind import Limits, Tally
from training.inputs import codec_of
from training.setup import Setup

VERSION = 3
READS = {
    "logits": Read(help="cached logits to audit", dataset="logits"),
    "sequences": Read(help="packed rows that the logits were computed on", dataset="sequences"),
    "teacher": Read(help="checkpoint of the teacher that computed the logits", dataset="checkpoints"),
}
WRITES = ("verdict",)
DECLARES = Declaration(lease=True, places=Places())


MARGIN = 1.5
"""Factor on the number of passes that the mean number of targets asks for: passes at the end of a shard are shorter,
and rows have more or fewer targets."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """How much of the cache is computed again, and what passes."""

    fraction: float = 0.001
    """Share of the targets that is computed again, about; at least one forward pass for each shard."""
    min_positions: int = 200
    """Least number of targets that are computed again; all of them if the cache has fewer."""
    seed: int = 0
    """Seed of the sample."""
    alpha: float = 1e-5
    """Chance that an honest cache fails the statistical tests of its draws."""
    max_log_prob_difference: float = 0.01
    """Largest allowed difference of log p of a kept id, in nats, for `topk` and `full`; storing log p rounds it by up
    to 0.001."""
    max_lost_mass: float = 0.001
    """Largest allowed difference, as a probability, between the mass of the best K ids and the mass of the kept ids,
    and between the tails, for `topk` and `full`."""

    def __post_init__(self) -> None:
        for name in ("fraction", "alpha"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be above 0 and at most 1")
        if self.min_positions < 1:
            raise UserError(f"min_positions is {self.min_positions}; it must be at least 1 (default: 200)")


@dataclass(frozen=True, kw_only=True)
class _Task:
    """A shard of logits, the shard of its sequences, and the forward passes that are computed again."""

    logits: str
    sha256: str
    """Hash of the file of logits in the manifest."""
    sequences: str
    passes: tuple[int, ...]


@dataclass(frozen=True)
class _Audit:
    cached: cache_logits.Config
    """Config of the run that made the cache."""
    checkpoint: str
    setup: Setup
    spec: CodecSpec
    max_unique: int
    teacher_hash: str
    """Hash of the teacher in the cache's manifest; the draws were keyed by this hash."""
    coin_seed: int
    made_as: str

    def __call__(self, task: _Task) -> ShardOutput:
        teacher = open_model(self.checkpoint, self.setup, self.cached.dtype)
        batches = batches_of(task.sequences, self.cached.forward_rows)
        tokens = np.concatenate([batch["tokens"][:count] for count, batch in batches])
        ranking = Ranking.of_tokens(tokens, self.spec.vocab_size)
        chosen = [batches[number] for number in task.passes]
        wanted = np.concatenate([batch["sequence_hash"][:count] for count, batch in batches])
        recorded = shards.read_table(task.logits, ["sequence_hash"])["sequence_hash"].to_numpy()
        wrong_rows = abs(len(recorded) - len(wanted))
        wrong_rows += int((recorded[: len(wanted)] != wanted[: len(recorded)]).sum())
        wrong_rows += sum(_wrong_hashes(batch, count) for count, batch in chosen)
        facts: dict[str, Any] = {
            "teacher_sha256": teacher.weights_sha256,
            "final_softcap": teacher.model.config.final_softcap,
            "wrong_rows": wrong_rows,
            "wrong_files": int(hashlib.sha256(storage.read_bytes(task.logits)).hexdigest() != task.sha256),
            "unreadable": "",
            "redrawn": 0,
            "differing": 0,
        }
        total = Tally()
        reader = LogitsReader([task.logits], self.spec, self.max_unique, self.made_as)
        fresh = cache_logits.captured(teacher, chosen, self.cached, self.teacher_hash)
        for number, (count, _), (batch, drawn) in zip(task.passes, chosen, fresh, strict=True):
            first = number * self.cached.forward_rows
            try:
                rows = [row for _, row in reader.read([(0, first + row) for row in range(count)])]
            except data.errors.UserError as error:
                facts["unreadable"] = str(error)
                continue
            targets = batch["loss_mask"][:count].sum(axis=1).tolist()
            if [len(row.unique) for row in rows] != targets:
                facts["unreadable"] = (
                    f"rows from {first} of {task.logits} have other numbers of targets than the packed rows"
                )
                continue
            facts["redrawn"] += sum(targets)
            for row, again in zip(rows, drawn, strict=True):
                same = decode([encode(again, self.spec, ranking)], self.spec, ranking)
                facts["differing"] += _differing(row, same)
            kept = _together(rows, self.max_unique)
            kind = cache_logits.kept_kind(self.cached)
            total.add(tally(teacher.model, teacher.backend, batch, kept, kind, self.coin_seed))
            advance(1)
        return ShardOutput(parts={}, facts={**facts, "tally": asdict(total)})


def run(context: Context, config: Config) -> Outcome:
    """Raises UserError if the inputs cannot be compared at all."""
    logits, sequences, teacher = (context.input(name) for name in ("logits", "sequences", "teacher"))
    spec, facts = codec_of(dataset_given(logits)), logits.data.facts
    cached = configs.from_dict(cache_logits.Config, logits.manifest.config, f"{logits.reference}: its config")
    setup = setup_of(context)
    if len(logits.uris()) != len(sequences.uris()):
        raise UserError(
            f"{logits.reference} has {len(logits.uris())} shards and {sequences.reference} has "
            f"{len(sequences.uris())}; give --sequences {facts['sequences_reference']}, on which the logits were "
            "computed"
        )
    work = _Audit(
        cached,
        cache_logits.checked_teacher(teacher, setup, cached.forward_rows, spec.vocab_size),
        setup,
        spec,
        facts["max_unique"],
        facts["teacher_sha256"],
        config.seed,
        facts["made_as"],
    )
    receipts = _run_again(context, config, cached, work)
    checks = [
        *_identities(logits, sequences, teacher, receipts, cached, spec),
        _redraw(receipts, logits.manifest.setup or {}, setup.forward_record()),
        *_honesty(receipts, config, cached),
    ]
    failed = [f"{check['check']}: {check['detail']}" for check in checks if check["passed"] is False]
    positions = sum(receipt.facts["tally"]["positions"] for receipt in receipts)
    table = pa.Table.from_pylist(checks, schema.VERDICT)
    written = shards.write_table(context.directory, "verdict/00000.parquet", table, write=context.changes.write)
    why = f"the cache {logits.reference} is not what it says it is: {'; '.join(failed)}" if failed else ""
    return Outcome(
        datasets={
            "verdict": Dataset(
                shards=(written,), facts={"passed": not failed, "positions": positions, FAILURE: why, "checks": checks}
            )
        },
        tokenizer_sha256=sequences.manifest.tokenizer_sha256,
        setup=setup.forward_record(),
        log={"positions": positions},
    )


def _run_again(context: Context, config: Config, cached: cache_logits.Config, work: "_Audit") -> list[Receipt]:
    """Runs the teacher on a sample of the rows, and on a larger sample if the first one had too few targets."""
    logits, sequences = context.input("logits"), context.input("sequences")
    targets = logits.data.facts["targets"]
    wanted = min(targets, max(config.min_positions, math.ceil(config.fraction * targets)))
    every = sum(_passes(sequences, cached))
    before, margin = 0, MARGIN
    while True:
        tasks = _sample(logits, sequences, cached, config, wanted, margin)
        sizes = [len(task.passes) for task in tasks]
        margin *= 2
        if sum(sizes) == before:
            continue
        phase = f"audit-{sum(sizes)}" if before else "audit"
        receipts = map_shards(
            context,
            phase,
            tasks,
            work,
            whole_node=True,
            setup=work.setup.forward_record(),
            unit="forward pass",
            sizes=sizes,
        )
        before = sum(sizes)
        positions = sum(receipt.facts["tally"]["positions"] for receipt in receipts)
        if positions >= wanted or before >= every or any(receipt.facts["unreadable"] for receipt in receipts):
            return receipts


def _passes(sequences: Input, cached: cache_logits.Config) -> list[int]:
    """The number of forward passes of each shard."""
    return [-(-shard.rows // cached.forward_rows) for shard in sequences.data.shards]


def _sample(
    logits: Input, sequences: Input, cached: cache_logits.Config, config: Config, wanted: int, margin: float
) -> list[_Task]:
    """Forward passes by shard: one of each shard, then more in a seeded order, until there are targets enough.

    Enough are `wanted` targets, times the margin.
    """
    everything = [(shard, number) for shard, count in enumerate(_passes(sequences, cached)) for number in range(count)]
    targets = logits.data.facts["targets"]
    enough = math.ceil(margin * wanted / max(1.0, targets / max(1, len(everything))))
    order = np.random.Generator(np.random.Philox(config.seed)).permutation(len(everything))
    chosen: dict[int, list[int]] = {}
    for place in order.tolist():
        shard, number = everything[place]
        chosen.setdefault(shard, []).append(number)
    first = {shard: numbers[:1] for shard, numbers in chosen.items()}
    further = [everything[place] for place in order.tolist() if everything[place][1] not in first[everything[place][0]]]
    for shard, number in further[: max(0, enough - len(first))]:
        first[shard].append(number)
    files = list(zip(logits.uris(), logits.data.shards, sequences.uris(), strict=True))
    return [
        _Task(
            logits=files[shard][0],
            sha256=files[shard][1].sha256,
            sequences=files[shard][2],
            passes=tuple(sorted(numbers)),
        )
        for shard, numbers in sorted(first.items())
    ]


def _wrong_hashes(batch: dict[str, np.ndarray], count: int) -> int:
    hashes = sequence_hashes(batch["tokens"], batch["segment_ids"], batch["loss_mask"])
    return int((hashes != batch["sequence_hash"])[:count].sum())


def _differing(row: Ragged, again: Ragged) -> int:
    """The number of targets of a row that differ between the cache and the new computation."""
    width = int(max(row.unique.max(initial=1), again.unique.max(initial=1)))
    kept, redrawn = row.padded(width), again.padded(width)
    same = np.ones(len(row.unique), bool)
    for name, values in kept.items():
        same &= (values == redrawn[name]).reshape(len(same), -1).all(axis=1)
    return int((~same).sum())


def _together(rows: Sequence[Ragged], width: int) -> Targets:
    padded = [row.padded(width) for row in rows]
    return {name: np.concatenate([row[name] for row in padded]) for name in padded[0]}


def _check(name: str, passed: bool | None, value: float, limit: float, detail: str) -> dict[str, Any]:
    return {"check": name, "passed": passed, "value": float(value), "limit": float(limit), "detail": detail}


def _identities(
    logits: Input,
    sequences: Input,
    teacher: Input,
    receipts: Sequence[Receipt],
    cached: cache_logits.Config,
    spec: CodecSpec,
) -> list[dict[str, Any]]:
    """(a) Whether the cache names these weights, this tokenizer and these rows as its own, and holds these rows."""
    facts = logits.data.facts

    def equal(name: str, recorded: Any, actual: Any, owner: str) -> dict[str, Any]:
        detail = f"the cache says {recorded}, {owner} has {actual}"
        return _check(name, recorded == actual, float(recorded != actual), 0, detail)

    bad_rows, bad_files = (sum(receipt.facts[name] for receipt in receipts) for name in ("wrong_rows", "wrong_files"))
    unreadable = next((receipt.facts["unreadable"] for receipt in receipts if receipt.facts["unreadable"]), "")
    return [
        equal("weights", facts["teacher_sha256"], receipts[0].facts["teacher_sha256"], teacher.reference),
        equal("tokenizer", logits.manifest.tokenizer_sha256, sequences.manifest.tokenizer_sha256, sequences.reference),
        equal(
            "tokenizer of the teacher",
            logits.manifest.tokenizer_sha256,
            teacher.manifest.tokenizer_sha256,
            teacher.reference,
        ),
        equal("sequences", facts["sequences_content"], sequences.content(), sequences.reference),
        equal("soft cap", facts["final_softcap"], receipts[0].facts["final_softcap"], teacher.reference),
        equal("numbers", spec, cache_logits.kept_kind(cached).codec(spec.vocab_size), "its own config"),
        _check(
            "files",
            bad_files == 0,
            bad_files,
            0,
            f"{bad_files} of {len(receipts)} files are not the bytes of the manifest",
        ),
        _check("rows", bad_rows == 0, bad_rows, 0, f"{bad_rows} rows are not those that their hashes say"),
        _check("readable", not unreadable, float(bool(unreadable)), 0, unreadable or "all rows that were read"),
    ]


def _redraw(receipts: Sequence[Receipt], made_on: Mapping[str, Any], setup: Mapping[str, Any]) -> dict[str, Any]:
    """(b) Whether the same targets come out again, on the device that the cache was made on."""
    redrawn, differing = (sum(receipt.facts[name] for receipt in receipts) for name in ("redrawn", "differing"))
    if made_on != setup:
        theirs, ours = (" ".join(map(str, place.values())) for place in (made_on, setup))
        return _check(
            "made again",
            None,
            differing,
            0,
            f"made on {theirs}, audited on {ours}, which rounds otherwise: {differing} of {redrawn} targets differ",
        )
    return _check("made again", differing == 0, differing, 0, f"{differing} of {redrawn} targets differ")


def _honesty(receipts: Sequence[Receipt], config: Config, cached: cache_logits.Config) -> list[dict[str, Any]]:
    """(c) Whether the cache is an honest estimate of the teacher."""
    total = Tally()
    for receipt in receipts:
        total.add(Tally(**receipt.facts["tally"]))
    limits = Limits(
        alpha=config.alpha,
        log_prob_difference=config.max_log_prob_difference,
        lost_mass=config.max_lost_mass,
    )
    return [
        _check(check.name, check.value <= check.limit, check.value, check.limit, check.detail)
        for check in cache_logits.kept_kind(cached).checks(total, limits)
    ]
