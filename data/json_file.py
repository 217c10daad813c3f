"""A JSON file that is one value: an array of documents, a document, or an object that holds an array of documents.

And what tells JSON lines from other text.
"""

import codecs
import json
from collections.abc import Iterable
from typing import Any


def documents(content: bytes, text_field: str) -> list[bytes] | None:
    """The documents of a file, each as a line of JSON. None if the file is not one JSON value (JSON lines, say).

    What is in an array counts as a document, whatever it is: the reader of lines rejects it with a reason.
    """
    try:
        value = json.loads(content.removeprefix(codecs.BOM_UTF8))
    except (ValueError, RecursionError):  # ValueError: also not UTF-8, and endless integers
        return None
    entries = value if isinstance(value, list) else _inside(value, text_field)
    return [json.dumps(document).encode() for document in entries]


def _inside(value: Any, text_field: str) -> list[Any]:
    if not isinstance(value, dict) or text_field.partition(".")[0] in value or text_field in value:
        return [value]
    lists = [entry for entry in value.values() if isinstance(entry, list) and entry and isinstance(entry[0], dict)]
    return lists[0] if len(lists) == 1 else [value]


def begins_with_object(lines: Iterable[bytes]) -> bool:
    """Whether the first line that is not blank is a JSON object: a file that looks like JSON lines."""
    line = next((shown for line in lines if (shown := line.removeprefix(codecs.BOM_UTF8).strip())), b"")
    try:
        return line.startswith(b"{") and isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):  # ValueError: also not UTF-8, and endless integers
        return False
