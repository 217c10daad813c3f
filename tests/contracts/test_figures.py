"""A figure with a unit has a source: a command on its page that prints it, a constant of the code, or a list here."""

import functools
import json
import re
import shlex
from collections.abc import Iterator

import pytest

from data.schema import is_heldout
from data.tokenizer import train_tokenizer
from infra.kubernetes import Request
from infra.prices import CONSTANTS, Prices
from pipelines.account.amounts import estimate, speeds
from pipelines.cluster import kubernetes
from pipelines.engine import lease
from pipelines.recipes import registry as recipes
from tests.contracts.test_pages import PAGES, PRINTERS, rows
from tests.programs import documented
from tests.programs.markdown import LINK, blocks
from tests.programs.places import REPOSITORY
from training.worker import elastic, restarts

UNIT = r"seconds?|minutes?|hours?|days?|[kKMGT]i?B|bytes|nats|tCO2e|USD|ms|times|tok/s|MB/s|GFLOP/s|%"
FIGURE = re.compile(rf"(?<![\w.`:/@-])\d[\d,]*(?:\.\d+)?(?:x|(?: million|M)?\s?(?:{UNIT}))(?!\w)")

MEASURED = {
    "8.6 GB": "du -sh .venv",
    "0.3 GB": "du -sh .venv-rival",
    "197 seconds": "make demo",
    "4 seconds": "make demo",
    "735 seconds": "make test",
}
"""figure in the text of README.md that a machine decides -> command that measures it; the page names the machine"""

PRINTED = {
    "docs/benchmarks.md": r"Machine: x86_64, 2 cores",
    "docs/costs.md": r"Machine: x86_64, 2 cores",
    "docs/data-costs.md": r"Machine: x86_64, 2 cores",
    "docs/distillation.md": r"Machine: x86_64, 2 cores",
    "docs/logits.md": r"Machine: x86_64, 2 cores",
    "docs/numerics.md": r"\(x86_64, 2 cores",
    "docs/testing.md": r"\(x86_64, 2 cores",
    "docs/tpu-fit.md": r"libtpu",
}
"""page whose figures are what a command on it printed -> where the page names the machine or the compiler"""

HISTORY = {"CHANGELOG.md"}
"""page whose figures were true of their versions"""


@functools.cache
def held() -> dict[str, str]:
    """Figure -> what decides it today, for every page that is no page of figures."""
    heldout = sum(map(is_heldout, (f"{number:032x}" for number in range(0, 1 << 128, 1 << 114)))) / (1 << 14)
    deadline = kubernetes.Command.deadline_hours
    prices = Prices(constants={**CONSTANTS, **speeds()})
    stored = sum(amount.stored_bytes for amount in estimate(recipes.load("demo"), prices))
    distill = rows("docs/costs.md", "recipe")["`gemma2_2b_distill`"]
    return {
        f"{lease.HEARTBEAT_SECONDS} seconds": "the lease's heartbeat",
        f"{lease.STALE_SECONDS} seconds": "the lease is free",
        f"{elastic.RESIZE_SECONDS:.0f} seconds": "another size is considered",
        f"{elastic.SAVE_SECONDS:.0f} seconds": "a resize waits for a checkpoint",
        f"{elastic.MISSED_SECONDS:.0f} seconds": "a missed size is not tried again",
        f"{restarts.ORPHANS_SECONDS:.0f} seconds": "the controller's processes end",
        "1 second": "training/worker/warm.py: the first pause",
        f"{heldout * 100:.0f} %": "held-out documents",
        f"{deadline} hours": "--deadline-hours",
        f"{CONSTANTS['logits.bytes_per_id'].value} bytes": "an id of a cache",
        f"{stored / 1e9:.1f} GB": "plan demo --prices default",
        f"{distill['tCO2e']} tCO2e": "docs/costs.md",
        f"{distill['USD']} USD": "docs/costs.md",
        f"{Request.retries} times": "a failed job is tried again",
    }


