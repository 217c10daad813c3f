"""A chip is one entry of infra/chips.py: no other code spells its name, so a new chip is one entry."""

import ast
import re

from infra.chips import CHIPS, COMPILING_HOST, Chip, Tpu
from tests.contracts.test_layout import PACKAGES, modules, relative

HOME = "infra/chips.py"


def spellings(chip: Chip) -> set[str]:
    """Every word that means the chip or its machine."""
    words = {chip.name, chip.machine.name}
    if isinstance(chip, Tpu):
        return words | {chip.generation, chip.ray_name, chip.gke_accelerator}
    return words


def test_the_name_of_a_chip_is_spelled_in_one_file() -> None:
    """Examples of a topology (v5e:4x4) and of a constant (v5e.usd_per_chip_hour), and docstrings, are no spelling."""
    words = {COMPILING_HOST, *(word for chip in CHIPS.values() for word in spellings(chip))}
    either = "|".join(sorted(words, key=len, reverse=True))
    name = re.compile(rf"\b({either})\b(?!:\d+x|\.usd_per_chip_hour)", re.IGNORECASE)
    spelled = []
    for path in modules(*PACKAGES):
        tree = ast.parse(path.read_text())
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        spelled += [
            f"{relative(path)}:{node.lineno}: {match[0]}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
            if (match := name.search(node.value))
        ]
    assert {line.partition(":")[0] for line in spelled} == {HOME}, spelled
