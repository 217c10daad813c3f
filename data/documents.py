"""JSON objects that users write and runs leave: read with a sentence for what is wrong with them."""

import json
from typing import Any

from data.errors import UserError


def parse_object(content: bytes | str, where: str, advice: str) -> dict[str, Any]:
    """The JSON object that `content` holds. Raises UserError, which ends with `advice`, where it holds none."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:  # ValueError: also bytes that are no UTF-8, and endless integers
        raise UserError(f"{where} is not JSON ({error}); {advice}") from error
    if not isinstance(document, dict):
        raise UserError(f"{where} holds JSON, but no object of names and values; {advice}")
    return document
