"""JSON files of ours that decide something: each holds the sha256 of its own text, so a changed byte is found.

    seal(document) -> bytes with a line "self_sha256", written as 64 zeros while the hash is taken
    unseal(bytes)  -> the document; SealError if the text has another hash

The hash covers the bytes, not the values. So reading costs one pass over the text, and the order of names, white space
and numbers are covered too.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from data.errors import UserError

SEAL = "self_sha256"
"""name of the line with the file's own hash"""
_ZEROS = b"0" * 64
# One space, the indentation of the outermost names, and a real newline, which no JSON string holds.
_LINE = re.compile(rb'\n "self_sha256": "([0-9a-f]{64})"')


class SealError(UserError):
    """A missing seal, or the seal of another text; who reads the file adds its name."""


def seal(document: Mapping[str, Any]) -> bytes:
    """The bytes of a JSON file with the document and its own sha256: the same bytes for the same document."""
    sealed = {**document, SEAL: _ZEROS.decode()}
    text = (json.dumps(sealed, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
    return _LINE.sub(b'\n "self_sha256": "%s"' % hashlib.sha256(text).hexdigest().encode(), text)


def unseal(content: bytes, document: dict[str, Any]) -> dict[str, Any]:
    """The document that was parsed from `content`, without its seal.

    Raises SealError if there is no seal, or if it is the seal of another text.
    """
    sealed_as = document.pop(SEAL, None)
    line = _LINE.search(content)
    if line is None or sealed_as is None:
        raise SealError(f"it has no line {SEAL}")
    start, end = line.span(1)
    if hashlib.sha256(content[:start] + _ZEROS + content[end:]).hexdigest() != sealed_as:
        raise SealError(f"its text was changed after it was written: {SEAL} is the hash of another text")
    return document


def unsealed(content: bytes, document: dict[str, Any], where: str, advice: str) -> dict[str, Any]:
    """`unseal`, for a file that may have no seal, because an earlier version or a person wrote it.

    Raises UserError, which ends with `advice`, if its seal is damaged or that of another text.
    """
    near = [name for name in document if _differing(name, SEAL) <= 1]  # a flipped bit in the name of the line
    if not near:
        return document
    try:
        return unseal(content, document)
    except SealError as error:
        raise UserError(f"{where} is damaged, or was edited: {error}; {advice}") from error


def _differing(name: str, other: str) -> int:
    same = sum(first == second for first, second in zip(name, other, strict=False))
    return max(len(name), len(other)) - same
