"""How often a run was started again, counted over all controllers that it had: Ray counts within one of them.

    failure policy, in the controller -> one more    driver, after a controller died -> one more failure
                                   \\-> Ray's key-value store <-/

The counts live as long as the driver that runs the job: whoever runs the same line again has looked, and starts anew.
This is imported by the controller: no torch in here.
"""

from __future__ import annotations

import dataclasses
import json

from ray.train import FailureConfig
from ray.train.v2.api.exceptions import TrainingFailedError

from infra.ray_private import DefaultFailurePolicy, FailureDecision, kv_get, kv_put
from training.errors import StoppedError


class UsedUp(StoppedError):
    """The run may not be started again that often; the message says what raises the limit."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """How often the workers are started again; -1: always."""

    failures: int
    """after one of them, or Ray's controller, died"""
    preemptions: int
    """after a machine was taken away"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
    """What has happened to a run so far, under all of its controllers."""

    failures: int = 0
    preemptions: int = 0

    @classmethod
    def read(cls, key: bytes) -> Counts:
        value = kv_get(key)
        return cls() if value is None else cls(**json.loads(value))

    def write(self, key: bytes) -> None:
        kv_put(key, json.dumps(dataclasses.asdict(self)).encode())

    def used_up(self, limits: Limits) -> str:
        """Which limit was passed, and the flag that raises it; empty where none was."""
        for kind in ("failures", "preemptions"):
            count, limit = getattr(self, kind), getattr(limits, kind)
            if -1 < limit < count:
                return (
                    f"{kind} of this run, over all of its controllers: {count}, and --max-{kind} is {limit}; the same "
                    f"line goes on from the newest checkpoint, and with --max-{kind} {max(2 * limit, count)} or more "
                    "it lasts longer (-1: for ever)"
                )
        return ""


class CountedFailures(DefaultFailurePolicy):
    """Ray's policy, with counts that go on where an earlier controller left them under `key`."""

    def __init__(self, failure_config: FailureConfig, key: bytes) -> None:
        super().__init__(failure_config)
        self._key = key

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        before = Counts.read(self._key)
        self._worker_group_failures, self._preemption_failures = before.failures, before.preemptions
        decision = super().make_decision(training_failed_error)
        Counts(failures=self._worker_group_failures, preemptions=self._preemption_failures).write(self._key)
        return decision
