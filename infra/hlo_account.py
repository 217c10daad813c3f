"""The work of one chip in one run of a compiled HLO module: matrix operations, bytes through HBM, collectives.

The body of a loop counts once for each round of the loop. The compiler's own `cost_analysis` counts it only once.

- An asynchronous collective is counted at its start, by its operands, because its result is a tuple that repeats them.
  The TPU compiler also puts a collective into fusions, in three or more pieces that each name it (start, continue
  beside other work, done).
- Matrix operations are dots and convolutions (into which the TPU compiler turns dots), also inside fusions. Kernels
  (custom calls) are opaque: their runs are counted, but not their operations.
- HBM bytes are the operands read and the results written by each instruction outside fusions, if they are in HBM (the
  layout marks another memory by S(n)). Only the slice of a sliced operand counts. Kernels count each operand once. So
  the number is a lower bound.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from infra.hlo import CALLED, ELSEWHERE, Instruction, Module, leaf_bytes, leaves, parse, shape_bytes
from infra.hlo_trips import called, trip_count
from infra.slices import KINDS

BRANCHES = re.compile(r"\b(?:branch_computations|calls|called_computations)=\{([^}]*)\}")
# a collective between slices is a send to the host and a receive from the host
MEGASCALE = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
NAMES_OR_REGROUPS = ("parameter", "constant", "iota", "bitcast", "tuple", "get-tuple-element", "opt-barrier", "domain")
WAITS_OR_CALLS = ("while", "conditional", "call", "send", "recv", "custom-call-done", "after-all", "add-dependency")
FREE = frozenset((*NAMES_OR_REGROUPS, *WAITS_OR_CALLS, "partition-id", "replica-id"))
"""operations that do not move bytes themselves"""


@dataclass(frozen=True, kw_only=True)
class Collective:
    """One collective of the program."""

    kind: str
    operand_bytes: int
    """bytes of the operands on one chip, for each run"""
    group: int
    """number of chips that take part together"""
    times: int
    between_slices: bool


@dataclass(kw_only=True)
class Account:
    """The work of one chip in one run of the program."""

    matrix_flops: float = 0.0
    hbm_bytes: float = 0.0
    collectives: list[Collective] = field(default_factory=list)
    kernels: int = 0
    """number of runs of Mosaic (Pallas) kernels"""
    unknown_loops: list[str] = field(default_factory=list)
    """loops whose number of rounds is not in the text; their bodies count once"""


def account(text: str, slices: int = 1) -> Account:
    """The account of the text of an optimized, partitioned module. Asserts that it has an entry computation."""
    module = parse(text)
    totals = Account()
    started = _started(module)
    for name, instruction, times, fused in walk(module, totals.unknown_loops):
        computation = module.computations[name]
        opcode = instruction.opcode
        if opcode in ("dot", "convolution"):
            totals.matrix_flops += times * _matrix_flops(instruction, computation)
        elif _target(instruction) == "tpu_custom_call":
            totals.kernels += times
        elif opcode.removesuffix("-start") in KINDS and not _goes_on(instruction, computation, started):
            totals.collectives.append(_collective(name, instruction, computation, times))
        elif match := MEGASCALE.search(instruction.attributes if opcode == "send" else ""):
            size = shape_bytes(computation[instruction.operands[0]].shape)
            kind = match[1].lower().replace("_", "-")
            totals.collectives.append(
                Collective(kind=kind, operand_bytes=size, group=slices, times=times, between_slices=True)
            )
        if not fused:
            totals.hbm_bytes += times * _hbm_bytes(module, instruction, computation)
    return totals


def walk(module: Module, unknown_loops: list[str]) -> Iterator[tuple[str, Instruction, int, bool]]:
    """(computation's name, instruction, number of runs, whether it is part of a fusion), from the entry down."""
    waiting = [(module.entry, 1, False)]
    while waiting:
        name, times, fused = waiting.pop()
        computation = module.computations[name]
        for instruction in computation.values():
            yield name, instruction, times, fused
            attributes = instruction.attributes
            if instruction.opcode == "while":
                trips = trip_count(module, name, instruction)
                if trips is None:
                    unknown_loops.append(instruction.name)
                waiting.append((called(instruction, "body"), times * (1 if trips is None else trips), fused))
                continue
            inside = fused or instruction.opcode in ("fusion", "async-start")
            names = [match[1] for match in CALLED.finditer(attributes)]
            for match in BRANCHES.finditer(attributes):
                names += [branch.strip().lstrip("%") for branch in match[1].split(",")]
            # to_apply of a reduction runs on scalars, so nothing in it is counted
            if instruction.opcode in ("fusion", "call", "async-start", "conditional", "custom-call"):
                waiting += [(callee, times, inside) for callee in names if callee in module.computations]


def _target(instruction: Instruction) -> str:
    match = re.search(r'custom_call_target="([^"]+)"', instruction.attributes)
    return match[1] if match else ""


def _channel(instruction: Instruction) -> str:
    match = re.search(r"\bchannel_id=(\d+)", instruction.attributes)
    return match[1] if match else ""


def _started(module: Module) -> frozenset[str]:
    """Channels of the collectives that a fusion starts."""
    return frozenset(
        _channel(computation[operand])
        for computation in module.computations.values()
        for instruction in computation.values()
        if _target(instruction) == "AsyncCollectiveStart"
        for operand in instruction.operands
        if operand in computation
    )


def _goes_on(instruction: Instruction, computation: dict[str, Instruction], started: frozenset[str]) -> bool:
    """Whether the instruction names a collective that another fusion starts."""
    inside_fusion = any(
        candidate.opcode == "parameter" and candidate.name in instruction.operands for candidate in computation.values()
    )
    starts_here = any(
        _target(candidate) == "AsyncCollectiveStart" and instruction.name in candidate.operands
        for candidate in computation.values()
    )
    return inside_fusion and not starts_here and _channel(instruction) in started


def _collective(name: str, instruction: Instruction, computation: dict[str, Instruction], times: int) -> Collective:
    kind = instruction.opcode.removesuffix("-start")
    if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"  # the compiler's fusion of an all-reduce and of the slice that a chip keeps
    size = sum(shape_bytes(computation[operand].shape) for operand in instruction.operands)
    groups = _groups(instruction.attributes)
    return Collective(
        kind=kind,
        operand_bytes=size,
        group=max((len(set(group)) for group in groups), default=1),
        times=times,
        between_slices=False,
    )


def _groups(attributes: str) -> list[list[int]]:
    """The chips of each group, from a list, an iota ([2,4]<=[4,2]T(1,0)) or the pairs of a permutation."""
    if match := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}\s]*\})\}", attributes):
        return [[int(chip) for chip in group.split(",")] for group in re.findall(r"\{([\d,\s]+)\}", match[1])]
    if match := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        shape, sides = ([int(side) for side in match[part].split(",")] for part in (1, 2))
        chips = np.arange(math.prod(sides)).reshape(sides)
        if match[3]:
            chips = chips.transpose([int(axis) for axis in match[3].split(",")])
        return [list(map(int, group)) for group in chips.reshape(shape)]
    return []


