"""Trains a Gemma 2 on packed rows under Ray Train: next tokens, or a teacher's cached distribution.

Rows, their order and the mixture are `data/order.py`'s; a run that was killed goes on from its newest committed
checkpoint and repeats the same losses bit for bit. One driver at a time holds the run's lease.
"""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data import storage
from data.logits import CodecSpec
from data.manifest import Dataset, read_manifest
from data.order import MixturePhase, Order, SequenceDataset
from infra.chips import gpu_peaks
from pipelines.checkpoints.loaded import CHECKPOINTS, check_same_tokenizer, checkpoint_of, codec_of, committed_files
from pipelines.engine.errors import UserError
from pipelines.engine.inputs import Input, Read
from pipelines.engine.placement import (
    chip_flops_of,
    fewest_workers_of,
    mesh_of,
    tpu_of_cluster,
    tpu_slices,
    workers_of,
)
from pipelines.engine.stage import Context, Outcome, StoppedError
from training.checkpoints.records import STATE_NAME, latest_checkpoint, read_commit
from training.checkpoints.save_load import check_same_model
from training.checkpoints.setups import read_setups
from training.config import DistillConfig, TrainingConfig
from training.job import TrainJob
from training.log.run_log import held_seconds
from training.worker.sizes import allowed_workers

if TYPE_CHECKING:
    from training.log.summary import StepReport

VERSION = 3
READS = {
    "sequences": Read(help="packed rows, one dataset a source", dataset="sequences", many=True),
    "logits": Read(
        help="the teacher's cached logits of each of them, for distill", dataset="logits", many=True, optional=True
    ),
    "initial": Read(
        help="checkpoint whose weights to start from, instead of weights drawn from the seed",
        dataset="checkpoints",
        optional=True,
    ),
    "from": Read(
        help="checkpoint to carry on from (REF@step): its weights, moments, step and place in the order",
        dataset="checkpoints",
        optional=True,
    ),
}
LOGS = "logs"
"""folder of what has clock times, beside the manifest and not in it"""
WRITES = ("checkpoints", "metrics", "lineage")


