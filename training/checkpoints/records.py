"""What lies in a directory of checkpoints, by its records alone: which are whole, and the rows of their tables.

No tensor is read here and torch is not imported: asking what a run has seen should not wait for it.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data import storage
from training.errors import UserError

FORMAT = 1
COMMIT_NAME = "COMMIT"
TABLES_NAME = "TABLES"
DAMAGED_NAME = "DAMAGED"
STATE_NAME = "state.json"
DIRECTORY_PATTERN = re.compile(r"step-(\d{8})$")


class Damaged(UserError):
    """A checkpoint that is not what its COMMIT says."""


def checkpoint_uri(root: str, step: int) -> str:
    """Directory of the checkpoint after `step` steps."""
    return storage.join(root, f"step-{step:08d}")


def read_commit(uri: str) -> dict[str, Any] | None:
    """The COMMIT of a checkpoint's directory; None where there is none or it does not match the files' sizes."""
    return _valid_commit(uri, dict(storage.list_files(uri)))


def list_checkpoints(root: str) -> list[str]:
    """Directories of all committed checkpoints below `root`, oldest first."""
    return [uri for uri, _ in list_commits(root)]


def list_commits(root: str) -> list[tuple[str, dict[str, Any]]]:
    """(directory, COMMIT) of all committed checkpoints below `root`, oldest first; one listing, one read for each."""
    commits = ((uri, _valid_commit(uri, sizes)) for uri, sizes in list_directories(root))
    return [(uri, commit) for uri, commit in commits if commit is not None]


def list_tables(root: str) -> list[tuple[str, dict[str, Any]]]:
    """(directory, COMMIT or TABLES) of all checkpoints whose rows count, retired ones too, oldest first.

    The rows of an interim checkpoint count until a later one is there, which holds them again.
    """
    records = []
    for uri, sizes in list_directories(root):
        record = _valid_commit(uri, sizes) or _valid_commit(uri, sizes, TABLES_NAME)
        if record is not None:
            records.append((uri, record))
    return [entry for number, entry in enumerate(records) if number + 1 == len(records) or not entry[1].get("interim")]


def list_directories(root: str) -> list[tuple[str, dict[str, int]]]:
    """(directory, its files' sizes by name), oldest first."""
    directories: dict[str, dict[str, int]] = {}
    for name, size in storage.list_files(root):
        directory, _, file = name.partition("/")
        if DIRECTORY_PATTERN.fullmatch(directory) and file:
            directories.setdefault(directory, {})[file] = size
    return [(storage.join(root, directory), sizes) for directory, sizes in sorted(directories.items())]


def latest_checkpoint(root: str) -> str | None:
    """Directory of the newest committed checkpoint below `root`, or None."""
    checkpoints = list_checkpoints(root)
    return checkpoints[-1] if checkpoints else None


def read_rows(root: str, name: str) -> pa.Table | None:
    """The table `name` ("metrics", "lineage") over all checkpoints, in step order; None without any.

    Raises `Damaged` if a file is not the committed one.
    """
    tables = [parse_table(read_verified(uri, record, f"{name}.parquet")) for uri, record in list_tables(root)]
    return pa.concat_tables(tables) if tables else None


def read_verified(uri: str, record: Mapping[str, Any], name: str) -> bytes:
    """A file of the checkpoint whose COMMIT or TABLES `record` is. Raises `Damaged` if its sha256 is another."""
    data = storage.read_bytes(storage.join(uri, name))
    if hashlib.sha256(data).hexdigest() != record["files"][name]["sha256"]:
        raise Damaged(
            f"{storage.join(uri, name)} is damaged: its sha256 is not the one in {COMMIT_NAME}; "
            "use another checkpoint of that run"
        )
    return data


def read_state(uri: str) -> dict[str, Any]:
    """The state.json of a checkpoint. Raises `Damaged` if the checkpoint is not committed, or the file another."""
    record = read_commit(uri)
    if record is None:
        raise Damaged(
            f"{uri} is not a committed checkpoint; name a directory step-XXXXXXXX that holds a {COMMIT_NAME} file"
        )
    state: dict[str, Any] = json.loads(read_verified(uri, record, STATE_NAME))
    return state


def parse_table(data: bytes) -> pa.Table:
    """A table out of the bytes of its file."""
    return pq.read_table(pa.BufferReader(data))


def _valid_commit(uri: str, sizes: Mapping[str, int], name: str = COMMIT_NAME) -> dict[str, Any] | None:
    """The record `name` of a checkpoint where it is there and fits the files' sizes."""
    if name not in sizes:
        return None
    try:
        commit: dict[str, Any] = json.loads(storage.read_bytes(storage.join(uri, name)))
        if commit["format"] != FORMAT or f"step-{commit['step']:08d}" != uri.rstrip("/").rpartition("/")[2]:
            return None
        complete = all(sizes.get(name) == file["bytes"] for name, file in commit["files"].items())
    except (ValueError, KeyError, TypeError, AttributeError, FileNotFoundError):
        return None
    return commit if complete and STATE_NAME in commit["files"] else None


def encode_record(document: Mapping[str, Any]) -> bytes:
    """The bytes of state.json, COMMIT and TABLES: the same for the same document."""
    return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()
