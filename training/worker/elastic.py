"""When a run grows and shrinks with its cluster: Ray's elastic policy, changed so that growth costs no steps.

    nodes come    -> the policy, in the controller, asks for a checkpoint -> workers commit it and wait -> more workers
    a node is lost -> the workers fail -> fewer workers, from the newest committed checkpoint

Ray itself restarts a group that is to grow in the middle of a step. Here the group first commits a checkpoint of that
very step, as for a machine that is about to be taken away. So a growth costs no step, and the loss of a node without
notice costs the steps since the last checkpoint. Allowed sizes share a step's rows evenly, in whole slices. The
controller imports this module: no torch in here.
"""

from __future__ import annotations

import logging
import secrets
import time
from typing import Any

import ray
from ray.train import ScalingConfig

from infra.ray_private import ElasticScalingPolicy, NoopDecision, ResizeDecision, kv_get, kv_put, state
from training.worker.stops import STOP, saved_key

logger = logging.getLogger(__name__)

RESIZE_SECONDS = 60.0
"""Seconds between two decisions about the size, and from a group's start to its first decision."""

SAVE_SECONDS = 300.0
"""Seconds that workers have for the checkpoint before a resize starts them again."""

MISSED_SECONDS = 300.0
"""Seconds before a size that could not be started is tried again, unless a node joins earlier."""

START_SECONDS = "30"
"""Seconds that a group's reservation may take (Ray's default: 60); then a size that is no longer possible is given
up."""


class ElasticPolicy(ElasticScalingPolicy):
    """Ray's policy over a list of sizes, with a checkpoint before a resize.

    It asks the workers through the value of `key` in Ray's key-value store; they answer under `saved_key(key)`.
    """

    def __init__(self, scaling_config: ScalingConfig, sizes: tuple[int, ...], key: bytes) -> None:
        super().__init__(scaling_config)
        self._sizes, self._key = sizes, key
        self._save_seconds, self._missed_seconds = SAVE_SECONDS, MISSED_SECONDS
        self._wanted: ResizeDecision | None = None
        self._asked = (b"", 0.0)
        self._tried: int | None = None
        self._missed: dict[int, tuple[float, set[str]]] = {}

    def make_decision_for_non_running_worker_group(self) -> Any:
        if self._tried is not None:  # asked again, and the group has not run in between
            self._missed[self._tried] = (time.monotonic(), _alive())
        self._wanted, self._tried = None, None
        return self._trying(super().make_decision_for_non_running_worker_group())

    def make_decision_for_running_worker_group(self, worker_group_state: Any, worker_group_status: Any) -> Any:
        self._tried = None
        if self._wanted is not None:
            return self._resize_when_saved(self._wanted)
        decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
        if isinstance(decision, ResizeDecision):
            if kv_get(self._key) == STOP:
                return NoopDecision()
            self._wanted = decision
            self._asked = (secrets.token_hex(8).encode(), time.monotonic())
            kv_put(self._key, self._asked[0])
            return NoopDecision()
        return decision

    def _resize_when_saved(self, wanted: ResizeDecision) -> Any:
        token, since = self._asked
        saved = kv_get(saved_key(self._key)) == token
        if not saved and time.monotonic() - since < self._save_seconds:
            return NoopDecision()
        self._wanted = None
        return self._trying(wanted)

    def _trying(self, decision: Any) -> Any:
        if isinstance(decision, ResizeDecision):
            self._tried = decision.num_workers
        return decision

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        possible = super()._count_possible_workers(reserved_resources)
        return max((size for size in self._sizes if size <= possible and not self._is_missed(size)), default=0)

    def _is_missed(self, size: int) -> bool:
        """whether the size failed lately, with the present nodes, which other runs may use."""
        if size == self._sizes[0] or size not in self._missed:
            return False
        when, nodes = self._missed[size]
        return time.monotonic() - when < self._missed_seconds and _alive() <= nodes

    def _get_reserved_resources(self) -> Any:
        """The present resources of nodes that stay; Ray's own answer may be 20 s old and count nodes that are lost."""
        try:
            reserved = ray.get(
                self._autoscaling_coordinator.get_reserved_resources.remote(self._requester_id, recompute=True),
                timeout=5,
            )
            leaving = state.state.get_draining_nodes()
        except Exception as error:
            logger.warning("no resize for now, since the nodes of the cluster cannot be listed: %s", error)
            return None
        return {node: resources for node, resources in reserved.items() if node not in leaving}


def _alive() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}
