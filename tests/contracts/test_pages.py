"""What a page names is there: links, paths, commands, flags; its figures are those that are kept beside it."""

import ast
import re
import shlex
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from infra.prices import CONSTANTS
from pipelines.account.amounts import speeds
from pipelines.study import arms
from tests.benchmarks import cost
from tests.programs import cost_by_file, documented
from tests.programs.markdown import IMAGE, LINK, SPAN, Block, blocks, pages
from tests.programs.places import REPOSITORY

PAGES = pages()
NAME_IN_FILE = re.compile(r"`((?:[\w/]+/)?\w+\.py)::(\w+)`")
FIGURE = re.compile(r"[-+]?\d[\d.,]*")
PRINTERS = re.compile(
    r"make (bench|study|fit-table|test)|python -m (tests\.|pipelines\.|pipelines (plan|account|fit) )"
)
"""Commands that print figures."""
TOP = {path.name for path in REPOSITORY.iterdir()}


def texts(text: str) -> Iterator[tuple[Block, str]]:
    """The blocks of a page that are no code, each as one line."""
    for block in blocks(text):
        if block.kind != "code":
            yield block, " ".join(line.strip() for line in block.lines)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    titles = [re.sub(r"^#+ ", "", line).lower() for block, line in texts(text) if block.kind == "heading"]
    return {re.sub(r" ", "-", re.sub(r"[^\w\- ]", "", title)) for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file_and_a_heading_that_are_there(page: str) -> None:
    for block, text in texts(PAGES[page]):
        targets = [match[2] for match in LINK.finditer(text)]
        targets += [match[0].rpartition("(")[2][:-1] for match in IMAGE.finditer(text)]
        for target in targets:
            where = f"{page}:{block.first}: {target}"
            if "://" in target:
                address = urlsplit(target)
                assert address.scheme == "https", where
                assert re.fullmatch(r"[\w-]+(\.[\w-]+)+", address.netloc), where
                continue
            name, _, anchor = target.partition("#")
            path = (REPOSITORY / page).parent / name if name else REPOSITORY / page
            assert path.exists(), where
            assert not anchor or anchor in anchors(path.read_text()), where


def paths_in(text: str) -> Iterator[tuple[int, str]]:
    """Code spans that look like a path of the repository, without what follows `::`."""
    for block, line in texts(text):
        for span in SPAN.findall(line):
            path = span.partition("::")[0]
            if re.fullmatch(r"[\w.*<>/-]+", path) and (
                path.partition("/")[0] in TOP if "/" in path else path.endswith((".py", ".md", ".yaml", ".toml"))
            ):
                yield block.first, path


@pytest.mark.parametrize("page", PAGES)
def test_every_path_is_there(page: str) -> None:
    """A name without a folder is that of a file anywhere; <stage> and * stand for anything."""
    for line, path in paths_in(PAGES[page]):
        pattern = re.sub(r"<[^>]*>", "*", path).rstrip("/")
        exists = any(REPOSITORY.glob(pattern)) if "/" in path else any(name_is_there(pattern))
        assert exists, f"{page}:{line}: {path}"


def name_is_there(pattern: str) -> Iterator[bool]:
    for folder in (".", "data", "docs", "infra", "model", "pipelines", "tests", "training"):
        glob = (REPOSITORY / folder).glob if folder == "." else (REPOSITORY / folder).rglob
        yield any(glob(pattern))


@pytest.mark.parametrize("page", PAGES)
def test_every_name_in_a_file_is_there(page: str) -> None:
    """`file.py::name` is a test, a class, a function or a constant of that file."""
    for file, name in (named for _, line in texts(PAGES[page]) for named in NAME_IN_FILE.findall(line)):
        path = REPOSITORY / file if "/" in file else next((REPOSITORY / "tests").rglob(file))
        body = ast.parse(path.read_text()).body
        names = {node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        names |= {
            target.id
            for node in body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        assert name in names, f"{page}: {file}::{name}"


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_one_that_its_program_takes(page: str) -> None:
    wrong = [
        f"{page}:{line}: {shlex.join(words)}: {problem}"
        for line, words in documented.commands_in(PAGES[page])
        if (problem := documented.problem(*words))
    ]
    assert wrong == []


@pytest.mark.parametrize("page", PAGES)
def test_every_flag_is_one_of_ours(page: str) -> None:
    flags = documented.known_flags() | {"full"}  # of pipelines.study
    for block, line in texts(PAGES[page]):
        for span in SPAN.findall(line):
            if match := re.match(r"--([\w.-]+)", span):
                assert match[1].replace("-", "_") in flags, f"{page}:{block.first}: {span}"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("make dmeo", "no target 'dmeo'"),
        ("python -m tests.benchmarks stpe", "knows no 'stpe'"),
        ("python -m tests.benchmark", "no program"),
        ("python -m pipelines plna demo", "no command 'plna'"),
        ("python -m pipelines run demo --teacher.stesp 3", "did you mean 'teacher.steps'"),
        ("python -m pipelines run collect_text --source", ""),
        ("python -m pipelines run train_model --steps 3", "--global-batch"),
        ("python -m pipelines fit --model gemma2_2b --topology v6e:4x4 --mesh data=5 --batch 16", "data=5"),
    ],
)
def test_a_wrong_command_is_found(command: str, said: str) -> None:
    problem = documented.problem(*shlex.split(command))
    assert said in problem
    assert bool(said) == bool(problem)


def has_figures(block: Block) -> bool:
    cells = [cell.strip() for line in block.lines for cell in line.split("|" if block.kind == "table" else "  ")]
    return block.kind in ("table", "code") and sum(FIGURE.match(cell) is not None for cell in cells) >= 4


@pytest.mark.parametrize("page", [name for name, text in PAGES.items() if any(map(has_figures, blocks(text)))])
def test_a_page_with_figures_names_the_command_that_prints_them(page: str) -> None:
    commands = [shlex.join(words) for _, words in documented.commands_in(PAGES[page])]
    assert any(PRINTERS.match(command) for command in commands), page


def test_what_a_corpus_costs_is_what_the_kept_figures_give() -> None:
    """docs/tpu-fit.md is compared with its cells in tests/pipelines/fit/test_fit.py."""
    assert PAGES["docs/data-costs.md"] == cost.page(), "run `python -m tests.benchmarks.cost > docs/data-costs.md`"


@pytest.mark.parametrize(
    "row", [line for line in PAGES["README.md"].splitlines() if re.match(r"\|.*\| `.*\(docs/", line)]
)
def test_a_figure_of_the_readme_is_on_the_page_that_it_names(row: str) -> None:
    """As it is, or with more digits."""
    figure, _, link = (cell.strip() for cell in row.strip("|").split("|"))
    page = PAGES[LINK.findall(link)[0][1].partition("#")[0]]
    numbers = {float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*(?:\.\d+)?", page)}
    for text in re.findall(r"(?<![\w.:])\d[\d,]*(?:\.\d+)?(?=x?(?![\w:]))", figure):
        digits = len(text.partition(".")[2])
        assert float(text.replace(",", "")) in {round(number, digits) for number in numbers}, f"{text} in {row}"


def test_speeds_of_the_page_on_costs_are_the_constants_of_a_plan() -> None:
    table = rows("docs/costs.md", "stage | MB/s a core")
    assert {name.strip("`"): float(row["MB/s a core"]) for name, row in table.items()} == {
        name.removeprefix("speed."): constant.value
        for name, constant in speeds().items()
        if name != "speed.decontaminate_text"  # taken like deduplication
    }
    stored = {"collect_text": "text.stored_fraction"}
    stored |= {"tokenize_text": "tokens.bytes_per_token", "pack_sequences": "sequences.bytes_per_token"}
    for name, constant in stored.items():
        assert float(table[f"`{name}`"]["stored, demo"]) == CONSTANTS[constant].value


def test_memory_on_the_page_of_benchmarks_is_that_of_the_kept_runs() -> None:
    table = {name.split("`")[1]: row for name, row in rows("docs/benchmarks.md", "stage | 1 x 64 MB").items()}
    for run in cost.load()["runs"]:
        driver, worker, seconds = map(float, re.findall(r"\d+", table[run["stage"]][f"{run['shards']} x 64 MB"]))
        assert (driver, worker) == (round(run["driver_bytes"] / 1e6), round(run["worker_bytes"] / 1e6))
        assert seconds == pytest.approx(run["cpu_seconds"] / run["text_bytes"] * 1e9, abs=0.56)


def test_files_that_have_a_cost_are_there_and_the_costliest_comes_first() -> None:
    costs = cost_by_file.committed()
    assert [file for file in costs if file not in ("collection", "others") and not (REPOSITORY / file).exists()] == []
    seconds = [cpu for _, cpu in costs.values()]
    assert seconds == sorted(seconds, reverse=True)


def rows(page: str, first: str) -> dict[str, dict[str, str]]:
    """First cell -> column -> cell, of the first table of a page whose head begins with the words `first`."""
    (table, *_) = [block for block in blocks(PAGES[page]) if block.lines[0].startswith(f"| {first}")]
    head, _, *body = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.lines]
    return {cells[0]: dict(zip(head, cells, strict=True)) for cells in body}


def test_the_plot_of_bytes_shows_the_figures_of_the_page() -> None:
    """docs/distillation/bytes.svg: a dot at (bytes a token, held-out loss), by the ticks of its axes."""
    plot = (REPOSITORY / "docs" / "distillation" / "bytes.svg").read_text()
    across = re.findall(r'class="tick" x="([\d.]+)" y="[\d.]+" text-anchor="middle">([\d.]+)<', plot)
    grid = [float(y) for y in re.findall(r'class="grid" d="M[\d.]+ ([\d.]+)H', plot)]
    up = list(zip(grid, re.findall(r'text-anchor="end">([\d.]+)<', plot), strict=True))
    dots = re.findall(r'class="dots \w+" d="M([\d.]+) ([\d.]+)h0"', plot)
    names = re.findall(r'class="end \w+" [^>]*>([^<]+)<', plot)
    losses = rows("docs/distillation.md", "arm | learns from")
    costs = rows("docs/distillation.md", "arm | calibration error")
    assert {*names} == {name for name, row in costs.items() if row["bytes a token"]}
    for name, dot in zip(names, dots, strict=True):
        for place, ticks, figure in (
            (dot[0], across, costs[name]["bytes a token"]),
            (dot[1], up, losses[name]["loss"]),
        ):
            (x0, v0), *_, (x1, v1) = [(float(x), float(value)) for x, value in ticks]
            value = v0 + (float(place) - x0) / (x1 - x0) * (v1 - v0)
            assert value == pytest.approx(float(figure), abs=0.002 * abs(v1 - v0)), name


def test_differences_of_the_study_are_those_of_its_losses() -> None:
    losses = rows("docs/distillation.md", "arm | learns from")
    assert [*losses] == [arm.name for arm in (*arms.arms(0.2), *arms.with_tails())]
    for row in losses.values():
        for baseline in ("full", "scratch"):
            if shown := row[f"minus {baseline}"]:
                difference = float(row["loss"]) - float(losses[baseline]["loss"])
                assert float(shown.split()[0]) == pytest.approx(difference, abs=1.01e-4)
