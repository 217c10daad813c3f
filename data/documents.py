"""JSON objects: those of users and earlier runs parsed, with an error that says what is wrong, and metadata written."""

import json
import math
from typing import Any

from data.errors import UserError


def parse_object(content: bytes | str, where: str, advice: str) -> dict[str, Any]:
    """The JSON object in `content`. Raises UserError, which ends with `advice`, if there is none."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:  # ValueError: also not UTF-8, and endless integers
        raise UserError(f"{where} is not JSON ({error}); {advice}") from error
    if not isinstance(document, dict):
        raise UserError(f"{where} is JSON, but not an object of names and values; {advice}")
    return document


def lines_of(content: bytes) -> list[str]:
    """The lines of a UTF-8 file without their ends. Lines end at a newline only, not at U+2028, U+0085 or a form feed.

    A byte order mark is left out. Raises UnicodeDecodeError if the file is not UTF-8.
    """
    lines = content.decode("utf-8-sig").split("\n")
    return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]


def json_text(values: dict[str, Any]) -> str:
    """The values as strict JSON with sorted names. NaN, infinity and other types than JSON's become strings."""
    try:
        text = json.dumps(values, sort_keys=True, ensure_ascii=False, default=str, allow_nan=False)
    except (ValueError, TypeError):  # NaN or infinity; names of several types, which cannot be sorted
        text = json.dumps(_strict(values), sort_keys=True, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can hold only as an escape
        return json.dumps(json.loads(text), sort_keys=True)
    return text


def _strict(value: Any) -> Any:
    """The value with strings in place of what JSON has no notation for."""
    if isinstance(value, dict):
        return {str(name): _strict(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(entry) for entry in value]
    if value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)
