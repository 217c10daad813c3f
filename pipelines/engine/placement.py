"""From `--topology v5e:4x4 --slices 2` to what training asks of Ray: hosts, chips, workers, mesh."""

from collections.abc import Mapping, Sequence
from typing import Any

from infra.slices import CHIPS, Topology, parse_topology
from model.sharding import MeshShape, row_groups
from pipelines.engine.errors import UserError
from pipelines.engine.resources import Resources
from training.worker.places import TpuSlices

RAY_NAMES = {"v4": "TPU-V4", "v5e": "TPU-V5LITEPOD", "v5p": "TPU-V5P", "v6e": "TPU-V6E"}
"""the chips of infra/slices.py as Ray calls them"""


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
        accelerator_type=RAY_NAMES[place.chip.name],
        slices=place.slices,
    )


def chip_flops_of(resources: Resources, nodes: Sequence[Mapping[str, Any]]) -> float | None:
    """Peak of one TPU chip, dense bfloat16 operations a second, for MFU; `nodes` as of ray.nodes().

    Of the chip that the topology names, otherwise of the cluster's TPU hosts; None where there are none, or several
    kinds of them, or one that is not in our table.
    """
    place = place_of(resources)
    if place is not None:
        return place.chip.peak_flops
    by_name = {f"accelerator_type:{ray_name}": CHIPS[name].peak_flops for name, ray_name in RAY_NAMES.items()}
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
