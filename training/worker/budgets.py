"""How often a run was started again, counted over all of its controllers; Ray counts within one controller.

    failure policy, in the controller -> one more    driver, after a controller died -> one more failure
                                   \\-> Ray's key-value store <-/

The counts live as long as the driver that runs the job: a person who runs the same line again starts with new counts.
The controller imports this module: no torch in here.
"""

from __future__ import annotations

import dataclasses
import json

from ray.train import FailureConfig
from ray.train.v2.api.exceptions import TrainingFailedError

from infra.ray_private import DefaultFailurePolicy, FailureDecision, kv_get, kv_put
from training.errors import StoppedError


class UsedUp(StoppedError):
    """The run was started again as often as its limits allow; the message names the flag that raises the limit."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """How often the workers may be started again; -1: without limit."""

    failures: int
    """Limit on failures: a worker, or Ray's controller, died."""
    preemptions: int
    """Limit on preemptions: a machine was taken away."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
    """Failures and preemptions of a run so far, under all of its controllers."""

    failures: int = 0
    preemptions: int = 0

    @classmethod
    def read(cls, key: bytes) -> Counts:
        value = kv_get(key)
        return cls() if value is None else cls(**json.loads(value))

    def write(self, key: bytes) -> None:
        kv_put(key, json.dumps(dataclasses.asdict(self)).encode())

    def used_up(self, limits: Limits) -> str:
        """A message with the limit that was exceeded and the flag that raises it; empty if no limit was exceeded."""
        for kind in ("failures", "preemptions"):
            count, limit = getattr(self, kind), getattr(limits, kind)
            if -1 < limit < count:
                return (
                    f"{kind} of this run, over all of its controllers: {count}, and --max-{kind} is {limit}; run the "
                    "same "
                    f"line again to resume from the newest checkpoint, with --max-{kind} {max(2 * limit, count)} or "
                    "more to allow more of them (-1: no limit)"
                )
        return ""


class CountedFailures(DefaultFailurePolicy):
    """Ray's policy, with counts that start from those that an earlier controller left under `key`."""

    def __init__(self, failure_config: FailureConfig, key: bytes) -> None:
        super().__init__(failure_config)
        self._key = key

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        before = Counts.read(self._key)
        self._worker_group_failures, self._preemption_failures = before.failures, before.preemptions
        decision = super().make_decision(training_failed_error)
        Counts(failures=self._worker_group_failures, preemptions=self._preemption_failures).write(self._key)
        return decision