def _matrix_flops(instruction: Instruction, computation: dict[str, Instruction]) -> float:
    """2 x multiply-adds of a dot or a convolution, without those on padding."""
    ((_, result, _),) = leaves(instruction.shape)
    ((_, left, _),) = leaves(computation[instruction.operands[0]].shape)
    if instruction.opcode == "dot":
        match = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
        contracted = [left[int(axis)] for axis in match[1].split(",") if axis] if match else []
        return 2.0 * math.prod(result) * math.prod(contracted)
    ((_, kernel, _),) = leaves(computation[instruction.operands[1]].shape)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    assert labels, instruction
    left_labels, kernel_labels, result_labels = labels.groups()
    flops = 2.0 * kernel[kernel_labels.index("i")]
    for label, side in zip(result_labels, result, strict=True):
        flops *= side if label in "bf" else 1
    window = _window(instruction.attributes, sum(label.isdigit() for label in kernel_labels))
    for place, (stride, low, left_dilation, kernel_dilation, reverse) in enumerate(window):
        label = str(place)
        source, taps = left[left_labels.index(label)], kernel[kernel_labels.index(label)]
        outputs = np.arange(result[result_labels.index(label)])[:, None] * stride - low
        tap = np.arange(taps)[None, :]
        at = outputs + (taps - 1 - tap if reverse else tap) * kernel_dilation
        hits = (at >= 0) & (at % left_dilation == 0) & (at // left_dilation < source)
        flops *= int(hits.sum())
    return flops


def _window(attributes: str, dimensions: int) -> list[tuple[int, int, int, int, bool]]:
    """(stride, padding before, dilations of operand and kernel, reversed) for each spatial dimension."""
    match = re.search(r"window=\{([^}]*)\}", attributes)
    parts = dict(entry.split("=") for entry in match[1].split()) if match else {}

    def each(key: str, default: str) -> list[str]:
        return parts[key].split("x") if key in parts else [default] * dimensions

    return [
        (int(stride), int(pad.split("_")[0]), int(left), int(kernel), reverse == "1")
        for stride, pad, left, kernel, reverse in zip(
            each("stride", "1"), each("pad", "0_0"), each("lhs_dilate", "1"), each("rhs_dilate", "1"),
            each("rhs_reversal", "0"), strict=True,
        )
    ]  # fmt: skip


def _hbm_bytes(module: Module, instruction: Instruction, computation: dict[str, Instruction]) -> int:
    """Bytes that an instruction outside fusions reads from and writes to HBM."""
    opcode = instruction.opcode
    if opcode in FREE or opcode.endswith("-done") or opcode == "async-update":
        return 0
    if _target(instruction) in ("AllocateBuffer", "ConcatBitcast"):
        return 0
    operands = [computation[name] for name in instruction.operands if name in computation]
    if opcode.endswith("-start"):
        # (operands, result, ...): the shape repeats the operands
        results = leaves(instruction.shape)[len([leaf for operand in operands for leaf in leaves(operand.shape)]) :]
        moved = max((leaf_bytes(leaf) for leaf in results), default=0)
        places = [shape_bytes(operand.shape, hbm_only=True) > 0 for operand in operands[:1]]
        places += [not ELSEWHERE.search(leaf[2]) for leaf in results[:1]]
        return moved * sum(places)
    if opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * shape_bytes(instruction.shape, hbm_only=True)
    if opcode in ("dynamic-update-slice", "scatter"):
        update = operands[1 if opcode == "dynamic-update-slice" else -1]
        return 2 * shape_bytes(update.shape, hbm_only=True)
    if opcode == "fusion":
        return _fusion_bytes(module, instruction, operands)
    return shape_bytes(instruction.shape, hbm_only=True) + sum(shape_bytes(o.shape, hbm_only=True) for o in operands)


def _fusion_bytes(module: Module, fusion: Instruction, operands: list[Instruction]) -> int:
    name = CALLED.search(fusion.attributes)
    assert name, fusion
    inner = module.computations[name[1]]
    users: dict[str, list[Instruction]] = {}
    for instruction in inner.values():
        for name_of_operand in instruction.operands:
            users.setdefault(name_of_operand, []).append(instruction)
    total = 0
    parameters = {
        int(instruction.literal): instruction for instruction in inner.values() if instruction.opcode == "parameter"
    }
    for place, operand in enumerate(operands):
        whole = shape_bytes(operand.shape, hbm_only=True)
        uses = _through_bitcasts(parameters[place].name, users) if place in parameters else []
        touched = [_touched(use, came_from, whole) for use, came_from in uses]
        total += min(whole, sum(touched)) if uses else whole
    root = inner[module.roots[name[1]]]
    roots = [inner[element] for element in root.operands] if root.opcode == "tuple" else [root]
    for written, leaf in zip(roots, leaves(fusion.shape), strict=False):
        writer = written
        if ELSEWHERE.search(leaf[2]) or writer.opcode == "parameter":
            continue  # in another memory, or passed through
        while writer.opcode in ("bitcast", "copy") and writer.operands and writer.operands[0] in inner:
            writer = inner[writer.operands[0]]
        in_place = writer.opcode == "dynamic-update-slice"
        total += shape_bytes(inner[writer.operands[1]].shape) if in_place else leaf_bytes(leaf)
    return total


def _through_bitcasts(name: str, users: dict[str, list[Instruction]]) -> list[tuple[Instruction, str]]:
    """(instruction that uses a value inside a fusion, name that it uses), seen through bitcasts."""
    uses = []
    for use in users.get(name, []):
        uses += _through_bitcasts(use.name, users) if use.opcode == "bitcast" else [(use, name)]
    return uses


def _touched(use: Instruction, name: str, whole: int) -> int:
    """Bytes of an operand of `whole` bytes that one use reads."""
    if use.opcode in ("dynamic-slice", "slice", "gather") and use.operands[0] == name:
        return shape_bytes(use.shape)
    if use.opcode == "tuple" or (use.opcode == "dynamic-update-slice" and use.operands[0] == name):
        return 0
    return whole
