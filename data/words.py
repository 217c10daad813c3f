"""Words and sentences as the quality heuristics count them: two linear regular expressions, no model, any language
that writes spaces.

A word is a run of letters, digits and underscores (apostrophes inside belong to it), or one other character that is no
white space. A sentence ends in a run of . ! ? and closing quotes before white space, or with the text.
"""

import re

_WORD = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")
_SENTENCE_END = re.compile("[.!?\u2026\u3002\uff01\uff1f]+[\"'\u2019\u201d)\\]]*(?:\\s+|$)")


def split_words(text: str) -> list[str]:
    """The words of a text, in order."""
    return _WORD.findall(text)


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, in order, each with the white space after it."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    if not ends or ends[-1] < len(text):
        ends.append(len(text))
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False) if start < end]
