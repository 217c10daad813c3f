"""Trains a Gemma 2 on packed rows under Ray Train: next tokens, or a teacher's cached distribution.

`data/order.py` decides the rows, their order and the mixture. A run that was killed is resumed from its newest
committed checkpoint and repeats the same losses bit for bit. One driver at a time holds the run's lease.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data import storage
from data.absent import absent
from data.manifest import Dataset, read_manifest
from infra.chips import gpu_peaks
from pipelines.account.costs import TrainingCost
from pipelines.checkpoints.card_sections import trained_weights
from pipelines.checkpoints.loaded import CHECKPOINTS, checkpoint_of, committed_files, dataset_given, training_inputs
from pipelines.engine.declaration import Declaration, Places
from pipelines.engine.inputs import Input, Read
from pipelines.engine.placement import chip_flops_of, place, tpu_of_cluster
from pipelines.engine.stage import Context, Outcome
from pipelines.fit.programs import TRAINING_STEP
from pipelines.report.kinds import TrainingReport
from training.checkpoints.records import latest_checkpoint, read_commit
from training.checkpoints.setups import read_setups
from training.config import TrainingConfig
from training.job import TrainJob
from training.log.run_log import held_seconds
from training.make_job import make_job
from training.mixture import epochs_by_phase, parse_phase, phases_of, source_of
from training.setup import Setup
from training.worker.sizes import allowed_workers

if TYPE_CHECKING:
    from training.log.summary import StepMetrics

VERSION = 4
READS = {
    "sequences": Read(help="packed rows, one dataset for each source", dataset="sequences", many=True),
    "logits": Read(
        help="the teacher's cached logits, one dataset for each of --sequences, for objective distill",
        dataset="logits",
        many=True,
        optional=True,
    ),
    "initial": Read(
        help="checkpoint whose weights the run starts from, instead of weights drawn from the seed",
        dataset="checkpoints",
        optional=True,
    ),
    "from": Read(
        help="checkpoint to carry on from (REF@step), with its weights, moments, step and place in the order",
        dataset="checkpoints",
        optional=True,
    ),
}
LOGS = "logs"
"""Folder of the logs with clock times, beside the manifest; the manifest does not list it."""
WRITES = ("checkpoints", "metrics", "lineage")
DECLARES = Declaration(
    lease=True,
    places=Places(several_hosts=True),
    cost=TrainingCost(),
    report=TrainingReport(),
    card=trained_weights,
    programs=(TRAINING_STEP,),
)


@dataclass(frozen=True, kw_only=True)
class Config(TrainingConfig):
    """Model, objective, steps, optimizer, and the mixture of several sources."""

    mixture: tuple[str, ...] = absent(())
    """Weights of the sources from a step on, as "STEP:source=weight,source=weight"; empty: in proportion to the
    sources' rows, or, with --from, the phases of the earlier run, whose phases before the checkpoint's step stay in any
    case."""
    order_seed: int = 0
    """Seed of the order of row groups in epochs after the first."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for phase in self.mixture:
            parse_phase(phase)

    @property
    def training(self) -> TrainingConfig:
        """The part that workers receive."""
        return TrainingConfig(**{name: getattr(self, name) for name in TrainingConfig.__dataclass_fields__})


def run(context: Context, config: Config) -> Outcome:
    """Raises UserError if the inputs do not fit each other, the model or the config."""
    placement = place(context.resources)
    job = job_of(context, config, placement.setup)
    hosts = placement.tpu.hosts if placement.tpu else 1
    allowed_workers(job, placement.fewest_workers, hosts)  # refuse before Ray starts
    context.session.start()
    import ray

    from training.faults import Drained  # imports torch
    from training.worker.driver import train_under_ray  # imports Ray Train: only if there is something to train

    nodes = ray.nodes()
    tpu = tpu_of_cluster(placement, nodes)
    job = dataclasses.replace(job, chip_flops=chip_flops_of(placement, nodes))
    done = _steps_before(job)
    with context.progress(config.steps, "step", before=done) as advance:

        def on_progress(metrics: "StepMetrics") -> None:
            nonlocal done
            advance(metrics.step - done, f"loss {metrics.loss:.3f}, {metrics.tokens_seen:,} targets")
            done = metrics.step

        try:
            summary = train_under_ray(
                job,
                tpu=tpu,
                max_failures=context.resources.max_failures,
                max_preemptions=context.resources.max_preemptions,
                fewest_workers=placement.fewest_workers,
                on_progress=on_progress,
                warm=context.session.warm_process(),
            )
        except Drained as drained:  # stopped by a signal, which is no failure of the run
            raise KeyboardInterrupt(str(drained)) from drained
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
        said="" if summary.loss is None else f"loss {summary.loss:.3f} nats/target",
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
    """Steps that are done in the run's newest checkpoint, or else in the checkpoint that it carries on from."""
    uri = latest_checkpoint(job.checkpoints_uri) or job.carried_uri
    commit = None if uri is None else read_commit(uri)
    return 0 if commit is None else int(commit["step"])


def _setup(directory: str) -> dict[str, Any]:
    """Device, workers and threads of the last steps, and under `from_step` every set-up of a run that had several."""
    setups = read_setups(storage.join(directory, CHECKPOINTS))
    return {**setups[-1][1], "from_step": {str(after): setup for after, setup in setups}}


def job_of(context: Context, config: Config, setup: Setup) -> TrainJob:
    """The job for the workers. Raises UserError if the inputs do not fit each other."""
    resources = context.resources
    job = make_job(
        config.training,
        training_inputs(context.inputs),
        checkpoints_uri=storage.join(context.directory, CHECKPOINTS),
        setup=setup,
        mixture=config.mixture,
        order_seed=config.order_seed,
    )
    return dataclasses.replace(
        job,
        gpu_flops=gpu_peaks(),
        feed=resources.feed,
        on_bad_step=resources.on_bad_step,
        logs_uri=storage.join(context.directory, LOGS),
        tensorboard=resources.tensorboard,
        changes=context.changes if context.lease else None,
    )


def plan_notes(config: Config, inputs: Mapping[str, Sequence[Input]]) -> Iterator[str]:
    """How often each phase goes through each source; `plan` prints it once the sequences are there."""
    needed = [*inputs["sequences"], *inputs.get("from", ())]
    if any(read_manifest(entry.directory) is None for entry in needed):
        return
    sources = [source_of(dataset_given(entry)) for entry in inputs["sequences"]]
    carried = inputs.get("from", ())
    phases = phases_of(config.mixture, sources, checkpoint_of(carried[0]) if carried else None)
    yield from epochs_by_phase(
        phases, sources, steps=config.steps, global_batch=config.global_batch, order_seed=config.order_seed
    )
