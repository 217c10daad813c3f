"""Restart after the death of Ray Train's controller, which Ray Train does not survive: the driver starts a new one.

    trainer.fit() -> ActorDiedError -> orphans ended -> the next trainer goes on from the newest committed checkpoint

Ray kills the workers of a dead controller (0.1 s after it, on one machine), but its placement groups stay, with all
that they reserve. Two groups of workers on one run would be two writers: a new controller is started only after every
process of the old one has ended on each node that is alive.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorDiedError
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from infra.ray_private import PlacementGroupTableData, get_or_create_autoscaling_coordinator, state
from training.errors import StoppedError
from training.worker.budgets import Counts, Limits, UsedUp

logger = logging.getLogger(__name__)

ORPHANS_SECONDS = 60.0
"""Seconds that workers may take to end after their controller died."""


def train_through_restarts(make_trainer: Callable[[int], DataParallelTrainer], limits: Limits, key: bytes) -> Any:
    """Returns what the workers returned. `make_trainer` is called with the number of controllers that died so far.

    Each death counts as a failure under `key`, in addition to the failures that controllers count (`budgets.py`).
    Raises UsedUp if that exceeds the limit, StoppedError if workers of a dead controller do not end. A controller that
    only cannot be reached for a moment is not replaced: it may still have its workers.
    """
    deaths = 0
    while True:
        trainer = make_trainer(deaths)
        try:
            return trainer.fit().return_value
        except ActorDiedError as error:
            if state.actors().get(error.actor_id, {}).get("ActorClassName") != "TrainController":
                raise
            deaths += 1
            counts = Counts.read(key)
            counts = dataclasses.replace(counts, failures=counts.failures + 1)
            counts.write(key)
            end_orphans(error.actor_id)  # other runs need its reservations, too
            _cancel_request(trainer)
            if reason := counts.used_up(limits):
                raise UsedUp(f"Ray Train's controller died; {reason}") from error
            logger.warning("Ray Train's controller died; the run goes on under a new one")


def end_orphans(controller_id: str) -> None:
    """Removes the reservations of a dead controller, and waits until the processes of its actors have ended.

    Raises StoppedError if they have not ended after ORPHANS_SECONDS.
    """
    for data in state.state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(data)
        if group.creator_actor_id.hex() == controller_id:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))
    deadline = time.monotonic() + ORPHANS_SECONDS
    while left := _orphans(controller_id):
        if time.monotonic() > deadline:
            raise StoppedError(
                f"{len(left)} workers of a dead controller still run ({', '.join(left)}), and a run may have only one "
                "writer; end these workers, then run the same line again"
            )
        time.sleep(0.1)


def _orphans(controller_id: str) -> list[str]:
    """Each process that the controller started and that still runs, as "pid 123 on 10.0.0.2"."""
    actors = state.actors()
    home = actors[controller_id]["Address"]
    nodes: dict[str, list[Mapping[str, Any]]] = {}
    for actor in actors.values():
        if actor["OwnerAddress"] == home and not actor["IsDetached"] and actor["Pid"]:
            nodes.setdefault(actor["Address"]["NodeID"], []).append(actor)
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    asked = {}
    for node_id in nodes.keys() & alive:
        there = ray.remote(num_cpus=0)(_running).options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)
        )
        asked[node_id] = there.remote([actor["Pid"] for actor in nodes[node_id]])
    orphans = []
    for node_id, pids in asked.items():
        try:
            running = ray.get(pids, timeout=ORPHANS_SECONDS)
        except ray.exceptions.RayError:  # the node was lost just now: the next look shows that
            running = []
        orphans += [f"pid {pid} on {nodes[node_id][0]['Address']['IPAddress']}" for pid in running]
    return orphans


def _running(pids: list[int]) -> list[int]:
    """The ids among `pids` that are Ray's processes on this machine; another process may have taken over an id."""
    running = []
    for pid in pids:
        try:
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::"):
                running.append(pid)
        except OSError:
            continue
    return running


def _cancel_request(trainer: DataParallelTrainer) -> None:
    """Cancels the run's request for nodes, which would keep the nodes from the next controller for three minutes."""
    ray.get(get_or_create_autoscaling_coordinator().cancel_request.remote(f"train-{trainer.train_run_context.run_id}"))
