"""The words of a command line that a command takes before tyro reads the rest, and the words that it refuses."""

import re
from collections.abc import Sequence

from data import storage
from pipelines.engine.errors import UserError
from pipelines.engine.inputs import DEFAULT_ROOT


def take(words: list[str], flag: str) -> tuple[list[str], str | None]:
    """`words` without `flag VALUE` (or `flag=VALUE`), and the value; None if the flag is not given."""
    for place, word in enumerate(words):
        if word.startswith(flag + "="):
            return words[:place] + words[place + 1 :], word.partition("=")[2]
        if word == flag:
            if place + 1 == len(words) or words[place + 1].startswith("--"):
                raise UserError(f"got {flag} without a value; give a value after it")
            return words[:place] + words[place + 2 :], words[place + 1]
    return words, None


def take_root(words: list[str]) -> tuple[list[str], str]:
    """`words` without `--root ROOT`, and ROOT (default: `runs`)."""
    rest, root = take(words, "--root")
    if root is None:
        return rest, DEFAULT_ROOT
    if not root:
        raise UserError("got an empty --root; give a directory or gs://bucket/path")
    refuse_memory(root)
    storage.check_bucket(root)
    return rest, root


def refuse_loose(words: Sequence[str]) -> None:
    """Raises UserError for a word where a flag has to be."""
    for place, word in enumerate(words):
        if re.match("-[a-z_]{2}", word) or (place == 0 and not word.startswith("-")):
            raise UserError(f"got {word!r}, which is no flag; a flag is -- and the name of the field, then its value")


def refuse_memory(root: str) -> None:
    """Raises UserError for a root in this process's memory, which no worker sees and which ends with the process."""
    if not storage.is_shared(root):
        raise UserError(
            f"got --root {root!r}, which only this process sees and which ends with it; give a directory or "
            "gs://bucket/path"
        )
