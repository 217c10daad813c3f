"""What extraction of the main content keeps of articles, and of what is around them.

Ours (data/main_content.py), resiliparse's own main content, all text of the page, and trafilatura's are asked the pages
of web_pages.py. Rules were chosen on one half of the pages. The other half is only measured. Recall is the share of an
article's tokens that are in the text, navigation the share of the tokens around it. A page of trafilatura's tests is
known by phrases instead. A code block is whole if its lines follow each other as they are, apart from one indentation.
A table is whole if the text of each cell is there.
"""

import json
import re
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from statistics import mean

from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.html import HTMLTree

from data import encoding, main_content
from tests.benchmarks import web_pages
from tests.benchmarks.step_speed import Row
from tests.benchmarks.web_pages import Page
from tests.programs.places import REPOSITORY, RIVAL_PYTHON

ROUNDS = 5
Figures = dict[str, list[float]]
"""name of a figure -> its value on each page that has it"""


def ours(markup: str) -> str:
    return main_content.text_of(HTMLTree.parse(markup), main_content=True)


def resiliparse(markup: str) -> str:
    return extract_plain_text(HTMLTree.parse(markup), main_content=True)


def everything(markup: str) -> str:
    return extract_plain_text(HTMLTree.parse(markup), main_content=False)


EXTRACTORS: dict[str, Callable[[str], str]] = {
    "ours": ours,
    "resiliparse, main content": resiliparse,
    "resiliparse, all text": everything,
}


def figures(page: Page, text: str) -> dict[str, float]:
    """The figures of one page and its text."""
    shares: dict[str, float] = {}
    kept = web_pages.tokens(text)
    line = " ".join(text.split())
    if page.article is not None:
        shares["recall"] = (page.article & kept).total() / page.article.total()
    elif page.phrases:
        shares["recall"] = mean(phrase in line for phrase in page.phrases)
    if page.article is not None and page.around:
        shares["navigation"] = (page.around & (kept - page.article)).total() / page.around.total()
    elif page.unwanted:
        shares["navigation"] = mean(phrase in line for phrase in page.unwanted)
    if page.code:
        shares["code"] = mean(_has_code(text, code) for code in page.code)
    if page.tables:
        shares["tables"] = mean(_has_cells(kept, cells) for cells in page.tables)
    return shares


def _has_code(text: str, code: str) -> bool:
    if code in text:
        return True
    first = code.split("\n", 1)[0]
    indents = set(re.findall(rf"(?m)^( +){re.escape(first)}", text))
    return any(textwrap.indent(code, indent, lambda line: True) in text for indent in indents)


def _has_cells(kept: Counter[str], cells: Sequence[str]) -> bool:
    return web_pages.tokens(" ".join(cells)) <= kept


def trafilatura(markups: Sequence[str]) -> dict[str, list[str]]:
    """Texts by the name of the settings; none if trafilatura is not installed (`make rival-env`)."""
    if not RIVAL_PYTHON.exists():
        return {}
    done = subprocess.run(
        [RIVAL_PYTHON, "-m", "tests.programs.trafilatura_run"],
        input=json.dumps(list(markups)), capture_output=True, text=True, cwd=REPOSITORY, check=False,
    )  # fmt: skip
    return dict(json.loads(done.stdout)) if done.returncode == 0 else {}


def measured(pages: Sequence[Page], half: str) -> dict[str, dict[str, Figures]]:
    """Figures by extractor and family ("all" for all of them) on one half of the pages."""
    chosen = [page for page in pages if page.half == half]
    markups = [encoding.decode(page.content, "", markup=True).text for page in chosen]
    texts = {name: [extract(markup) for markup in markups] for name, extract in EXTRACTORS.items()}
    texts |= trafilatura(markups)
    result: dict[str, dict[str, Figures]] = {}
    for name, answers in texts.items():
        for page, text in zip(chosen, answers, strict=True):
            for figure, value in figures(page, text).items():
                for family in ("all", page.family):
                    result.setdefault(name, {}).setdefault(family, {}).setdefault(figure, []).append(value)
    return result


def table(half: str) -> Iterator[str]:
    """Lines of the table of one half, in Markdown."""
    pages = web_pages.pages()
    yield web_pages.describe(page for page in pages if page.half == half)
    yield ""
    yield "| pages | who | recall | navigation | code | tables |"
    yield "|---|---|--:|--:|--:|--:|"
    result = measured(pages, half)
    for family in dict.fromkeys(["all", *(page.family for page in pages)]):
        for name, families in result.items():
            if shares := families.get(family):
                cells = (f"{mean(shares[key]):.3f}" if key in shares else "" for key in COLUMNS)
                yield f"| {family} | {name} | {' | '.join(cells)} |"


COLUMNS = ("recall", "navigation", "code", "tables")


def rows() -> Iterator[Row]:
    """Speed against resiliparse's own extraction on the same pages; the table of figures is printed before."""
    print("\n".join(table("figures")), flush=True)
    markups = [encoding.decode(page.content, "", markup=True).text for page in web_pages.pages()]
    size = sum(len(markup.encode()) for markup in markups)
    seconds = {}
    for extract in (ours, resiliparse):
        times = []
        for _ in range(ROUNDS):
            began = time.process_time()
            for markup in markups:
                extract(markup)
            times.append(time.process_time() - began)
        seconds[extract] = sorted(times)[ROUNDS // 2]
    yield Row(
        what="main content of web pages",
        ours=f"{size / 1e6 / seconds[ours]:,.1f} MB/s",
        rival=f"resiliparse: {size / 1e6 / seconds[resiliparse]:,.1f} MB/s",
        ratio=f"{seconds[resiliparse] / seconds[ours]:.2f}x",
    )


if __name__ == "__main__":
    print("\n".join(table(sys.argv[1] if len(sys.argv) > 1 else "figures")))
