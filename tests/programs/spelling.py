"""Words of the pages, docstrings and comments that neither an English dictionary nor our own list has.

    python -m tests.programs.spelling          prints each unknown word with the places where it stands
    python -m tests.programs.spelling --add    puts them on our list, tests/contracts/words.txt: read them first

The dictionary is the English one of `pyspellchecker`. Code spans, web addresses, abbreviations in capitals, names of
code and numbers are left out. Cost: about two seconds.
"""

import argparse
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from spellchecker import SpellChecker

from tests.programs.markdown import IMAGE, LINK, blocks, pages
from tests.programs.places import REPOSITORY

WORDS = REPOSITORY / "tests" / "contracts" / "words.txt"
"""Our own words, one a line, sorted, in small letters."""
PACKAGES = ("data", "infra", "model", "pipelines", "tests", "training")
CODE = re.compile(r"``.*?``|`[^`]*`|\w+://\S+", re.DOTALL)
WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")
TRIPLE = re.compile(r'(?:(?P<before>(?:\A|(?<=[^(,\[\n]\n)|(?<=\n\n))[ \t]*r?))?"""(?P<text>.*?)"""', re.DOTALL)
"""A string in triple quotes; `before` where it stands as a statement: a docstring."""
COMMENT = re.compile(r"(?:^|\s)#:?\s(.*)$")
NAME = re.compile(r"[\w.]*[\d_/\\@=<>{}$~|^+*#%&²][\S]*|\S*\w[.:(\[]\w\S*|--?\w\S*")
"""A number, a path, an assignment, a dotted name, a flag: no word."""
CAPITALS = re.compile(r"[A-Z]{2,}s?$|\w*[a-z][A-Z]\w*$|[A-Z]$")


def prose_of_page(text: str) -> Iterator[tuple[int, str]]:
    for block in blocks(text):
        if block.kind != "code":
            whole = "\n".join(block.lines)
            for offset, line in enumerate(_without_code(LINK.sub(r"\1", IMAGE.sub("", whole))).split("\n")):
                yield block.first + offset, line


def prose_of_code(source: str) -> Iterator[tuple[int, str]]:
    """Docstrings, also those below fields and constants, and comments. Found by their marks: to parse all our code
    would take seconds."""
    for match in TRIPLE.finditer(source):
        if match["before"] is not None:
            first = source.count("\n", 0, match.start("text")) + 1
            for offset, line in enumerate(_without_code(match["text"]).split("\n")):
                yield first + offset, line
    for number, line in enumerate(source.splitlines(), start=1):
        if comment := COMMENT.search(line):
            yield number, _without_code(comment[1])


def _without_code(text: str) -> str:
    """The text with its code blanked out; its lines stay as many."""
    return CODE.sub(lambda match: " " + "\n" * match[0].count("\n"), text)


def words_of(line: str) -> Iterator[str]:
    """The words of a line that a dictionary may know, in small letters."""
    for group in re.split(r"[\s|]+|(?<=\w)[-/](?=\w)|\*\*", line):
        word = group.strip("()[]{}'\".,;:!?*-#<>")
        if NAME.match(word) or CAPITALS.match(word):
            continue
        for part in WORD.findall(word):
            if len(part) > 1:
                yield part.removesuffix("'s").lower()


def own_words() -> list[str]:
    return WORDS.read_text().split() if WORDS.exists() else []


def unknown() -> dict[str, list[str]]:
    """Unknown word -> the places, `file:line`, where it stands."""
    places: dict[str, list[str]] = defaultdict(list)
    for name, text in pages().items():
        for line, prose in prose_of_page(text):
            for word in words_of(prose):
                places[word].append(f"{name}:{line}")
    for path in sorted(path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py")):
        for line, prose in prose_of_code(path.read_text()):
            for word in words_of(prose):
                places[word].append(f"{path.relative_to(REPOSITORY).as_posix()}:{line}")
    return {word: sorted(set(places[word])) for word in sorted(strange(places))}


def strange(words: Iterable[str]) -> set[str]:
    """The words that neither the dictionary nor our list has."""
    return set(SpellChecker(language="en").unknown(words)) - set(own_words())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.programs.spelling", description=__doc__.partition("\n")[0])
    parser.add_argument("--add", action="store_true", help="put the unknown words on our list")
    unknown_words = unknown()
    for word, places in unknown_words.items():
        print(f"{word}: {', '.join(places[:3])}{', ...' if len(places) > 3 else ''}")
    if parser.parse_args().add:
        Path(WORDS).write_text("\n".join(sorted({*own_words(), *unknown_words})) + "\n")


if __name__ == "__main__":
    main()
