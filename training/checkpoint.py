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
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import safetensors.torch
from torch import Tensor

from data import storage
from data.shards import parquet_bytes
from model import Gemma2Config
from training.optim import OptimizerState
from training.records import (
    COMMIT_NAME,
    DAMAGED_NAME,
    FORMAT,
    STATE_NAME,
    TABLES_NAME,
    checkpoint_uri,
    encode_record,
    list_checkpoints,
    read_commit,
)

SHARD_BYTES = 2 << 30
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
        if optimizer.average is not None:
            for name, shard in _shards("average", optimizer.average):
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
