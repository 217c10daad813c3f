"""What commands print: text that is not ours, such as file names, prompts and damaged files, cannot steer a terminal.

`shown()` wraps stdout and stderr for a whole command, so every print, log line and traceback passes through `Visible`.
Only a bar and a table that we draw ourselves write to `unwrapped`, and they make their texts visible first.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast


def visible(text: str) -> str:
    """The text with control characters, escapes and lone surrogates spelled out, so that no terminal obeys them."""
    return "".join(
        character if character.isprintable() or character in "\n\t" else character.encode("unicode_escape").decode()
        for character in text
    )


def one_line(text: str) -> str:
    """The visible text with line breaks spelled out too, so that a name cannot print a line of its own."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


class Visible:
    """A text stream that writes visible text to another stream, in characters that the other stream can encode."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        self.stream.write(visible(text).encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def isatty(self) -> bool:
        """No terminal for others: what they would colour, this stream would spell out."""
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def unwrapped(stream: TextIO) -> TextIO:
    """The stream behind `stream`. Whoever writes to it makes every text visible that is not ours."""
    return stream.stream if isinstance(stream, Visible) else stream


def print_line(text: str) -> None:
    """Prints exactly one line to stdout."""
    print(one_line(text))


def wrap() -> None:
    """Wraps stdout and stderr for the rest of the process, so that the traceback of a bug is visible text too."""
    os.environ.setdefault("PYTHON_COLORS", "0")  # Python 3.13 colours a traceback by the file descriptor
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, Visible):
            setattr(sys, name, cast(TextIO, Visible(stream)))


@contextmanager
def shown() -> Iterator[None]:
    """Wraps stdout and stderr inside this context. A stream that was replaced meanwhile is left as it is."""
    before = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    wrap()
    inside = {name: getattr(sys, name) for name in before}
    try:
        yield
    finally:
        for name, stream in before.items():
            if getattr(sys, name) is inside[name]:
                setattr(sys, name, stream)
