"""The lines that docs/troubleshooting.md quotes are those that the product prints, all before Ray would start."""

import re

import pytest

from tests.programs.places import REPOSITORY
from tests.programs.troubleshooting import BLOCK, PAGE, commands_of, printed

TEXT = PAGE.read_text()
QUOTED = {
    command: text.strip()
    for block in BLOCK.findall(TEXT)
    for command, text in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)
}


def test_ten_errors_are_quoted() -> None:
    assert len(re.findall(r"^## \d+\. ", TEXT, re.MULTILINE)) == len(BLOCK.findall(TEXT)) == 10
    assert list(QUOTED) == commands_of(TEXT)


@pytest.mark.parametrize("command", list(QUOTED))
def test_a_quoted_error_is_the_one_that_is_printed(command: str) -> None:
    assert printed(command) == QUOTED[command], "python -m tests.programs.troubleshooting writes it into the page"


def test_the_readme_leads_there() -> None:
    assert "docs/troubleshooting.md" in (REPOSITORY / "README.md").read_text()
