"""`XlaConfig`: Ray Train's setup of PyTorch/XLA workers, on one machine, on a TPU slice, on several slices.

    ScalingConfig(use_tpu, topology, ...)   Ray reserves whole slices (labels ray.io/tpu-slice-name, -worker-id)
    XlaConfig.on_start                      each worker's environment, before torch_xla is imported; a gloo group
    hold_broken_slices                      keeps Ray from choosing a slice that lacks a host

One process a host, which drives all of its chips. A worker's place in its slice is its TPU_WORKER_ID; its rank says
nothing about that, since Ray numbers workers as they come. Ray 2.60 sets neither PJRT_DEVICE nor, for anything but JAX,
the MEGASCALE_* of several slices: that is done here, from the nodes' labels.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import ray
import ray.train
from ray._private.accelerators.tpu import infer_tpu_pod_type_from_topology
from ray.train.backend import Backend as RayBackend
from ray.train.backend import BackendConfig
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.tpu import get_tpu_coordinator_env_vars

SLICE_NAME, WORKER_ID, POD_TYPE = "ray.io/tpu-slice-name", "ray.io/tpu-worker-id", "ray.io/tpu-pod-type"
"""labels of a node that is a host of a TPU slice; Ray sets them where it starts on one"""

MEGASCALE = "MEGASCALE_"
"""how variables begin that tell libtpu of several slices"""

LOOK_SECONDS = 5.0
"""between looks for slices that lack a host"""

JOIN_TIMEOUT = timedelta(minutes=10)


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
        return str(infer_tpu_pod_type_from_topology(self.topology, self.accelerator_type))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Where a worker is."""

    address: str
    """of its node"""
    slice_name: str | None = None
    worker_id: str | None = None
    """both None on a machine that is no host of a slice of several"""


@dataclasses.dataclass
class XlaConfig(BackendConfig):
    """Ray Train's setup of PyTorch/XLA workers: their environment, before torch_xla is imported."""

    device: str = "CPU"
    """PJRT_DEVICE: CPU or TPU"""
    slices: int = 1
    """TPU slices that the workers are on"""

    @property
    def backend_cls(self) -> type[_XlaWorkers]:
        return _XlaWorkers


class _XlaWorkers(RayBackend):
    """Ray Train calls it for every group of workers, the ones after a failure too; it keeps nothing."""

    def on_start(self, worker_group: Any, backend_config: XlaConfig) -> None:
        places = worker_group.execute(_place)
        for rank, environment in enumerate(xla_environments(backend_config.device, places, backend_config.slices)):
            worker_group.execute_single(rank, _set_environment, environment)
        if len(places) > 1:
            port = worker_group.execute_single(0, _free_port)
            url = f"tcp://{places[0].address}:{port}"
            ray.get(
                [worker_group.execute_single_async(rank, _join, url, rank, len(places)) for rank in range(len(places))]
            )


def xla_environments(device: str, places: Sequence[Place], slices: int = 1) -> list[dict[str, str]]:
    """The environment of each worker, by rank.

    Raises ValueError where the workers are not one on each host of `slices` whole slices.
    """
    if device == "CPU":
        return [{"PJRT_DEVICE": "CPU"}] * len(places)
    if len(places) == 1:
        return [{"PJRT_DEVICE": device}]
    names = sorted({place.slice_name or "" for place in places})
    if len(names) != slices or (slices > 1 and "" in names):
        raise ValueError(
            f"the workers are on the slices {', '.join(name or 'without a name' for name in names)}, and the run is on "
            f"{slices}; start Ray on each host of a slice, so that its nodes have the label {SLICE_NAME}"
        )
    hosts = {name: _hosts(name, [place for place in places if (place.slice_name or "") == name]) for name in names}
    if len({len(addresses) for addresses in hosts.values()}) > 1:
        counts = ", ".join(f"{name} has {len(addresses)}" for name, addresses in hosts.items())
        raise ValueError(f"slices of unequal size: {counts} workers; a run takes equal ones")
    environments = []
    for place in places:
        name = place.slice_name or ""
        environment = {
            "PJRT_DEVICE": device,
            "TPU_WORKER_ID": str(place.worker_id),
            "TPU_WORKER_HOSTNAMES": ",".join(hosts[name]),
        }
        if slices > 1:
            environment |= get_tpu_coordinator_env_vars(hosts[names[0]][0], slices, names.index(name))
        environments.append(environment)
    return environments