def figures(text: str) -> Iterator[str]:
    for block in blocks(text):
        if block.kind == "code":
            continue
        for line in block.lines if block.kind == "table" else (" ".join(line.strip() for line in block.lines),):
            if block.kind != "table" or not any("docs/" in target for _, target in LINK.findall(line)):
                yield from FIGURE.findall(line)


@pytest.mark.parametrize("page", sorted(PAGES.keys() - PRINTED.keys() - HISTORY))
def test_a_figure_is_held_by_the_code_or_listed_with_its_command(page: str) -> None:
    """A row of a table with a link into docs/ is compared with that page (test_pages.py)."""
    sources = held() | (MEASURED if page == "README.md" else {})
    assert [figure for figure in figures(PAGES[page]) if figure not in sources] == []


def rows_of_figures(page: str) -> dict[str, list[str]]:
    """Heading -> the rows of its tables that have a number, as they stand on a page of figures."""
    heading, by_heading = "", {}
    for line in PAGES[page].splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("|") and re.search(r"\d", line):
            by_heading.setdefault(heading, []).append(" ".join(line.strip("|").split()))
    return by_heading


@pytest.mark.parametrize("page", PRINTED)
def test_the_tables_of_a_page_of_figures_are_as_they_were_printed(page: str) -> None:
    """A row changes when its command has been run again.

    Then `python -m tests.contracts.test_figures > tests/golden/figures.json` stores it.
    """
    stored = json.loads((REPOSITORY / "tests" / "golden" / "figures.json").read_text())
    assert rows_of_figures(page) == stored[page]


@pytest.mark.parametrize("page", PRINTED)
def test_a_page_of_figures_names_the_command_and_the_machine(page: str) -> None:
    commands = [shlex.join(words) for _, words in documented.commands_in(PAGES[page])]
    assert any(PRINTERS.match(command) for command in commands)
    assert re.search(PRINTED[page], PAGES[page])


def test_what_is_listed_stands_in_the_readme_with_its_command_and_machine() -> None:
    first, _, _ = PAGES["README.md"].partition("## Use it")
    assert sorted(MEASURED.keys() - {*figures(first)}) == []
    assert [command for command in MEASURED.values() if f"`{command}`" not in first] == []
    assert "x86_64, 2 cores" in first


def test_pages_name_the_pieces_of_the_demos_tokenizer_and_text_that_is_enough_for_them() -> None:
    (pieces,) = [step.config.vocab_size for step in recipes.load("demo").steps if step.stage == "train_tokenizer"]
    page = PAGES["docs/laptop-to-pod.md"]
    (named, enough) = re.findall(r"The demo's tokenizer of ([\d,]+) pieces needs some ([\d,]+) characters", page)[0]
    assert named == f"{pieces:,}"
    assert f"wants {pieces:,} pieces" in PAGES["docs/troubleshooting.md"]
    assert f"less than {enough} characters" in PAGES["README.md"]
    text = "".join(PAGES[name] for name in sorted(PAGES) if name.startswith("docs/"))[: int(enough.replace(",", ""))]
    train_tokenizer([text], pieces)
    with pytest.raises(ValueError, match="too few: they give at most"):
        train_tokenizer([text[: len(text) // 2]], pieces)


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("It takes 330 seconds, 8.5 GB and 40 % of 2.17x.", ["330 seconds", "8.5 GB", "40 %", "2.17x"]),
        ("A 2048 x 2048 product, version 2.9.1, v6e:4x4, `7 seconds`, 13 words", []),
        ("1,083,673,008 bytes for 0.64 million USD, 0.6M USD", ["1,083,673,008 bytes", "0.64 million USD", "0.6M USD"]),
    ],
)  # fmt: skip
def test_a_figure_is_a_number_with_a_unit(text: str, seen: list[str]) -> None:
    assert [*figures(text)] == seen


if __name__ == "__main__":
    print(json.dumps({page: rows_of_figures(page) for page in PRINTED}, indent=1, sort_keys=True, ensure_ascii=False))
