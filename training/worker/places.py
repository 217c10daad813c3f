"""The places of workers on TPU slices, and the environment of each: arithmetic on nodes and labels, without Ray."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from training.errors import UserError

SLICE_NAME, WORKER_ID, POD_TYPE = "ray.io/tpu-slice-name", "ray.io/tpu-worker-id", "ray.io/tpu-pod-type"
TOPOLOGY = "ray.io/tpu-topology"
"""Labels of a node that is a host of a TPU slice; Ray sets them if it starts on such a host."""

MEGASCALE_PORT = "8081"
"""Port on which the coordinator of several slices listens."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TpuSlices:
    """The TPU slices that a run needs: equal slices, with one worker on each host."""

    chips_per_host: int
    hosts: int = 1
    """Hosts of one slice."""
    topology: str = ""
    """Chips along each side of one slice, as in 4x4; empty for a slice of one host."""
    accelerator_type: str = ""
    """Ray's name of the chips, as in TPU-V5LITEPOD; empty for a slice of one host."""
    pod_type: str = ""
    """Type of the slice in a node's label, as in v5litepod-16; empty for a slice of one host."""
    slices: int = 1
    """Number of slices, which are data replicas joined by the data-centre network."""

    @property
    def workers(self) -> int:
        return self.hosts * self.slices


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """The place of a worker."""

    address: str
    """Address of its node."""
    slice_name: str | None = None
    worker_id: str | None = None
    """Id of the worker in its slice; `slice_name` and `worker_id` are None on a machine that is no host of such a
    slice."""


def xla_environments(device: str, places: Sequence[Place], slices: int = 1) -> list[dict[str, str]]:
    """The environment of each worker, by rank.

    Raises UserError unless there is exactly one worker on each host of `slices` whole slices.
    """
    if device == "CPU":
        return [{"PJRT_DEVICE": "CPU"}] * len(places)
    if len(places) == 1:
        return [{"PJRT_DEVICE": device}]
    names = sorted({place.slice_name or "" for place in places})
    if len(names) != slices or (slices > 1 and "" in names):
        raise UserError(
            f"the workers are on the slices {', '.join(name or 'without a name' for name in names)}, and the run needs "
            f"{slices}; start Ray on each host of a slice, so that its nodes have the label {SLICE_NAME}"
        )
    hosts = {name: _hosts(name, [place for place in places if (place.slice_name or "") == name]) for name in names}
    if len({len(addresses) for addresses in hosts.values()}) > 1:
        counts = ", ".join(f"{name} has {len(addresses)}" for name, addresses in hosts.items())
        raise UserError(f"got slices of unequal size: {counts} workers; give slices of equal size")
    environments = []
    for place in places:
        name = place.slice_name or ""
        environment = {
            "PJRT_DEVICE": device,
            "TPU_WORKER_ID": str(place.worker_id),
            "TPU_WORKER_HOSTNAMES": ",".join(hosts[name]),
        }
        if slices > 1:
            environment |= {
                "MEGASCALE_COORDINATOR_ADDRESS": hosts[names[0]][0],
                "MEGASCALE_PORT": MEGASCALE_PORT,
                "MEGASCALE_NUM_SLICES": str(slices),
                "MEGASCALE_SLICE_ID": str(names.index(name)),
            }
        environments.append(environment)
    return environments


def _hosts(name: str, places: Sequence[Place]) -> list[str]:
    """Addresses of a slice's workers, by worker id. Raises UserError if an id is missing or occurs twice."""
    ids = [place.worker_id for place in places]
    if sorted(ids, key=str) != sorted(map(str, range(len(places)))):
        raise UserError(
            f"the workers of slice {name or 'without a name'} have the TPU_WORKER_IDs {ids}, but a slice of "
            f"{len(places)} "
            f"hosts has each id from 0 to {len(places) - 1} once; run one worker on each host of one slice"
        )
    return [place.address for place in sorted(places, key=lambda place: int(place.worker_id or 0))]


def broken_slices(nodes: Sequence[Mapping[str, Any]], tpu: TpuSlices) -> set[str]:
    """Names of slices of this type whose host 0 is alive and another host is lost (`nodes` as from ray.nodes())."""
    alive: dict[str, set[str]] = {}
    for node in nodes:
        labels = node.get("Labels") or {}
        if node["Alive"] and labels.get(POD_TYPE) == tpu.pod_type and SLICE_NAME in labels:
            alive.setdefault(labels[SLICE_NAME], set()).add(labels.get(WORKER_ID, ""))
    whole = {str(number) for number in range(tpu.hosts)}
    return {name for name, ids in alive.items() if "0" in ids and not whole <= ids}
