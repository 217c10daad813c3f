"""The contents of a directory of checkpoints, by its records alone: whole checkpoints, and the rows of their tables.

Nothing here reads a tensor or imports torch, so that a question about the rows of a run does not wait for torch.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data import storage
from data.manifest import ListedUri, Shard
from data.sealed import seal, unseal
from training.errors import UserError

FORMAT = 2
COMMIT_NAME = "COMMIT"
TABLES_NAME = "TABLES"
DAMAGED_NAME = "DAMAGED"
STATE_NAME = "state.json"
DIRECTORY_PATTERN = re.compile(r"step-(\d{8})$")


class Damaged(UserError):
    """A checkpoint whose files differ from its COMMIT."""


def checkpoint_uri(root: str, step: int) -> str:
    """Directory of the checkpoint after `step` steps."""
    return storage.join(root, f"step-{step:08d}")


def read_commit(uri: str) -> dict[str, Any] | None:
    """The COMMIT of a checkpoint's directory; None if there is none, or if it does not match the files' sizes.

    Raises `Damaged` if `uri` is pinned by a manifest (`listed_checkpoint`) that lists another COMMIT.
    """
    if isinstance(uri, ListedUri):
        _check_listed(uri)
    return _valid_commit(uri, dict(storage.list_files(uri)))


def list_checkpoints(root: str) -> list[str]:
    """Directories of all committed checkpoints below `root`, oldest first."""
    return [uri for uri, _ in list_commits(root)]


def list_commits(root: str) -> list[tuple[str, dict[str, Any]]]:
    """(directory, COMMIT) of all committed checkpoints below `root`, oldest first.

    Cost: one listing, and one read for each checkpoint.
    """
    commits = ((uri, _valid_commit(uri, sizes)) for uri, sizes in list_directories(root))
    return [(uri, commit) for uri, commit in commits if commit is not None]


def list_tables(root: str) -> list[tuple[str, dict[str, Any]]]:
    """(directory, COMMIT or TABLES) of all checkpoints whose rows count, also of retired checkpoints, oldest first.

    The rows of an interim checkpoint count until there is a later checkpoint, which holds them again.
    """
    records = []
    for uri, sizes in list_directories(root):
        record = _valid_commit(uri, sizes) or _valid_commit(uri, sizes, TABLES_NAME)
        if record is not None:
            records.append((uri, record))
    return [entry for number, entry in enumerate(records) if number + 1 == len(records) or not entry[1].get("interim")]


def list_directories(root: str) -> list[tuple[str, dict[str, int]]]:
    """(directory, sizes of its files by name) of each directory of a checkpoint, oldest first."""
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
    """The table `name` ("metrics", "lineage") over all checkpoints, in step order; None without checkpoints.

    Raises `Damaged` if a file differs from the committed file.
    """
    tables = [parse_table(read_verified(uri, record, f"{name}.parquet")) for uri, record in list_tables(root)]
    return pa.concat_tables(tables) if tables else None


def read_verified(uri: str, record: Mapping[str, Any], name: str) -> bytes:
    """A file of a checkpoint, whose COMMIT or TABLES is `record`. Raises `Damaged` if the file has another sha256."""
    data = storage.read_bytes(storage.join(uri, name))
    if hashlib.sha256(data).hexdigest() != record["files"][name]["sha256"]:
        raise Damaged(
            f"{storage.join(uri, name)} is damaged: its sha256 differs from the sha256 in {COMMIT_NAME}; "
            "use another checkpoint of that run"
        )
    return data


def read_state(uri: str) -> dict[str, Any]:
    """The state.json of a checkpoint. Raises `Damaged` if the checkpoint is not committed, or the file was changed."""
    record = read_commit(uri)
    if record is None:
        raise Damaged(
            f"{uri} is not a committed checkpoint; name a directory step-XXXXXXXX that holds a {COMMIT_NAME} file"
        )
    return parse_state(uri, record)


def parse_state(uri: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """The state.json of a checkpoint whose COMMIT is `record`. Raises `Damaged` if it holds no JSON object."""
    try:
        state = json.loads(read_verified(uri, record, STATE_NAME))
    except (ValueError, RecursionError) as error:
        if isinstance(error, Damaged):
            raise
        raise Damaged(
            f"{storage.join(uri, STATE_NAME)} is not JSON ({error}); use another checkpoint of that run"
        ) from error
    if not isinstance(state, dict):
        raise Damaged(f"{storage.join(uri, STATE_NAME)} holds no JSON object; use another checkpoint of that run")
    return state


def entry_of(state: Mapping[str, Any], uri: str, *names: str) -> Any:
    """What the state of the checkpoint at `uri` holds under the nested names. Raises `Damaged` if it is not there."""
    value: Any = state
    for name in names:
        if not isinstance(value, Mapping) or name not in value:
            raise Damaged(
                f"{storage.join(uri, STATE_NAME)} has no {'.'.join(names)}; use another checkpoint of that run"
            )
        value = value[name]
    return value


def parse_table(data: bytes) -> pa.Table:
    """The table in the bytes of its file."""
    return pq.read_table(pa.BufferReader(data))


def _valid_commit(uri: str, sizes: Mapping[str, int], name: str = COMMIT_NAME) -> dict[str, Any] | None:
    """The record `name` of a checkpoint, if it exists and fits the files' sizes; otherwise None."""
    if name not in sizes:
        return None
    try:
        content = storage.read_bytes(storage.join(uri, name))
        commit: dict[str, Any] = unseal(content, json.loads(content))
        if commit["format"] != FORMAT or f"step-{commit['step']:08d}" != uri.rstrip("/").rpartition("/")[2]:
            return None
        complete = all(
            sizes.get(name) == file["bytes"]
            and isinstance(file["sha256"], str)
            and (not name.endswith(".safetensors") or isinstance(file["tensors"], dict))
            for name, file in commit["files"].items()
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, FileNotFoundError):
        return None
    return commit if complete and STATE_NAME in commit["files"] else None


def encode_record(document: Mapping[str, Any]) -> bytes:
    """The bytes of COMMIT or TABLES, with their own hash: the same bytes for the same document."""
    return seal(document)


def encode_state(document: Mapping[str, Any]) -> bytes:
    """The bytes of state.json, whose hash is in COMMIT."""
    return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()


def listed_checkpoint(root: str, step: int, files: Mapping[str, Shard]) -> str:
    """Directory of a checkpoint of a finished run, pinned to the COMMIT among `files` (name -> entry of the manifest).

    Whoever opens the directory then finds that checkpoint or an error, never another one that was put in its place.
    """
    uri = checkpoint_uri(root, step)
    name = f"{root.rstrip('/').rpartition('/')[2]}/{uri.rpartition('/')[2]}/{COMMIT_NAME}"
    if name not in files:
        raise Damaged(f"{uri} has no {COMMIT_NAME} in the manifest of its run; give another step, or run it again")
    return ListedUri(uri, files[name])


def _check_listed(uri: ListedUri) -> None:
    """Raises `Damaged` if the directory's COMMIT is not the one that the manifest lists."""
    try:
        sha256 = hashlib.sha256(storage.read_bytes(storage.join(uri, COMMIT_NAME))).hexdigest()
    except FileNotFoundError:
        return  # the caller says that there is no checkpoint
    if sha256 != uri.shard.sha256:
        raise Damaged(
            f"{storage.join(uri, COMMIT_NAME)} has sha256 {sha256[:16]}, and the manifest of its run lists "
            f"{uri.shard.sha256[:16]}: it is damaged, or the checkpoint of another step or run was put there; put the "
            "run's own back, or run it again"
        )
