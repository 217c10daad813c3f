"""Checkpoints: a directory `step-00000100/` that is valid exactly when its `COMMIT` says so.

    model.safetensors  optimizer.safetensors  [average.safetensors]
    state.json  metrics.parquet  lineage.parquet  COMMIT

Every file is published whole under its name (`data.storage`), and `COMMIT`, created exclusively as the last one,
holds the size and sha256 of each. A kill at any moment therefore leaves a complete checkpoint or one that readers
ignore and the next attempt overwrites. The two tables hold the rows since the checkpoint before. Large models are
split over several safetensors files of at most `SHARD_BYTES`. Nothing is ever unpickled. Cost: one copy of weights
and moments in host memory while saving.

A checkpoint that is no longer kept (`training/retention.py`) loses its tensors and keeps its tables, which `TABLES`
then lists in COMMIT's place. An interim one, saved because the machine was about to go, says so in COMMIT; the next
regular one holds its rows too and replaces it.
"""

import dataclasses
import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import safetensors.torch
from torch import Tensor

from data import storage
from data.shards import parquet_bytes, read_table
from model import Gemma2Config
from training.optim import OptimizerState

FORMAT = 1
COMMIT_NAME = "COMMIT"
TABLES_NAME = "TABLES"
DAMAGED_NAME = "DAMAGED"
STATE_NAME = "state.json"
SHARD_BYTES = 2 << 30
DIRECTORY_PATTERN = re.compile(r"step-(\d{8})$")
FIRST_PREFIX, SECOND_PREFIX, LOSS_NAME = "first.", "second.", "loss_statistics"

logger = logging.getLogger(__name__)


class Damaged(ValueError):
    """A checkpoint that is not what its COMMIT says."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint as read back, on the host."""

    uri: str
    """its directory"""
    step: int
    """steps that are done"""
    weights: dict[str, Tensor]
    """parameters by name"""
    optimizer: OptimizerState | None
    """the moments, or None where only the weights were asked for"""
    state: dict[str, Any]
    """the JSON state saved with it: identity of the run, tokens_seen, set-up"""
    interim: bool = False
    """whether the next regular checkpoint replaces it"""


def checkpoint_uri(root: str, step: int) -> str:
    """Directory of the checkpoint after `step` steps."""
    return storage.join(root, f"step-{step:08d}")


def save_checkpoint(
    root: str,
    *,
    step: int,
    weights: Mapping[str, Tensor],
    optimizer: OptimizerState | None,
    state: Mapping[str, Any],
    tables: Mapping[str, pa.Table],
    before_commit: Callable[[], None] | None = None,
    interim: bool = False,
) -> str:
    """Writes and commits the checkpoint of `step` below `root`; returns its directory.

    `tables` maps a name to a table kept as `name.parquet`. `before_commit` is called last and stops the commit by
    raising. `interim`: the next regular checkpoint replaces it. Raises RuntimeError where a committed checkpoint of
    this step is already there.
    """
    uri = checkpoint_uri(root, step)
    commit_uri = storage.join(uri, COMMIT_NAME)
    if read_commit(uri) is not None:
        raise RuntimeError(f"{uri} is committed already; two runs write to {root}: stop one of them")
    # Of a checkpoint that was damaged since, or retired: the run is back before it, so it writes it anew.
    for name in (commit_uri, storage.join(uri, TABLES_NAME)):
        storage.remove(name)

    files: dict[str, dict[str, Any]] = {}

    def write(name: str, data: bytes) -> None:
        storage.write_bytes(storage.join(uri, name), data)
        files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    for name, shard in _shards("model", weights):
        write(name, safetensors.torch.save(shard, metadata={"format": "pt"}))
    if optimizer is not None:
        moments = {FIRST_PREFIX + name: tensor for name, tensor in optimizer.first.items()}
        moments |= {SECOND_PREFIX + name: tensor for name, tensor in optimizer.second.items()}
        if optimizer.loss_statistics is not None:
            moments[LOSS_NAME] = optimizer.loss_statistics
        for name, shard in _shards("average", optimizer.average or {}):
            write(name, safetensors.torch.save(shard, metadata={"format": "pt"}))
        for name, shard in _shards("optimizer", moments):
            write(name, safetensors.torch.save(shard))
    for name, table in tables.items():
        write(f"{name}.parquet", parquet_bytes(table))
    write(STATE_NAME, encode_record(state))
    if before_commit is not None:
        before_commit()
    commit: dict[str, Any] = {"format": FORMAT, "step": step, "files": files}
    storage.create_exclusive(commit_uri, encode_record(commit | ({"interim": True} if interim else {})))
    return uri


def read_commit(uri: str) -> dict[str, Any] | None:
    """The COMMIT of a checkpoint's directory; None where there is none or it does not match the files' sizes."""
    return _valid_commit(uri, dict(storage.list_files(uri)))


