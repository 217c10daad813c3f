"""The training loop: from the newest committed checkpoint to the last step, the same on every device.

    feed -> host batch -> device -> train_step -> (every few steps) values -> (at each interval) checkpoint, in a thread

Steps count from 0 in the code, and from 1 in metrics, lineage and checkpoint names ("after step 100"). The order of
rows is a pure function of the step, so a run that is resumed at step s asks the feed for step s. Values are read from
the device every FETCH_STEPS steps, not at each step: `on_step` is called with steps in order, a little late.
"""

import time
from collections.abc import Callable

import torch

from training.backends.base import Backend
from training.drain import Drain
from training.faults import Drained
from training.feed import Feed
from training.job import TrainJob
from training.log.goodput import Meter
from training.log.run_log import Tell
from training.log.summary import StepMetrics, TrainSummary
from training.run import COMPILED_STEPS, FETCH_STEPS, Run


def run_training(
    job: TrainJob,
    backend: Backend,
    feed: Feed,
    on_step: Callable[[StepMetrics], None] | None = None,
    drain: Drain | None = None,
    tell: Tell | None = None,
) -> TrainSummary:
    """Trains to `job.config.steps` and returns a summary; `on_step` is called with every step, in order.

    `tell` receives the metrics of the run (training/log/metrics.py, by field) every few steps, in the first worker.
    `drain` is asked after every step whether the run stops behind a checkpoint of that step; either every worker has a
    `drain` or no worker has one. Workers exchange host values at most once a step: the answers of their drains, and,
    every few steps, the values that `Run.flush` and `Run.save` need from all workers. Only a step that ends the run, or
    a bad step, needs more exchanges.

    Raises UserError if the newest checkpoint belongs to another config or other data, LeaseLost if the lease was
    lost, `BadStep` and `Corrupted` (both StoppedErrors, training/faults.py) if a step went wrong, and `Drained` if the
    run was asked to stop: then a checkpoint of its last step is committed.
    """
    _use_threads(job.setup.threads)
    meter = Meter()
    with meter.spent("start"):
        run = Run(job, backend, on_step, meter, feed, tell)
    try:
        run.log.begin()
        return _train(run, feed, drain)
    finally:
        run.saver.close()
        run.log.close()


def _train(run: "Run", feed: Feed, drain: Drain | None) -> TrainSummary:
    backend, config, meter = run.backend, run.job.config, run.meter
    began = time.perf_counter()
    warm: float | None = None
    batches = iter(feed(run.first_step, config.steps))
    while True:
        with meter.spent("data_wait"):
            item = next(batches, None)
        if item is None:
            break
        step, batch = item
        assert step == run.step, f"the feed gave step {step} for step {run.step}"
        run.train(batch)
        run.saver.check()
        compiled = run.step - run.first_step == COMPILED_STEPS
        regular = run.step % config.checkpoint_every_steps == 0 or run.step == config.steps
        reads = regular or compiled or run.step % FETCH_STEPS == 0
        asked = drain if run.step < config.steps else None
        everyone = run.exchange(reads=reads, saves=regular, ends=asked.own() if asked is not None else ())
        if reads:
            run.flush(everyone)
        if compiled:
            warm = time.perf_counter()
        if regular:
            run.save(everyone)
        elif run.step % FETCH_STEPS == 0:
            run.log.summarize(run.step)
        if asked is not None and asked.agreed([message.ends for message in everyone]):
            if not regular:
                everyone = run.exchange(reads=True, saves=True)
                run.flush(everyone)
                run.save(everyone, interim=True)
            with meter.spent("save"):
                run.saver.wait()
            run.log.event("drained", step=run.step)
            run.log.summarize(run.step, checkpoint=True)
            raise Drained(
                f"asked to stop after step {run.step}; its checkpoint is committed: the same line resumes the run there"
            )
    if run.step != config.steps:
        raise RuntimeError(f"the feed ended after step {run.step} of {config.steps}")
    with meter.spent("save"):
        run.saver.wait()
    run.log.summarize(run.step, checkpoint=True)
    ended = time.perf_counter()
    timed = config.steps - run.first_step - COMPILED_STEPS
    return TrainSummary(
        checkpoint_uri=run.checkpoint_uri,
        first_step=run.first_step,
        steps=run.step,
        tokens_seen=run.tokens_seen,
        loss=run.last_metrics.loss if run.last_metrics else None,
        device=backend.abilities.device,
        workers=backend.world_size,
        compiles=backend.compiles(),
        loop_seconds=ended - began,
        steps_per_second=timed / (ended - warm) if warm is not None and timed > 0 else 0.0,
        metrics=dict(run.log.summary),
    )


def _use_threads(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