@dataclass(frozen=True, kw_only=True)
class Config(TrainingConfig):
    """Model, objective, steps, optimizer, and the mixture of several sources."""

    mixture: tuple[str, ...] = ()
    """weights of the sources from a step on, as "STEP:source=weight,source=weight"; empty: in proportion to their
    rows, or as in the run that is carried on, whose phases before its step stay in any case"""
    order_seed: int = 0
    """of the order of row groups in epochs after the first"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for phase in self.mixture:
            parse_phase(phase)


def parse_phase(text: str) -> MixturePhase:
    """ "0:web=0.7,code=0.3" as a phase. Raises UserError for anything else."""
    if not re.fullmatch(r"\d+:[^=,:]+=[0-9.eE+-]+(,[^=,:]+=[0-9.eE+-]+)*", text):
        raise UserError(f"mixture phase {text!r} is not STEP:source=weight,... as in '0:web=0.7,code=0.3'")
    step, _, weights = text.partition(":")
    pairs = [pair.partition("=") for pair in weights.split(",")]
    return MixturePhase(start_step=int(step), weights=tuple((name, float(weight)) for name, _, weight in pairs))


def run(context: Context, config: Config) -> Outcome:
    """Raises UserError where inputs do not fit each other, the model or the config."""
    place = tpu_slices(context.resources)
    job = make_job(context, config)
    fewest = fewest_workers_of(context.resources)
    allowed_workers(job, fewest, place.hosts if place else 1)  # refuse before Ray starts
    context.session.start()
    import ray

    from training.faults import BadStep, Corrupted, Drained  # imports torch
    from training.worker.budgets import UsedUp
    from training.worker.driver import train_under_ray  # imports Ray Train: only where there is something to train

    place = tpu_of_cluster(context.resources, ray.nodes())
    job = dataclasses.replace(job, chip_flops=chip_flops_of(context.resources, ray.nodes()), gpu_flops=gpu_peaks())
    done = _steps_before(job)
    with context.progress(config.steps, "step", before=done) as advance:

        def on_progress(report: "StepReport") -> None:
            nonlocal done
            advance(report.step - done, f"loss {report.loss:.3f}, {report.tokens_seen:,} targets")
            done = report.step

        try:
            summary = train_under_ray(
                job,
                tpu=place,
                max_failures=context.resources.max_failures,
                max_preemptions=context.resources.max_preemptions,
                fewest_workers=fewest,
                on_progress=on_progress,
            )
        except Drained as drained:  # by a signal: no failure of the run
            raise KeyboardInterrupt(str(drained)) from drained
        except (BadStep, Corrupted, UsedUp) as error:
            raise StoppedError(str(error)) from error
    context.chip_seconds.update(held_seconds(storage.join(context.directory, LOGS)))
    datasets, steps = committed_files(context.directory)
    return Outcome(
        datasets={
            "checkpoints": Dataset(
                shards=datasets["checkpoints"], facts={"steps": steps, "vocab_size": job.vocab_size, "draws": job.draws}
            ),
            "metrics": Dataset(shards=datasets["metrics"]),
            "lineage": Dataset(shards=datasets["lineage"]),
        },
        tokenizer_sha256=context.inputs["sequences"][0].manifest.tokenizer_sha256,
        setup=_setup(context.directory),
        log={
            "tokens_seen": summary.tokens_seen,
            "first_step": summary.first_step,
            "steps": summary.steps,
            "steps_per_second": summary.steps_per_second,
            "loop_seconds": summary.loop_seconds,
            "compiles": summary.compiles,
            "row_tokens_per_second": summary.steps_per_second * config.global_batch * job.sequence_length,
            "metrics": dict(summary.metrics),
        },
    )


def _steps_before(job: TrainJob) -> int:
    """Steps that the newest checkpoint of the run has, or else the one that it carries on from."""
    uri = latest_checkpoint(job.checkpoints_uri) or job.carried_uri
    commit = None if uri is None else read_commit(uri)
    return 0 if commit is None else int(commit["step"])


def _setup(directory: str) -> dict[str, Any]:
    """Device, workers and threads of the last steps; under `from_step` of all: a resumed run may have had several."""
    found = read_setups(storage.join(directory, CHECKPOINTS))
    return {**found[-1][1], "from_step": {str(after): setup for after, setup in found}}


def make_job(context: Context, config: Config) -> TrainJob:
    """All that the workers need. Raises UserError where the inputs do not fit each other."""
    sequences, logits = context.inputs["sequences"], context.inputs.get("logits", [])
    facts = [one.data.facts for one in sequences]
    for name in ("sequence_length", "vocab_size"):
        if len({fact[name] for fact in facts}) > 1:
            values = ", ".join(f"{one.reference} has {fact[name]}" for one, fact in zip(sequences, facts, strict=True))
            raise UserError(f"sequences of different {name} cannot be mixed: {values}; pack them alike")
    if len({one.manifest.tokenizer_sha256 for one in sequences}) > 1:
        values = ", ".join(f"{one.reference} by {one.manifest.tokenizer_sha256}" for one in sequences)
        raise UserError(f"sequences of different tokenizers cannot be mixed: {values}; tokenize them with one")
    if config.objective == "next_token" and logits:
        raise UserError("objective 'next_token' takes no logits; leave --logits out, or set --objective distill")
    checked = [check_logits(one, cached) for one, cached in zip(sequences, logits, strict=False)]
    if len({spec for spec, _ in checked}) > 1:
        values = ", ".join(f"{one.reference} is {spec}" for one, (spec, _) in zip(logits, checked, strict=True))
        raise UserError(f"logits of different kinds cannot be mixed: {values}; cache them alike")
    if checked and checked[0][0].estimator != "topk" and config.distill.tail != DistillConfig().tail:
        raise UserError(
            f"distill.tail {config.distill.tail!r} is about the mass outside of a top-k, and {logits[0].reference} "
            f"holds estimator {checked[0][0].estimator!r}; leave it out"
        )
    initial, carried = context.inputs.get("initial", []), context.inputs.get("from", [])
    if initial and carried:
        raise UserError(
            "--initial starts a run from weights, --from carries one on with its moments; give one of the two"
        )
    for one in [*initial, *carried]:
        check_same_tokenizer(one, sequences[0])
        check_same_model(checkpoint_of(one), config.model)
    datasets = tuple(_dataset(one) for one in sequences)
    lease = context.lease
    return TrainJob(
        config=TrainingConfig(**{name: getattr(config, name) for name in TrainingConfig.__dataclass_fields__}),
        checkpoints_uri=storage.join(context.directory, CHECKPOINTS),
        sequences=tuple((dataset, tuple(one.uris())) for dataset, one in zip(datasets, sequences, strict=True)),
        phases=_phases(config, datasets, checkpoint_of(carried[0]) if carried else None),
        order_seed=config.order_seed,
        sequence_length=facts[0]["sequence_length"],
        vocab_size=facts[0]["vocab_size"],
        logits=tuple(tuple(one.uris()) for one in logits) if logits else None,
        codec=checked[0][0] if checked else None,
        logits_made_as=tuple(one.data.facts["made_as"] for one in logits) if logits else None,
        max_unique=max(unique for _, unique in checked) if checked else None,
        input_fingerprints={one.reference: one.content() for one in [*sequences, *logits, *initial, *carried]},
        initial_uri=checkpoint_of(initial[0]) if initial else None,
        carried_uri=checkpoint_of(carried[0]) if carried else None,
        device=context.resources.device,
        workers=workers_of(context.resources),
        mesh=mesh_of(context.resources),
        microbatch_rows=context.resources.microbatch_rows,
        remat=context.resources.remat,
        feed=context.resources.feed,
        on_bad_step=context.resources.on_bad_step,
        logs_uri=storage.join(context.directory, LOGS),
        tensorboard=context.resources.tensorboard,
        lease_uri=lease.uri if lease else None,
        lease_token=lease.token if lease else None,
    )


def plan_notes(config: Config, inputs: Mapping[str, Sequence[Input]]) -> Iterator[str]:
    """How often each phase goes through each source: told by `plan` once the sequences are there."""
    sequences = inputs["sequences"]
    if any(read_manifest(one.directory) is None for one in sequences):
        return
    datasets = tuple(_dataset(one) for one in sequences)
    carried = inputs.get("from", ())
    if any(read_manifest(one.directory) is None for one in carried):
        return
    phases = _phases(config, datasets, checkpoint_of(carried[0]) if carried else None)
    order = Order(datasets, phases, config.global_batch, config.order_seed)
    starts = [phase.start_step for phase in phases if phase.start_step < config.steps]
    for start, end in zip(starts, [*starts[1:], config.steps], strict=True):
        used = zip(datasets, order.rows_used(start), order.rows_used(end), strict=True)
        shares = (
            f"{one.name} {after - before:,} rows, {after / one.rows:.2f} epochs so far"
            if one.rows
            else f"{one.name} empty"
            for one, before, after in used
        )
        yield f"steps {start:,} to {end:,}: {'; '.join(shares)}"


def _dataset(sequences: Input) -> SequenceDataset:
    facts = sequences.data.facts
    return SequenceDataset(
        name=facts["source"],
        shard_rows=tuple(shard.rows for shard in sequences.data.shards),
        row_group_rows=facts["row_group_rows"],
    )


def check_logits(sequences: Input, logits: Input) -> tuple[CodecSpec, int]:
    """What cached logits are, and the most ids at one target.

    Raises UserError, naming both, where they were computed on other rows or with another vocabulary.
    """
    facts = logits.data.facts
    check_same_tokenizer(sequences, logits)
    if facts["sequences_content"] != sequences.content():
        raise UserError(
            f"{logits.reference} was computed on {facts['sequences_reference']} ({facts['sequences_content']}), not on "
            f"{sequences.reference} ({sequences.content()}); run cache_logits on the latter, or train on the former"
        )
    spec = codec_of(logits)
    if spec.vocab_size != sequences.data.facts["vocab_size"]:
        raise UserError(
            f"{logits.reference} is of {spec.vocab_size} ids, {sequences.reference} of "
            f"{sequences.data.facts['vocab_size']}; run cache_logits on these sequences"
        )
    return spec, facts["max_unique"]


def _phases(
    config: Config, datasets: tuple[SequenceDataset, ...], carried_uri: str | None = None
) -> tuple[MixturePhase, ...]:
    names = [dataset.name for dataset in datasets]
    if len(set(names)) < len(names):
        raise UserError(f"two sequences of one source ({', '.join(names)}); collect them with different --source names")
    given = tuple(parse_phase(text) for text in config.mixture)
    if carried_uri is not None:
        return _carried_phases(carried_uri, given)
    if given:
        return given
    return (MixturePhase(start_step=0, weights=tuple((one.name, float(sum(one.shard_rows))) for one in datasets)),)


def _carried_phases(uri: str, given: tuple[MixturePhase, ...]) -> tuple[MixturePhase, ...]:
    """The phases of the run that is carried on, up to its step, and the given ones."""
    state = json.loads(storage.read_bytes(storage.join(uri, STATE_NAME)))
    step = state["step"]
    before = tuple(
        MixturePhase(start_step=phase["start_step"], weights=tuple((name, weight) for name, weight in phase["weights"]))
        for phase in state["identity"]["phases"]
    )
    if not given:
        return before
    if early := [phase.start_step for phase in given if phase.start_step < step]:
        raise UserError(
            f"mixture phases start at {early} and the run carried on has done {step} steps; steps count from the start "
            f"of that run: start new phases at {step} or later"
        )
    return (*(phase for phase in before if phase.start_step < step), *given)
