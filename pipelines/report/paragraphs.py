"""Paragraphs and list items of Markdown, wrapped as in all our pages: at 120 columns, a code span on one line."""

import re

WIDTH = 120
"""Columns of a line of prose, at most."""
ITEM = re.compile(r" *(?:[-*]|\d+\.) ")
UNBROKEN = re.compile(r"(?:`[^`]+`|[^\s`])+|`")
"""A code span and what touches it."""
WOULD_BEGIN_A_BLOCK = re.compile(r"(?:[-+*]|\d+[.)]|#+|[>|].*)$")


def wrapped(text: str) -> list[str]:
    """The lines of one paragraph or one list item, each as long as it may be. A list item keeps its indent."""
    item = ITEM.match(text)
    start = item[0] if item else text[: len(text) - len(text.lstrip())]
    words: list[str] = []
    for word in UNBROKEN.findall(text[len(start) :]):
        if words and WOULD_BEGIN_A_BLOCK.match(word):
            words[-1] += f" {word}"
        else:
            words.append(word)
    lines = [start + "".join(words[:1])]
    for word in words[1:]:
        if len(lines[-1]) + 1 + len(word) <= WIDTH:
            lines[-1] += f" {word}"
        else:
            lines.append(" " * len(start) + word)
    return lines


def paragraph(*sentences: str) -> str:
    """The sentences as one paragraph or list item with a newline at its end."""
    return "\n".join(wrapped(" ".join(sentences))) + "\n"
