"""TPU slices and meshes as numbers: their chips and hosts, and the best possible speed of a step.

This is arithmetic: nothing is compiled, and no TPU is needed. The figures of a chip are in infra/chips.py.

**Roofline.** On one chip, a step has F operations, H bytes of HBM traffic, I bytes sent over links between chips (ICI),
and D bytes sent between slices (data-center network). It takes at least

    compute = F / peak      memory = H / HBM bandwidth      ici = I / (ICI bandwidth x share of links)
    dcn = D / DCN bandwidth
    best  = max(compute, memory, ici, dcn)     everything overlaps
    worst = compute + memory + ici + dcn       nothing overlaps

`worst` is not an upper bound of a real step: docs/tpu-fit.md lists what both bounds leave out. In one collective of N
chips, over rings, a chip sends these bytes (Thakur et al. 2005, section 4; the counts of jax-ml's scaling book agree):

    all-gather (N - 1)/N out      reduce-scatter (N - 1)/N in      all-reduce 2 (N - 1)/N in
    all-to-all (N - 1)/N in       collective-permute  in
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from infra.chips import TPUS, Tpu
from infra.errors import UserError

FLAT_RING = 16
"""number of chips along a side of a slice of two dimensions whose ends are connected"""
KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")


@dataclass(frozen=True, kw_only=True)
class Topology:
    """`slices` equal slices. Chips of a slice are connected by ICI, slices by the data-center network."""

    chip: Tpu
    shape: tuple[int, ...]
    """number of chips along each dimension of one slice"""
    slices: int = 1

    @property
    def name(self) -> str:
        """The name that the compiler takes."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def chips_per_slice(self) -> int:
        return math.prod(self.shape)

    @property
    def chips(self) -> int:
        return self.chips_per_slice * self.slices

    @property
    def ici_share(self) -> float:
        """The share of a chip's links that a chip at the corner of a slice has; collectives are as fast as its links.

        Along a side of one chip there is no link, and along any other side one, or two if the side is closed to a ring:
        sides of 16 in two dimensions, and in three dimensions all sides if all are multiples of 4.
        """
        dimensions = self.chip.dimensions
        cube = dimensions == 3 and all(side % 4 == 0 for side in self.shape)
        links = [min(side - 1, 2 if cube or side == FLAT_RING else 1) for side in self.shape]
        return sum(links) / (2 * dimensions)

    @property
    def hosts(self) -> int:
        return self.slices * max(1, self.chips_per_slice // self.chip.chips_per_host)


def parse_topology(text: str, slices: int = 1) -> Topology:
    """The topology of a text such as `v5p:4x4x4`.

    Raises UserError for an unknown chip, a wrong number of dimensions, a side that no slice has, or too many chips.
    """
    name, _, shape_text = text.partition(":")
    if name not in TPUS:
        raise UserError(
            f"unknown chip {name!r} in topology {text!r}; there are {', '.join(TPUS)}: write it as v5p:4x4x4"
        )
    chip = TPUS[name]
    example = f"{name}:{'x'.join(['4'] * chip.dimensions)}"
    if not re.fullmatch(r"\d{1,9}(x\d{1,9})*", shape_text) or shape_text.count("x") != chip.dimensions - 1:
        raise UserError(
            f"got topology {text!r}; a {name} slice has {chip.dimensions} dimensions: write it as in {example}"
        )
    shape = tuple(map(int, shape_text.split("x")))
    sides_known = all(side in (1, 2) or (side % 4 == 0 and side) for side in shape)
    if not sides_known or shape[0] < 2 or shape[1] < 2:
        raise UserError(
            f"got topology {text!r}; sides are 1, 2 or multiples of 4, and a host has 2x2 chips of the first two: try "
            f"{example}"
        )
    if math.prod(shape) > chip.largest_slice:
        raise UserError(
            f"topology {text!r} has {math.prod(shape)} chips, but a {name} slice has at most {chip.largest_slice}; "
            "choose a smaller topology and several slices (--slices)"
        )
    if slices < 1:
        raise UserError(f"slices is {slices}, but must be at least 1; give 1 or more")
    return Topology(chip=chip, shape=shape, slices=slices)


def check_mesh(mesh: Mapping[str, int], topology: Topology, *, heads: int, kv_heads: int, batch: int) -> None:
    """Raises UserError for a mesh that does not fit the topology, the model or the batch.

    The mesh has one place for each chip, its model axis divides the heads and is inside a slice, and the other axes
    divide the rows of a step.
    """
    product = math.prod(mesh.values())
    written = ",".join(f"{axis}={size}" for axis, size in mesh.items())
    model = mesh["model"]
    allowed = [size for size in divisors(math.gcd(heads, kv_heads)) if topology.chips_per_slice % size == 0]
    if product != topology.chips:
        pairs = ", ".join(f"data={topology.chips // size},model={size}" for size in allowed)
        raise UserError(
            f"mesh {written} has {product} places, but {topology.name} x {topology.slices} has {topology.chips} chips; "
            f"both must be equal: choose {pairs}"
        )
    if model not in allowed:
        raise UserError(
            f"got model={model}; it must divide the heads ({heads}), the key heads ({kv_heads}) and the "
            f"{topology.chips_per_slice} chips of a slice: choose {', '.join(map(str, allowed))}"
        )
    rows = mesh["replica"] * mesh["data"]
    if batch < 1 or batch % rows:
        raise UserError(
            f"batch is {batch} rows, but each of the {rows} places along replica x data takes the same number of rows; "
            f"try --batch {max(1, round(batch / rows)) * rows}"
        )


def divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def sent_bytes(kind: str, operand_bytes: int, group: int) -> float:
    """Bytes that each of `group` chips sends in one collective with `operand_bytes` on each chip.

    The formulas are those of the module's docstring. The result of an all-gather is group x operand.
    """
    assert kind in KINDS, f"unknown collective {kind!r}; there are {', '.join(KINDS)}"
    if kind == "collective-permute":
        return float(operand_bytes)
    if kind == "all-gather":
        return float(operand_bytes * (group - 1))
    return (2.0 if kind == "all-reduce" else 1.0) * operand_bytes * (group - 1) / group


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """Lower bounds of the time of one step on one chip, by resource (formulas in the module's docstring)."""

    compute_seconds: float
    memory_seconds: float
    ici_seconds: float
    dcn_seconds: float

    @property
    def best_seconds(self) -> float:
        """The time if everything overlaps: that of the slowest resource."""
        return max(self.compute_seconds, self.memory_seconds, self.ici_seconds, self.dcn_seconds)

    @property
    def worst_seconds(self) -> float:
        """The time if nothing overlaps: the sum over the resources."""
        return self.compute_seconds + self.memory_seconds + self.ici_seconds + self.dcn_seconds

    @property
    def bound_by(self) -> str:
        """The slowest resource."""
        seconds = {
            "compute": self.compute_seconds,
            "HBM": self.memory_seconds,
            "ICI": self.ici_seconds,
            "DCN": self.dcn_seconds,
        }
        return max(seconds, key=seconds.__getitem__)


def roofline(topology: Topology, *, flops: float, hbm_bytes: float, ici_bytes: float, dcn_bytes: float) -> Roofline:
    """Lower bounds for one chip: operations, HBM bytes read and written, bytes sent over ICI and DCN in one step."""
    chip = topology.chip
    return Roofline(
        compute_seconds=flops / chip.peak_flops,
        memory_seconds=hbm_bytes / chip.hbm_bandwidth,
        ici_seconds=ici_bytes / (chip.ici_bandwidth * topology.ici_share),
        dcn_seconds=dcn_bytes / chip.dcn_bandwidth,
    )


def model_flops_utilization(chip: Tpu, *, model_flops: float, seconds: float) -> float:
    """MFU (arXiv 2204.02311, appendix B).

    The operations that the model needs on a chip, without recomputation, divided by those that the chip can do in the
    time.
    """
    return model_flops / (seconds * chip.peak_flops)