def _hosts(name: str, places: Sequence[Place]) -> list[str]:
    """Addresses of a slice's workers by worker id. Raises ValueError where an id is missing or there twice."""
    ids = [place.worker_id for place in places]
    if sorted(ids, key=str) != sorted(map(str, range(len(places)))):
        raise ValueError(
            f"the workers of slice {name or 'without a name'} have the TPU_WORKER_IDs {ids}; a slice of {len(places)} "
            f"hosts has each id from 0 to {len(places) - 1} once: run one worker on each host of one slice"
        )
    return [place.address for place in sorted(places, key=lambda place: int(place.worker_id or 0))]


def scaling_config(
    workers: int, resources: Mapping[str, float], tpu: TpuSlices | None, *, use_gpu: bool = False
) -> ray.train.ScalingConfig:
    """What Ray is to reserve: `workers` with `resources` each; with `tpu` whole slices, a worker on each host."""
    if tpu is None:
        return ray.train.ScalingConfig(num_workers=workers, use_gpu=use_gpu, resources_per_worker=dict(resources))
    return ray.train.ScalingConfig(
        num_workers=workers,
        use_tpu=True,
        topology=tpu.topology or None,
        accelerator_type=tpu.accelerator_type or None,
        resources_per_worker={**resources, "TPU": tpu.chips_per_host},
    )


def one_host(nodes: Sequence[Mapping[str, Any]]) -> TpuSlices | None:
    """The smallest TPU host of the cluster (`nodes` as of ray.nodes()); None where it has none."""
    chips = [node["Resources"]["TPU"] for node in nodes if node["Alive"] and node["Resources"].get("TPU")]
    return TpuSlices(chips_per_host=int(min(chips))) if chips else None


@contextlib.contextmanager
def hold_broken_slices(tpu: TpuSlices | None) -> Iterator[None]:
    """While it is open, slices that lack a host are kept from Ray Train.

    Ray chooses a slice by the first one whose host 0 is free, and then waits for the other hosts; if one is lost, it
    waits in vain though a whole slice may be idle. So we reserve host 0 of each broken slice ourselves, and let go of
    it when the slice is whole again.
    """
    if tpu is None or tpu.hosts == 1:
        yield
        return
    held: dict[str, Any] = {}
    stop = threading.Event()

    def look() -> None:
        broken = broken_slices(ray.nodes(), tpu)
        for name in broken - held.keys():
            held[name] = placement_group(
                bundles=[{f"TPU-{tpu.pod_type}-head": 1}], bundle_label_selector=[{SLICE_NAME: name, WORKER_ID: "0"}]
            )
        for name in held.keys() - broken:
            remove_placement_group(held.pop(name))

    def watch() -> None:
        while not stop.wait(LOOK_SECONDS):
            look()

    look()
    thread = threading.Thread(target=watch, name="broken-slices", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        for group in held.values():
            remove_placement_group(group)


def broken_slices(nodes: Sequence[Mapping[str, Any]], tpu: TpuSlices) -> set[str]:
    """Names of slices of that kind whose host 0 is alive and another host is not (`nodes` as of ray.nodes())."""
    alive: dict[str, set[str]] = {}
    for node in nodes:
        labels = node.get("Labels") or {}
        if node["Alive"] and labels.get(POD_TYPE) == tpu.pod_type and SLICE_NAME in labels:
            alive.setdefault(labels[SLICE_NAME], set()).add(labels.get(WORKER_ID, ""))
    whole = {str(number) for number in range(tpu.hosts)}
    return {name for name, ids in alive.items() if "0" in ids and not whole <= ids}


def _place() -> Place:
    """On a worker."""
    labels = ray.get_runtime_context().get_node_labels() or {}
    return Place(
        address=ray.util.get_node_ip_address(),
        slice_name=_one(labels.get(SLICE_NAME)),
        worker_id=_one(labels.get(WORKER_ID)) or os.environ.get("TPU_WORKER_ID"),
    )


def _one(label: Any) -> str | None:
    """A label's value: Ray's context tells strings, or lists of one."""
    return label[0] if isinstance(label, list) and label else label or None


def _set_environment(environment: Mapping[str, str]) -> None:
    """On a worker. What a host's image says of several slices is of another run, or of the time before a failure."""
    for name in [name for name in os.environ if name.startswith(MEGASCALE)]:
        del os.environ[name]
    os.environ.update(environment)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("", 0))
        return int(found.getsockname()[1])


def _join(url: str, rank: int, world_size: int) -> None:
    """On a worker: what processes tell each other on the hosts (rows, steps, alarms) goes over gloo."""
    import torch

    torch.distributed.init_process_group("gloo", url, rank=rank, world_size=world_size, timeout=JOIN_TIMEOUT)
