"""Parses the text of a compiled HLO module into computations of instructions.

`infra/hlo_trips.py` counts the rounds of its loops, and `infra/hlo_account.py` adds up its work. Cost: one pass over a
few megabytes of text.
"""

import math
import re
from dataclasses import dataclass

BITS = {"pred": 8, "token": 0, "opaque": 0, "s4": 4, "u4": 4, "s2": 2, "u2": 2, "c64": 64, "c128": 128}
ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](\{[^{}]*\})?")
INSTRUCTION = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (.*)$")
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+)(?: \(.*\) -> .*)? \{$")
CALLED = re.compile(r"\b(?:calls|to_apply|true_computation|false_computation|called_computations)=%?([\w.\-]+)")
ELSEWHERE = re.compile(r"S\([1-9]\d*\)")
"""mark in a layout of an array that is in another memory than HBM"""


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """One line of a computation."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    literal: str
    """text between the parentheses: a constant's value, a parameter's number"""


@dataclass(frozen=True, kw_only=True)
class Module:
    """Computations by name. Each has its instructions by name, in the order of the text."""

    entry: str
    computations: dict[str, dict[str, Instruction]]
    roots: dict[str, str]


def parse(text: str) -> Module:
    """Parses the text of a whole module. Asserts that it has an entry computation."""
    computations: dict[str, dict[str, Instruction]] = {}
    roots: dict[str, str] = {}
    entry, current = "", ""
    for line in text.splitlines():
        if line.endswith(" {") and " = " not in line.partition("(")[0] and (heading := COMPUTATION.match(line)):
            current = heading[2]
            computations[current] = {}
            entry = current if heading[1] else entry
        elif current and (match := INSTRUCTION.match(line)):
            instruction = _instruction(match[2], match[3])
            computations[current][instruction.name] = instruction
            if match[1]:
                roots[current] = instruction.name
        elif line == "}":
            current = ""
    assert entry, f"no ENTRY computation in {len(text)} characters of HLO text; give the text of a whole module"
    return Module(entry=entry, computations=computations, roots=roots)


def _instruction(name: str, rest: str) -> Instruction:
    end = _balanced(rest, 0) if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, _, inside = rest.partition("(")
    close = _balanced("(" + inside, 0) - 1
    words = inside[: close - 1]
    operands = tuple(re.findall(r"%([\w.\-]+)", words))
    return Instruction(
        name=name, shape=shape, opcode=opcode.strip(), operands=operands, attributes=inside[close:], literal=words
    )


def _balanced(text: str, start: int) -> int:
    """The place after the parenthesis that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place + 1
    raise AssertionError(f"unbalanced parentheses in HLO text: {text[start : start + 80]!r}")


def leaves(shape: str) -> list[tuple[str, tuple[int, ...], str]]:
    """(element type, sides, layout) of each array in a shape, tuples flattened."""
    arrays = []
    for kind, sides, layout in ARRAY.findall(shape):
        arrays.append((kind, tuple(int(side.lstrip("<=")) for side in sides.split(",") if side), layout))
    return arrays


def shape_bytes(shape: str, *, hbm_only: bool = False) -> int:
    """Bytes of all arrays in a shape, without padding. With `hbm_only`, only of arrays in HBM."""
    total = 0
    for kind, sides, layout in leaves(shape):
        if not (hbm_only and ELSEWHERE.search(layout)):
            total += math.ceil(math.prod(sides) * _bits(kind) / 8)
    return total


def leaf_bytes(leaf: tuple[str, tuple[int, ...], str]) -> int:
    return math.ceil(math.prod(leaf[1]) * _bits(leaf[0]) / 8)


def _bits(kind: str) -> int:
    if kind in BITS:
        return BITS[kind]
    match = re.match(r"[a-z]+(\d+)", kind)
    assert match is not None, f"unknown element type {kind!r} in HLO text"
    return int(match[1])
