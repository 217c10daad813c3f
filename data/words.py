"""Words, sentences, lines and paragraphs as the quality heuristics count them: linear in the text, no model, any
language that writes spaces.

A word is a run of letters, digits and underscores (apostrophes inside belong to it), or one other character that is no
white space. A sentence ends in a run of . ! ? and closing quotes before white space, or with the text.
"""

import re

_WORD = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")
_ENDS = "[.!?\u2026\u3002\uff01\uff1f]"
# A run of them is looked at once, from its first: a million dots before a letter would otherwise take hours.
_SENTENCE_END = re.compile(f"(?<!{_ENDS}){_ENDS}++[\"'\u2019\u201d)\\]]*+(?:\\s+|$)")


def split_words(text: str) -> list[str]:
    """The words of a text, in order."""
    return _WORD.findall(text)


def split_lines(text: str) -> list[str]:
    """The text cut at runs of newlines: re.split("\\n+", text), ten times as fast. An end of the text that is such a
    run leaves an empty line."""
    before = [""] if text.startswith("\n") else []
    after = [""] if text.endswith("\n") else []
    return [*before, *(line for line in text.split("\n") if line), *after] or [text]


def split_paragraphs(text: str) -> list[str]:
    """The text without white space around it, cut at runs of two newlines and more."""
    paragraphs = [part.lstrip("\n") for part in text.strip().split("\n\n")]
    return [part for part in paragraphs if part] or [""]


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, in order, each with the white space after it."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    if not ends or ends[-1] < len(text):
        ends.append(len(text))
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False) if start < end]
