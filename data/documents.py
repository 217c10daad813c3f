"""JSON objects from users and from earlier runs: parsed, with an error that says what is wrong with them."""

import json
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
