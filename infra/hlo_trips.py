"""The number of rounds of a loop of a compiled HLO module, found by running its counter.

The compiler notes the number on some loops only. The TPU has no 64-bit integers, so a 64-bit counter is two words of 32
bits, with a carry between them and a condition over both. So the few scalar operations behind the condition are
evaluated, once for each round.
"""

import operator
import re
from collections.abc import Callable, Mapping

from infra.hlo import CALLED, Instruction, Module

TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
MOST_ROUNDS = 100_000
ARITHMETIC: Mapping[str, Callable[[int, int], int]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
    "minimum": min,
    "maximum": max,
}
COMPARE: Mapping[str, Callable[[int, int], bool]] = {
    "EQ": operator.eq,
    "NE": operator.ne,
    "LT": operator.lt,
    "LE": operator.le,
    "GT": operator.gt,
    "GE": operator.ge,
}
SAME_VALUE = ("copy", "bitcast", "bitcast-convert", "convert", "reshape", "copy-start", "copy-done", "opt-barrier")


def trip_count(module: Module, computation: str, loop: Instruction) -> int | None:
    """Number of rounds of a `while` instruction of `computation`. None if the text does not determine it."""
    if match := TRIPS.search(loop.attributes):
        return int(match[1])
    try:
        return _rounds(module, computation, loop)
    except _Unknown:
        return None


class _Unknown(Exception):
    """A value does not follow from known scalars."""


def _rounds(module: Module, computation: str, loop: Instruction) -> int:
    outside = _Scalars(module, computation, {})
    state = {place: outside.element(loop.operands[0], place) for place in _counters(module, loop)}
    for rounds in range(MOST_ROUNDS):
        if not _Scalars(module, called(loop, "condition"), state).root():
            return rounds
        body = _Scalars(module, called(loop, "body"), state)
        state = {place: body.element(module.roots[called(loop, "body")], place) for place in state}
    raise _Unknown


def called(instruction: Instruction, role: str) -> str:
    """The computation that a loop runs as its `condition` or `body`."""
    match = re.search(rf"\b{role}=%?([\w.\-]+)", instruction.attributes)
    assert match, instruction
    return match[1]


def _counters(module: Module, loop: Instruction) -> set[int]:
    """Elements of the loop's state that the condition reads, and the elements from which these are computed."""
    condition = module.computations[called(loop, "condition")]
    body = module.computations[called(loop, "body")]
    counters = {_index(instruction) for instruction in condition.values() if instruction.opcode == "get-tuple-element"}
    result = body[module.roots[called(loop, "body")]]
    if result.opcode != "tuple":
        raise _Unknown
    waiting = list(counters)
    while waiting:
        names = [result.operands[waiting.pop()]]
        seen: set[str] = set()
        while names:
            instruction = body.get(names.pop())
            if instruction is None or instruction.name in seen or len(seen) > 1000:
                continue
            seen.add(instruction.name)
            if instruction.opcode == "get-tuple-element" and body[instruction.operands[0]].opcode == "parameter":
                if _index(instruction) not in counters:
                    counters.add(_index(instruction))
                    waiting.append(_index(instruction))
            else:
                names += instruction.operands
    return counters


def _index(instruction: Instruction) -> int:
    match = re.search(r"\bindex=(\d+)", instruction.attributes)
    assert match, instruction
    return int(match[1])


class _Scalars:
    """Integers of one computation, from the elements of its state or, for a fusion, from its parameters."""

    def __init__(self, module: Module, computation: str, given: Mapping[int, int], fused: bool = False) -> None:
        self.module, self.name, self.given, self.fused = module, computation, given, fused
        self.instructions = module.computations[computation]

    def root(self) -> int:
        return self.value(self.module.roots[self.name])

    def element(self, name: str, place: int) -> int:
        """Element `place` of a tuple."""
        instruction = self.instructions.get(name)
        if instruction is not None and instruction.opcode == "tuple":
            return self.value(instruction.operands[place])
        if instruction is not None and instruction.opcode == "parameter" and place in self.given and not self.fused:
            return self.given[place]
        if instruction is not None and instruction.opcode == "fusion":
            return self._inside(instruction).element(self.module.roots[_fused(instruction)], place)
        raise _Unknown

    def value(self, name: str) -> int:
        """The integer of an instruction. Raises _Unknown unless it follows from constants and the given integers."""
        instruction = self.instructions.get(name)
        if instruction is None or "[]" not in instruction.shape.partition("{")[0]:
            raise _Unknown
        opcode, operands = instruction.opcode, instruction.operands
        if opcode == "constant":
            return _literal(instruction)
        if opcode == "parameter" and self.fused and int(instruction.literal) in self.given:
            return self.given[int(instruction.literal)]
        if opcode == "get-tuple-element":
            return self.element(operands[0], _index(instruction))
        if opcode == "fusion":
            return self._inside(instruction).root()
        if opcode in SAME_VALUE:
            return _wrapped(self.value(operands[0]), instruction.shape)
        if opcode == "not":
            return _wrapped(~self.value(operands[0]), instruction.shape)
        if opcode == "select":
            return self.value(operands[1 if self.value(operands[0]) else 2])
        if opcode == "compare":
            direction = re.search(r"direction=(\w+)", instruction.attributes)
            assert direction, instruction
            return int(COMPARE[direction[1]](self.value(operands[0]), self.value(operands[1])))
        if opcode in ARITHMETIC:
            return _wrapped(ARITHMETIC[opcode](self.value(operands[0]), self.value(operands[1])), instruction.shape)
        raise _Unknown

    def _inside(self, fusion: Instruction) -> "_Scalars":
        given = {}
        for place, operand in enumerate(fusion.operands):
            try:
                given[place] = self.value(operand)
            except _Unknown:
                continue
        return _Scalars(self.module, _fused(fusion), given, fused=True)


def _fused(fusion: Instruction) -> str:
    match = CALLED.search(fusion.attributes)
    assert match, fusion
    return match[1]


def _literal(constant: Instruction) -> int:
    if constant.literal in ("true", "false"):
        return int(constant.literal == "true")
    if not re.fullmatch(r"-?\d+", constant.literal):
        raise _Unknown
    return int(constant.literal)


def _wrapped(number: int, shape: str) -> int:
    """`number` wrapped to the element type of `shape`."""
    match = re.match(r"\(?(pred|[su]\d+)\[\]", shape)
    if match is None:
        raise _Unknown
    if match[1] == "pred":
        return number & 1
    bits = int(match[1][1:])
    number %= 1 << bits
    return number - (1 << bits) if match[1][0] == "s" and number >> (bits - 1) else number
