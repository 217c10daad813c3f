"""Markdown pages as blocks of lines: what is prose in them, and its sentences.

    python -m tests.programs.markdown        wraps every paragraph and list item that has a line of over 120 columns

It knows what our pages use: fenced code, tables, headings, paragraphs and list items, with code spans, links and images
in them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipelines.report import paragraphs
from pipelines.report.paragraphs import ITEM, WIDTH
from tests.programs.places import REPOSITORY

SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
IMAGE = re.compile(r"!\[[^\]]*\]\([^)\s]*\)")
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]*)\)")
ENDS = re.compile(r"""(?<=[.!?])["')\]]*\s+(?![a-z])""")
SHORT_FORMS = ("e.g.", "i.e.", "cf.", "vs.", "al.")


@dataclass(frozen=True, kw_only=True)
class Block:
    """Lines of a page that belong together."""

    kind: Literal["code", "table", "heading", "item", "paragraph"]
    first: int
    """Number of the first line, from 1."""
    lines: tuple[str, ...]

    @property
    def is_prose(self) -> bool:
        return self.kind in ("item", "paragraph")


def pages() -> dict[str, str]:
    """Every page of the repository by its path: README, CONTRIBUTING, CHANGELOG and docs/."""
    paths = [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")]
    return {path.relative_to(REPOSITORY).as_posix(): path.read_text() for path in sorted(paths)}


def blocks(text: str) -> Iterator[Block]:
    """The blocks of a page in order; blank lines belong to none."""
    kind: Literal["code", "table", "heading", "item", "paragraph"] | None = None
    first, lines = 0, list[str]()
    fenced = False
    for number, line in enumerate(text.splitlines(), start=1):
        fence = line.lstrip().startswith("```")
        if fenced or fence:
            following = "code"
            starts = fence and not fenced
            fenced ^= fence
        elif not line.strip():
            following, starts = None, True
        elif line.startswith("#"):
            following, starts = "heading", True
        elif line.lstrip().startswith("|"):
            following, starts = "table", kind != "table"
        elif ITEM.match(line):
            following, starts = "item", True
        else:
            starts = kind not in ("item", "paragraph")
            following = "paragraph" if starts else kind
        if starts:
            if kind is not None:
                yield Block(kind=kind, first=first, lines=tuple(lines))
            first, lines = number, []
        kind = following
        lines.append(line)
    if kind is not None:
        yield Block(kind=kind, first=first, lines=tuple(lines))


def plain(text: str) -> str:
    """The text without its marks: a code span is one word, a link its text, an image nothing."""
    text = LINK.sub(r"\1", IMAGE.sub("", text))
    return SPAN.sub("Code", text).replace("**", "")


def sentences(block: Block) -> list[str]:
    """The sentences of a block of prose. A full stop, question or exclamation mark ends one, unless a small letter
    follows, and so does the end of the block."""
    text = " ".join(line.strip() for line in block.lines)
    mark = ITEM.match(text)
    whole = [""]
    for part in ENDS.split(plain(text[mark.end() :] if mark else text)):
        whole[-1] = f"{whole[-1]} {part}".strip()
        if not whole[-1].endswith(SHORT_FORMS):
            whole.append("")
    return [sentence for sentence in whole if words_in(sentence)]


def words_in(sentence: str) -> int:
    """Words of a sentence: what stands between blanks and has a letter or a digit."""
    return sum(any(map(str.isalnum, word)) for word in sentence.split())


def too_wide(block: Block) -> bool:
    """Whether a line of prose is wider than it may be and can be broken."""
    return block.is_prose and any(len(line) > WIDTH for line in block.lines) and wrapped(block) != block.lines


def wrapped(block: Block) -> tuple[str, ...]:
    """The lines of a block of prose, filled up to 120 columns."""
    first, *others = block.lines
    return tuple(paragraphs.wrapped(" ".join([first.rstrip(), *(line.strip() for line in others)])))


def rewrapped(text: str) -> str:
    """The page with every block wrapped that has a line that is too wide."""
    lines = text.splitlines()
    for block in reversed([*blocks(text)]):
        if too_wide(block):
            lines[block.first - 1 : block.first - 1 + len(block.lines)] = wrapped(block)
    return "\n".join(lines) + "\n"


def main() -> None:
    """Rewrites the pages of which a line is too wide."""
    for name, text in pages().items():
        if (new := rewrapped(text)) != text:
            Path(REPOSITORY, name).write_text(new)
            print(f"wrapped {name}")


if __name__ == "__main__":
    main()
