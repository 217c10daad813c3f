"""Edits a JSON file of ours as someone would who falsifies it: its own hash fits again afterwards."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.sealed import SEAL, seal


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Applies `change` to the document in the file (an empty one if there is none), and writes it with its hash."""
    document = json.loads(path.read_text()) if path.exists() else {}
    document.pop(SEAL, None)
    change(document)
    path.write_bytes(seal(document))
