"""From a job to its batches: the order, readers and logits of one worker, put together without Ray.

`direct_feed` reads in the worker, in a thread beside the step. The feed through Ray Data (training/worker/) maps the
same loader.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from data.loader import LogitsReader, SequenceReader, StepLoader
from data.loader import direct_feed as read_steps
from data.order import Order
from training.distill.kinds import kind_of
from training.job import TrainJob

HostBatch = Mapping[str, np.ndarray]

Feed = Callable[[int, int], Iterable[tuple[int, HostBatch]]]
"""(start_step, stop_step) -> this worker's (step, batch), in order."""


def make_loader(job: TrainJob, rank: int = 0, world_size: int = 1) -> StepLoader:
    """The loader of one worker's part of every step."""
    datasets = [dataset for dataset, _ in job.sequences]
    order = Order(datasets, job.phases, job.config.global_batch, job.order_seed)
    readers = [SequenceReader(shards, dataset.row_group_rows, job.vocab_size) for dataset, shards in job.sequences]
    logits_readers = None
    if job.config.objective == "distill":
        assert job.logits is not None
        assert job.codec is not None
        made_as = job.logits_made_as or (None,) * len(job.logits)
        logits_readers = [
            LogitsReader(shards, job.codec, job.max_unique, made, kind_of(job.codec.estimator).padding)
            for shards, made in zip(job.logits, made_as, strict=True)
        ]
    return StepLoader(order, readers, logits_readers, rank=rank, world_size=world_size)


def direct_feed(job: TrainJob, rank: int = 0, world_size: int = 1) -> Feed:
    """The feed that reads ahead in a thread of the worker itself."""

    def feed(start_step: int, stop_step: int) -> Iterator[tuple[int, HostBatch]]:
        return iter(read_steps(make_loader(job, rank, world_size), start_step, stop_step))

    return feed
