"""Bytes a token of each arm's targets in the cache's own format, measured on rows of the study."""

import json

from data import storage

NAME = "bytes.json"


def read_costs(directory: str) -> dict[str, float]:
    """Arm -> bytes a target; empty where nothing was measured."""
    uri = storage.join(directory, NAME)
    return json.loads(storage.read_bytes(uri)) if storage.exists(uri) else {}
