"""A run of one worker in the warm process of an embedded Ray (infra/warm_process.py), without Ray Train.

Ray Train starts a controller and a worker for each run, and the worker imports torch again. With one worker on one
machine there is nothing to place, to join or to resize. What remains is to start again after a failure, which this
module does.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import ray

from training.worker.budgets import Counts, Limits, UsedUp
from training.worker.on_worker import Group, train_in_group

if TYPE_CHECKING:
    from training.job import TrainJob

logger = logging.getLogger(__name__)

LONGEST_PAUSE_SECONDS = 30.0
"""Longest pause before another try, in seconds; the first pause is one second, and each next pause is twice as long."""


class Process(Protocol):
    """The methods of the warm process that are used here."""

    def run(self, function: Callable[..., Any], *arguments: Any, kind: str = "") -> Any: ...
    def forget(self) -> None: ...
    def close(self) -> None: ...


def train_in_warm_process(
    process: Process, job: TrainJob, config: Mapping[str, Any], limits: Limits, counts_key: bytes
) -> bytes:
    """Returns what `train_in_group` returns. After a failure a new process resumes from the newest checkpoint.

    Raises UsedUp if processes died more often than `limits` allow, and the worker's own error, with its traceback as a
    note, if the worker failed more often than that.
    """
    mesh = job.setup.mesh.text if job.setup.mesh is not None else ""
    while True:
        try:
            outcome: bytes = process.run(train_in_group, config, Group(), kind=mesh)
        except ray.exceptions.RayError as error:
            process.close()  # the next try must not start from what an error left in it
            counts = Counts.read(counts_key)
            counts = dataclasses.replace(counts, failures=counts.failures + 1)
            counts.write(counts_key)
            reason = counts.used_up(limits)
            if isinstance(error, ray.exceptions.RayTaskError):
                failure = error.cause if isinstance(error.cause, BaseException) else error
                if reason:
                    failure.add_note(f"a training worker failed:\n{error}")
                    raise failure from error
                problem = f"failed ({type(failure).__name__}: {failure})"
            else:  # the process was killed, perhaps by the memory monitor
                if reason:
                    raise UsedUp(f"a training worker died; {reason}") from error
                problem = "died"
            logger.warning("the training worker %s; the run goes on in a new process", problem)
            time.sleep(min(2.0 ** min(counts.failures - 1, 10), LONGEST_PAUSE_SECONDS))
        else:
            process.forget()
            return outcome
