"""Where workers are on TPU slices, and what each has to be told: arithmetic on nodes and labels, without Ray."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from training.errors import UserError
from training.log.chips import SHORT_NAMES

SLICE_NAME, WORKER_ID, POD_TYPE = "ray.io/tpu-slice-name", "ray.io/tpu-worker-id", "ray.io/tpu-pod-type"
TOPOLOGY = "ray.io/tpu-topology"
"""labels of a node that is a host of a TPU slice; Ray sets them where it starts on one"""

CORES = {"v4": 2, "v5p": 2}
"""of a chip, where a pod's type counts them; otherwise it counts chips"""

MEGASCALE_PORT = "8081"
"""where the coordinator of several slices listens"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TpuSlices:
    """What a run wants of the cluster: equal slices, a worker on each of their hosts."""

    chips_per_host: int
    hosts: int = 1
    """of one slice"""
    topology: str = ""
    """chips along each side of one slice, as in 4x4; of several hosts"""
    accelerator_type: str = ""
    """as Ray calls the chips: TPU-V4, TPU-V5LITEPOD, TPU-V5P, TPU-V6E; of several hosts"""
    slices: int = 1
    """data replicas, joined by the data-centre network"""

    @property
    def workers(self) -> int:
        return self.hosts * self.slices

    @property
    def pod_type(self) -> str:
        """As the label has it: v5litepod-16, by chips, or v4-16, by cores."""
        generation = self.accelerator_type.removeprefix("TPU-").lower()
        return f"{generation}-{self.hosts * self.chips_per_host * CORES.get(generation, 1)}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Where a worker is."""

    address: str
    """of its node"""
    slice_name: str | None = None
    worker_id: str | None = None
    """both None on a machine that is no host of a slice of several"""


def xla_environments(device: str, places: Sequence[Place], slices: int = 1) -> list[dict[str, str]]:
    """The environment of each worker, by rank.

    Raises UserError where the workers are not one on each host of `slices` whole slices.
    """
    if device == "CPU":
        return [{"PJRT_DEVICE": "CPU"}] * len(places)
    if len(places) == 1:
        return [{"PJRT_DEVICE": device}]
    names = sorted({place.slice_name or "" for place in places})
    if len(names) != slices or (slices > 1 and "" in names):
        raise UserError(
            f"the workers are on the slices {', '.join(name or 'without a name' for name in names)}, and the run is on "
            f"{slices}; start Ray on each host of a slice, so that its nodes have the label {SLICE_NAME}"
        )
    hosts = {name: _hosts(name, [place for place in places if (place.slice_name or "") == name]) for name in names}
    if len({len(addresses) for addresses in hosts.values()}) > 1:
        counts = ", ".join(f"{name} has {len(addresses)}" for name, addresses in hosts.items())
        raise UserError(f"slices of unequal size: {counts} workers; a run takes equal ones")
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
    """Addresses of a slice's workers by worker id. Raises UserError where an id is missing or there twice."""
    ids = [place.worker_id for place in places]
    if sorted(ids, key=str) != sorted(map(str, range(len(places)))):
        raise UserError(
            f"the workers of slice {name or 'without a name'} have the TPU_WORKER_IDs {ids}; a slice of {len(places)} "
            f"hosts has each id from 0 to {len(places) - 1} once: run one worker on each host of one slice"
        )
    return [place.address for place in sorted(places, key=lambda place: int(place.worker_id or 0))]


def one_host(nodes: Sequence[Mapping[str, Any]]) -> TpuSlices | None:
    """The smallest TPU host of the cluster (`nodes` as of ray.nodes()); None where it has none.

    Raises UserError where a host belongs to a slice of several: libtpu would wait there for the others.
    """
    hosts = [node for node in nodes if node["Alive"] and node["Resources"].get("TPU")]
    together = Counter((node.get("Labels") or {}).get(SLICE_NAME) for node in hosts)
    for node in hosts:
        labels = node.get("Labels") or {}
        name, pod_type, topology = (labels.get(label) for label in (SLICE_NAME, POD_TYPE, TOPOLOGY))
        chips = _chips(pod_type) if pod_type else 0
        if chips > node["Resources"]["TPU"] or (name is not None and together[name] > 1):
            generation = pod_type.rpartition("-")[0] if pod_type else ""
            known = f"{SHORT_NAMES.get(generation, generation)}:{topology}" if generation and topology else ""
            raise UserError(
                f"the TPU host {node.get('NodeManagerAddress', '')} belongs to the slice {name or pod_type} of several "
                f"hosts, and one alone would wait for the others; give --topology {known or 'as in v5e:4x4'}"
            )
    return TpuSlices(chips_per_host=int(min(node["Resources"]["TPU"] for node in hosts))) if hosts else None


def _chips(pod_type: str) -> int:
    """Of a whole slice, from its label: v5litepod-16 has 16, v4-16 has 8."""
    generation, _, count = pod_type.rpartition("-")
    return int(count) // CORES.get(generation, 1) if count.isdigit() else 0


def broken_slices(nodes: Sequence[Mapping[str, Any]], tpu: TpuSlices) -> set[str]:
    """Names of slices of that kind whose host 0 is alive and another host is not (`nodes` as of ray.nodes())."""
    alive: dict[str, set[str]] = {}
    for node in nodes:
        labels = node.get("Labels") or {}
        if node["Alive"] and labels.get(POD_TYPE) == tpu.pod_type and SLICE_NAME in labels:
            alive.setdefault(labels[SLICE_NAME], set()).add(labels.get(WORKER_ID, ""))
    whole = {str(number) for number in range(tpu.hosts)}
    return {name for name, ids in alive.items() if "0" in ids and not whole <= ids}
