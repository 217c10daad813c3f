"""Words per sentence of README.md, CONTRIBUTING.md and docs/*.md, per file and in all.

    python -m tests.programs.sentences                a line a page
    python -m tests.programs.sentences --longest 20   also the longest sentences, each with its page and line

How it counts: code blocks, tables and headings are left out. A list item is a sentence of its own, or as many as it has
full stops, and the line before a list ends there. A semicolon or a colon ends no sentence. A code span is one word, a
link has the words of its text. No page may have more than 25 words a sentence on average
(tests/contracts/test_prose.py).
"""

import argparse
import fnmatch
from collections.abc import Iterator

from tests.programs.markdown import blocks, pages, sentences, words_in

PAGES = ("README.md", "CONTRIBUTING.md", "docs/*.md")
MOST_WORDS = 25
"""Words a sentence, on average over a page and over all pages."""


def counted() -> dict[str, list[tuple[int, int, str]]]:
    """Page -> (words, line where its block begins, sentence) of each sentence."""
    return {
        name: [
            (words_in(sentence), block.first, sentence)
            for block in blocks(text)
            if block.is_prose
            for sentence in sentences(block)
        ]
        for name, text in pages().items()
        if any(fnmatch.fnmatch(name, pattern) for pattern in PAGES)
    }


def averages() -> dict[str, tuple[float, int, int]]:
    """Page, and "all" -> words a sentence, sentences, words."""
    lengths = {name: [words for words, *_ in every] for name, every in counted().items()}
    lengths["all"] = [words for of_page in lengths.values() for words in of_page]
    return {name: (sum(words) / max(1, len(words)), len(words), sum(words)) for name, words in lengths.items()}


def lines(longest: int) -> Iterator[str]:
    yield f"{'words a sentence':>16}  {'sentences':>9}  {'words':>6}"
    for name, (average, count, words) in averages().items():
        yield f"{average:16.1f}  {count:9,}  {words:6,}  {name}{' (too many)' if average > MOST_WORDS else ''}"
    every = [(*sentence, name) for name, of_page in counted().items() for sentence in of_page]
    for words, line, sentence, name in sorted(every, reverse=True)[:longest]:
        yield f"{words} words, {name}:{line}: {sentence}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.programs.sentences", description=__doc__.partition("\n")[0])
    parser.add_argument("--longest", type=int, default=0, metavar="N", help="print the N longest sentences too")
    for line in lines(parser.parse_args().longest):
        print(line)


if __name__ == "__main__":
    main()
