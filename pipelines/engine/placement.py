"""The placement of a run by its resources, resolved once: hosts, chips, workers, mesh.

--topology v5e:4x4 --slices 2 [--mesh ...] -> Placement -> Setup and TpuSlices of training
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infra.chips import TPUS, chip_called, pod_chips
from infra.slices import Topology, parse_topology
from model.sharding import MeshShape, row_groups
from pipelines.engine.errors import UserError
from pipelines.engine.resources import Resources
from training.backends.devices import TPU_DEVICE
from training.setup import Setup
from training.worker.places import POD_TYPE, SLICE_NAME, TOPOLOGY, TpuSlices


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The devices and machines on which a run trains."""

    setup: Setup
    """device, workers, mesh and microbatches"""
    topology: Topology | None = None
    """TPU slices that the run rents; None: the hosts of the cluster"""
    tpu: TpuSlices | None = None
    """slices that training requests from the cluster; None without a topology"""
    fewest_workers: int
    """smallest number of workers that the run continues with: all workers, or fewer (in whole slices) if the resources
    allow it"""


def place(resources: Resources) -> Placement:
    """The placement of a run with these resources.

    Raises UserError if slices do not exist, if Ray does not reserve them as a whole, or if they do not fit the device,
    the workers or the mesh.
    """
    topology, mesh = _topology(resources), resources.mesh_shape
    if topology is None:
        workers, fewest = resources.workers, resources.min_workers or resources.workers
    else:
        workers = topology.hosts
        fewest = (resources.min_slices or topology.slices) * (workers // topology.slices)
        mesh = mesh or MeshShape(replica=topology.slices, data=topology.chips_per_slice)
        _check_mesh(mesh, topology)
    return Placement(
        setup=Setup(
            device=resources.device,
            workers=workers,
            mesh=mesh,
            microbatch_rows=resources.microbatch_rows,
            remat=resources.remat,
        ),
        topology=topology,
        tpu=None if topology is None else _tpu_slices(topology),
        fewest_workers=fewest,
    )


def _topology(resources: Resources) -> Topology | None:
    if not resources.topology:
        if resources.slices > 1 or resources.min_slices:
            slices = resources.slices
            raise UserError(f"got --slices {slices} without --topology; give the topology too, such as v5e:4x4")
        return None
    place = parse_topology(resources.topology, resources.slices)
    if resources.device not in ("auto", TPU_DEVICE):
        raise UserError(
            f"got --topology {place.name} on device {resources.device!r}; give --device {TPU_DEVICE} for TPU slices"
        )
    if resources.workers not in (1, place.hosts):
        raise UserError(
            f"got --workers {resources.workers} for {place.slices} x {place.name}, which has {place.hosts} hosts with "
            "one worker each; leave --workers out"
        )
    if resources.min_workers is not None:
        raise UserError(
            f"got --min-workers with --topology {place.name}; slices are lost and return as a whole, so give "
            "--min-slices"
        )
    if place.hosts > place.slices and place.chips_per_slice == 8 and place.chip.dimensions == 2:
        raise UserError(
            f"got {place.name} as two hosts of 4 chips, which Ray takes for one host of 8 chips and does not reserve "
            f"together; use {place.chip.name}:2x2 or {place.chip.name}:4x4"
        )
    return place


def _tpu_slices(place: Topology) -> TpuSlices:
    hosts = place.hosts // place.slices
    chips = place.chips_per_slice // hosts
    if place.hosts == 1:
        return TpuSlices(chips_per_host=chips)
    return TpuSlices(
        chips_per_host=chips,
        hosts=hosts,
        topology=place.name.partition(":")[2],
        accelerator_type=place.chip.ray_name,
        pod_type=place.chip.pod_type(place.chips_per_slice),
        slices=place.slices,
    )


def tpu_of_cluster(placement: Placement, nodes: Sequence[Mapping[str, Any]]) -> TpuSlices | None:
    """The slices that the run rents. Without a topology: the smallest TPU host of the cluster, if the device may be a
    TPU. None if there is neither. `nodes` is the list of ray.nodes().

    Raises UserError if that host belongs to a slice of several hosts, because libtpu would wait for the other hosts.
    """
    if placement.tpu is not None or placement.setup.device not in ("auto", TPU_DEVICE):
        return placement.tpu
    return _one_host(nodes)


def _one_host(nodes: Sequence[Mapping[str, Any]]) -> TpuSlices | None:
    hosts = [node for node in nodes if node["Alive"] and node["Resources"].get("TPU")]
    together = Counter((node.get("Labels") or {}).get(SLICE_NAME) for node in hosts)
    for node in hosts:
        labels = node.get("Labels") or {}
        name, pod_type, topology = (labels.get(label) for label in (SLICE_NAME, POD_TYPE, TOPOLOGY))
        chips = pod_chips(pod_type) if pod_type else 0
        if chips > node["Resources"]["TPU"] or (name is not None and together[name] > 1):
            chip = chip_called(pod_type or "")
            known = f"{chip.name}:{topology}" if chip is not None and topology else "such as v5e:4x4"
            raise UserError(
                f"got the TPU host {node.get('NodeManagerAddress', '')} of the slice {name or pod_type}, which has "
                f"several hosts; one host alone would wait for the other hosts, so give --topology {known}"
            )
    return TpuSlices(chips_per_host=int(min(node["Resources"]["TPU"] for node in hosts))) if hosts else None


def _check_mesh(mesh: MeshShape, place: Topology) -> None:
    if mesh.chips != place.chips:
        raise UserError(
            f"got mesh {mesh.text} of {mesh.chips} chips for {place.slices} x {place.name} of {place.chips} chips; the "
            f"product of the mesh has to be {place.chips}"
        )
    row_groups(place.hosts, mesh)


def chip_flops_of(placement: Placement, nodes: Sequence[Mapping[str, Any]]) -> float | None:
    """The peak of one TPU chip in dense bfloat16 operations a second, for MFU. `nodes` is the list of ray.nodes().

    The chip is the topology's, without a topology that of the cluster's TPU hosts. None if the cluster has no TPU host,
    has several kinds of chips, or has a chip that is not in our table.
    """
    if placement.topology is not None:
        return placement.topology.chip.peak_flops
    by_name = {f"accelerator_type:{chip.ray_name}": chip.peak_flops for chip in TPUS.values()}
    hosts = [node["Resources"] for node in nodes if node["Alive"] and node["Resources"].get("TPU")]
    peaks = {next((by_name[key] for key in host if key in by_name), None) for host in hosts}
    return peaks.pop() if len(peaks) == 1 else None
