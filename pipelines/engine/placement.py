"""From `--topology v5e:4x4 --slices 2` to what training asks of Ray: hosts, chips, workers, mesh."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from infra.chips import TPUS, chip_called, pod_chips
from infra.slices import Topology, parse_topology
from model.sharding import MeshShape, row_groups
from pipelines.engine.errors import UserError
from pipelines.engine.resources import Resources
from training.worker.places import POD_TYPE, SLICE_NAME, TOPOLOGY, TpuSlices


def place_of(resources: Resources) -> Topology | None:
    """The slices that the resources name; None where they name none.

    Raises UserError for slices that do not exist, that Ray does not reserve as a whole, or beside other workers.
    """
    if not resources.topology:
        if resources.slices > 1 or resources.min_slices:
            raise UserError(f"--slices {resources.slices} of what? give --topology, as in v5e:4x4")
        return None
    place = parse_topology(resources.topology, resources.slices)
    if resources.device not in ("auto", "xla"):
        raise UserError(f"--topology {place.name} on device {resources.device!r}; TPU slices take 'xla'")
    if resources.workers not in (1, place.hosts):
        raise UserError(
            f"--workers {resources.workers}, but {place.slices} x {place.name} has {place.hosts} hosts and a worker "
            "runs on each; leave --workers out"
        )
    if resources.min_workers is not None:
        raise UserError(f"--min-workers on --topology {place.name}: whole slices come and go; give --min-slices")
    if place.hosts > place.slices and place.chips_per_slice == 8 and place.chip.dimensions == 2:
        raise UserError(
            f"Ray takes {place.name} for one host of 8 chips and does not hold two hosts of 4 together; use "
            f"{place.chip.name}:2x2 or {place.chip.name}:4x4"
        )
    return place


def tpu_slices(resources: Resources) -> TpuSlices | None:
    """What training asks of the cluster; None without a topology."""
    place = place_of(resources)
    if place is None:
        return None
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


def tpu_of_cluster(resources: Resources, nodes: Sequence[Mapping[str, Any]]) -> TpuSlices | None:
    """The slices that the resources name; without a topology, the smallest TPU host of the cluster, for devices that
    may be a TPU. None where there is neither. `nodes` as of ray.nodes().

    Raises UserError where that host belongs to a slice of several: libtpu would wait there for the others.
    """
    named = tpu_slices(resources)
    return named if named is not None or resources.device not in ("auto", "xla") else _one_host(nodes)


def _one_host(nodes: Sequence[Mapping[str, Any]]) -> TpuSlices | None:
    hosts = [node for node in nodes if node["Alive"] and node["Resources"].get("TPU")]
    together = Counter((node.get("Labels") or {}).get(SLICE_NAME) for node in hosts)
    for node in hosts:
        labels = node.get("Labels") or {}
        name, pod_type, topology = (labels.get(label) for label in (SLICE_NAME, POD_TYPE, TOPOLOGY))
        chips = pod_chips(pod_type) if pod_type else 0
        if chips > node["Resources"]["TPU"] or (name is not None and together[name] > 1):
            chip = chip_called(pod_type or "")
            known = f"{chip.name}:{topology}" if chip is not None and topology else "as in v5e:4x4"
            raise UserError(
                f"the TPU host {node.get('NodeManagerAddress', '')} belongs to the slice {name or pod_type} of several "
                f"hosts, and one alone would wait for the others; give --topology {known}"
            )
    return TpuSlices(chips_per_host=int(min(node["Resources"]["TPU"] for node in hosts))) if hosts else None


def chip_flops_of(resources: Resources, nodes: Sequence[Mapping[str, Any]]) -> float | None:
    """Peak of one TPU chip, dense bfloat16 operations a second, for MFU; `nodes` as of ray.nodes().

    Of the chip that the topology names, otherwise of the cluster's TPU hosts; None where there are none, or several
    kinds of them, or one that is not in our table.
    """
    place = place_of(resources)
    if place is not None:
        return place.chip.peak_flops
    by_name = {f"accelerator_type:{chip.ray_name}": chip.peak_flops for chip in TPUS.values()}
    hosts = [node["Resources"] for node in nodes if node["Alive"] and node["Resources"].get("TPU")]
    found = {next((by_name[key] for key in host if key in by_name), None) for host in hosts}
    return found.pop() if len(found) == 1 else None


def workers_of(resources: Resources) -> int:
    """Ray Train workers: one on each host of the slices."""
    place = place_of(resources)
    return resources.workers if place is None else place.hosts


def fewest_workers_of(resources: Resources) -> int:
    """The fewest that a run goes on with: all of them, or as few as the resources allow, in whole slices."""
    place = place_of(resources)
    if place is None:
        return resources.min_workers or resources.workers
    return (resources.min_slices or place.slices) * (place.hosts // place.slices)


def mesh_of(resources: Resources) -> str:
    """The mesh: as given, otherwise all chips of a topology, its slices along replica."""
    place = place_of(resources)
    if place is None or resources.mesh:
        if place is not None and MeshShape.parse(resources.mesh).chips != place.chips:
            raise UserError(
                f"mesh {resources.mesh} has {MeshShape.parse(resources.mesh).chips} chips, and {place.slices} x "
                f"{place.name} has {place.chips}; their product has to be that"
            )
        if place is not None:
            row_groups(place.hosts, MeshShape.parse(resources.mesh))
        return resources.mesh
    return MeshShape(replica=place.slices, data=place.chips_per_slice).text
