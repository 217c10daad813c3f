"""`XlaConfig`: how Ray Train prepares PyTorch/XLA workers, on one machine, on a TPU slice, on several slices.

        ScalingConfig(use_tpu, topology, ...)   Ray reserves whole slices (labels ray.io/tpu-slice-name, -worker-id)
    XlaConfig.on_start                      each worker's environment, before torch_xla is imported; a gloo group
    hold_broken_slices                      keeps Ray from choosing a slice that lacks a host

There is one process on each host, which drives all chips of the host. TPU_WORKER_ID is a worker's place in its slice;
its rank is not, since Ray numbers workers as they come. Ray 2.60 does not set PJRT_DEVICE, and sets the MEGASCALE_*
variables of several slices for JAX only: this module sets both, from the nodes' labels.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import ray
import ray.train
from ray.train.backend import Backend as RayBackend
from ray.train.backend import BackendConfig
from ray.util.placement_group import placement_group, remove_placement_group

from training.worker import elastic
from training.worker.places import SLICE_NAME, WORKER_ID, Place, TpuSlices, broken_slices, xla_environments
from training.worker.watch import looking

MEGASCALE = "MEGASCALE_"
"""Prefix of the variables that describe several slices to libtpu."""

LOOK_SECONDS = 5.0
"""Seconds between two looks for slices that lack a host."""

JOIN_TIMEOUT = timedelta(minutes=10)


@dataclasses.dataclass
class XlaConfig(BackendConfig):
    """How Ray Train prepares PyTorch/XLA workers: their environment, before torch_xla is imported."""

    device: str = "CPU"
    """Value of PJRT_DEVICE: CPU or TPU."""
    hosts: int = 1
    """Hosts of one TPU slice; the number of slices is the number of workers divided by it."""

    @property
    def backend_cls(self) -> type[_XlaWorkers]:
        return _XlaWorkers


class _XlaWorkers(RayBackend):
    """Ray Train calls this for every group of workers, also after a failure; it keeps no state."""

    def on_start(self, worker_group: Any, backend_config: XlaConfig) -> None:
        places = worker_group.execute(_place)
        slices = max(1, len(places) // backend_config.hosts)
        for rank, environment in enumerate(xla_environments(backend_config.device, places, slices)):
            worker_group.execute_single(rank, _set_environment, environment)
        if len(places) > 1:
            port = worker_group.execute_single(0, _free_port)
            url = f"tcp://{places[0].address}:{port}"
            ray.get(
                [worker_group.execute_single_async(rank, _join, url, rank, len(places)) for rank in range(len(places))]
            )


def scaling_config(
    sizes: Sequence[int], resources: Mapping[str, float], tpu: TpuSlices | None, *, use_gpu: bool = False
) -> ray.train.ScalingConfig:
    """The reservation for Ray: as many workers as one of `sizes`, with `resources` each; with `tpu` whole slices."""
    workers = (sizes[0], sizes[-1]) if len(sizes) > 1 else sizes[0]
    settings = {"num_workers": workers, "elastic_resize_monitor_interval_s": elastic.RESIZE_SECONDS}
    if tpu is None:
        return ray.train.ScalingConfig(**settings, use_gpu=use_gpu, resources_per_worker=dict(resources))
    return ray.train.ScalingConfig(
        **settings,
        use_tpu=True,
        topology=tpu.topology or None,
        accelerator_type=tpu.accelerator_type or None,
        resources_per_worker={**resources, "TPU": tpu.chips_per_host},
    )


@contextlib.contextmanager
def hold_broken_slices(tpu: TpuSlices | None) -> Iterator[None]:
    """Keeps slices that lack a host from Ray Train while the context is open.

    Ray chooses the first slice whose host 0 is free, and then waits for the other hosts. If one of these is lost, Ray
    waits in vain, even if a whole slice is idle. So we reserve host 0 of each broken slice ourselves, and release it
    when the slice is whole again.
    """
    if tpu is None or tpu.hosts == 1:
        yield
        return
    held: dict[str, Any] = {}

    def look() -> None:
        broken = broken_slices(ray.nodes(), tpu)
        for name in broken - held.keys():
            held[name] = placement_group(
                bundles=[{f"TPU-{tpu.pod_type}-head": 1}], bundle_label_selector=[{SLICE_NAME: name, WORKER_ID: "0"}]
            )
        for name in held.keys() - broken:
            remove_placement_group(held.pop(name))

    look()
    try:
        with looking("broken slices", look, LOOK_SECONDS):
            yield
    finally:
        for group in held.values():
            remove_placement_group(group)


def _place() -> Place:
    """The place of this worker; runs on the worker."""
    labels = ray.get_runtime_context().get_node_labels() or {}
    return Place(
        address=ray.util.get_node_ip_address(),
        slice_name=_one(labels.get(SLICE_NAME)),
        worker_id=_one(labels.get(WORKER_ID)) or os.environ.get("TPU_WORKER_ID"),
    )


def _one(label: Any) -> str | None:
    """A label's value: Ray's context returns a string, or a list of one string."""
    return label[0] if isinstance(label, list) and label else label or None


def _set_environment(environment: Mapping[str, str]) -> None:
    """Sets the environment; runs on the worker.

    It removes earlier variables of several slices: they come from the host's image, or from the time before a failure.
    """
    for name in [name for name in os.environ if name.startswith(MEGASCALE)]:
        del os.environ[name]
    os.environ.update(environment)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])


def _join(url: str, rank: int, world_size: int) -> None:
    """Joins the gloo group, for messages between hosts (rows, steps, alarms); runs on the worker."""
    import torch

    torch.distributed.init_process_group("gloo", url, rank=rank, world_size=world_size, timeout=JOIN_TIMEOUT)