def list_checkpoints(root: str) -> list[str]:
    """Directories of all committed checkpoints below `root`, oldest first."""
    return [uri for uri, sizes in _directories(root) if _valid_commit(uri, sizes) is not None]


def list_tables(root: str) -> list[tuple[str, dict[str, Any]]]:
    """(directory, COMMIT or TABLES) of all checkpoints whose rows count, retired ones too, oldest first.

    The rows of an interim checkpoint count until a later one is there, which holds them again.
    """
    found = []
    for uri, sizes in _directories(root):
        record = _valid_commit(uri, sizes) or _valid_commit(uri, sizes, TABLES_NAME)
        if record is not None:
            found.append((uri, record))
    return [one for number, one in enumerate(found) if number + 1 == len(found) or not one[1].get("interim")]


def _directories(root: str) -> list[tuple[str, dict[str, int]]]:
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


def load_newest(root: str, *, rename: bool = True) -> Checkpoint | None:
    """The newest checkpoint that is whole, down to the last bit; None where there is none.

    A damaged one is said in a line and passed over; with `rename` its COMMIT becomes DAMAGED, so that the run can
    write that step again.
    """
    for uri in reversed(list_checkpoints(root)):
        try:
            return load_checkpoint(uri)
        except Damaged as error:
            logger.warning("%s; continuing from the newest whole checkpoint before it", error)
            if rename:
                storage.move(storage.join(uri, COMMIT_NAME), storage.join(uri, DAMAGED_NAME))
    return None


def load_checkpoint(uri: str, *, with_optimizer: bool = True) -> Checkpoint:
    """Reads a checkpoint, with the sha256 of every file it reads checked.

    Raises ValueError where it is not committed, `Damaged`, a ValueError, where a file is not the committed one.
    """
    commit = read_commit(uri)
    if commit is None:
        raise Damaged(
            f"{uri} is not a committed checkpoint; name a directory step-XXXXXXXX that holds a {COMMIT_NAME} file"
        )

    def verified(name: str) -> bytes:
        data = storage.read_bytes(storage.join(uri, name))
        if hashlib.sha256(data).hexdigest() != commit["files"][name]["sha256"]:
            raise Damaged(
                f"{storage.join(uri, name)} is damaged: its sha256 is not the one in {COMMIT_NAME}; "
                "use another checkpoint of that run"
            )
        return data

    def tensors(kind: str) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name in sorted(commit["files"]):
            if name.startswith(kind) and name.endswith(".safetensors"):
                found |= safetensors.torch.load(verified(name))
        return found

    moments = tensors("optimizer") if with_optimizer else {}
    return Checkpoint(
        uri=uri,
        step=int(commit["step"]),
        weights=tensors("model"),
        optimizer=OptimizerState(
            first=_without(FIRST_PREFIX, moments),
            second=_without(SECOND_PREFIX, moments),
            average=tensors("average") or None,
            loss_statistics=moments.get(LOSS_NAME),
        )
        if with_optimizer
        else None,
        state=json.loads(verified(STATE_NAME)),
        interim=bool(commit.get("interim")),
    )


def check_same_model(uri: str, config: Gemma2Config) -> None:
    """Raises ValueError, naming what differs, where the checkpoint's model computes something else than `config`'s."""
    saved = json.loads(storage.read_bytes(storage.join(uri, STATE_NAME)))["identity"]["config"]["model"]
    wanted = dataclasses.asdict(config)
    differing = [
        f"{name} is {saved.get(name)!r} there and {wanted[name]!r} here"
        for name in wanted
        if name != "init_std" and saved.get(name) != wanted[name]  # weights that are there are not drawn
    ]
    if differing:
        raise ValueError(f"{uri} is of another model: {'; '.join(differing)}; give this run the sizes of that one")


def read_rows(root: str, name: str) -> pa.Table | None:
    """The table `name` ("metrics", "lineage") over all checkpoints, in step order; None without any."""
    tables = [read_table(storage.join(uri, f"{name}.parquet")) for uri, _ in list_tables(root)]
    return pa.concat_tables(tables) if tables else None


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


def _shards(kind: str, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Cuts tensors, in the order of their names, into files of at most SHARD_BYTES (or one tensor)."""
    shards: list[dict[str, Tensor]] = [{}]
    room = SHARD_BYTES
    for name in sorted(tensors):
        tensor = tensors[name].detach().contiguous()
        size = tensor.numel() * tensor.element_size()
        if size > room and shards[-1]:
            shards.append({})
            room = SHARD_BYTES
        shards[-1][name] = tensor
        room -= size
    for index, shard in enumerate(shards):
        yield (
            f"{kind}.safetensors" if len(shards) == 1 else f"{kind}-{index + 1:05d}-of-{len(shards):05d}.safetensors",
            shard,
        )


def _without(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def encode_record(document: Mapping[str, Any]) -> bytes:
    """The bytes of state.json, COMMIT and TABLES: the same for the same document."""
    return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()
