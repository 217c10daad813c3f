"""Checkpoints: a directory `step-00000100/` is a valid checkpoint exactly if its `COMMIT` fits its files.

    model.safetensors  optimizer.safetensors  [average.safetensors]
    state.json  metrics.parquet  lineage.parquet  COMMIT

Every file is published whole under its name (`data.storage`). `COMMIT` is created last and exclusively, and holds the
size and sha256 of each file, and a digest of each tensor in pieces (`training/checkpoints/digests.py`). The manifest of
a finished run lists the sha256 of COMMIT itself, and readers compare it. So a kill at any moment leaves either a
complete checkpoint or a directory that readers ignore and the next attempt overwrites. The two tables hold the rows
since the previous checkpoint. Large models are split over several safetensors files, which several workers may write
(`training/checkpoints/files.py`). Nothing is ever unpickled. Cost: one copy of weights and moments in host memory while
saving, shared by the workers that write.

A checkpoint that is no longer kept (`training/checkpoints/retention.py`) loses its tensors and keeps its tables, which
`TABLES` then lists instead of COMMIT. An interim checkpoint, saved because the run was asked to stop, is marked in
COMMIT; the next regular checkpoint holds its rows too and replaces it.
"""

import dataclasses
import hashlib
import logging
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import safetensors.torch
from torch import Tensor

from data import storage
from data.absent import with_absent
from data.changes import Changes
from data.shards import parquet_bytes
from model import Gemma2Config
from training.checkpoints.digests import tensor_digest, weights_sha256
from training.checkpoints.files import (
    FIRST_PREFIX,
    LOSS_NAME,
    SECOND_PREFIX,
    Writer,
    collect_notes,
    leave_note,
    remove_notes,
)
from training.checkpoints.records import (
    COMMIT_NAME,
    DAMAGED_NAME,
    FORMAT,
    STATE_NAME,
    TABLES_NAME,
    Damaged,
    checkpoint_uri,
    encode_record,
    encode_state,
    entry_of,
    list_checkpoints,
    parse_state,
    parse_table,
    read_commit,
    read_state,
    read_verified,
)
from training.errors import StoppedError, UserError
from training.optim import OptimizerState

logger = logging.getLogger(__name__)


ALONE = Writer()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint that was read back to the host."""

    uri: str
    """Directory of the checkpoint."""
    step: int
    """Number of steps that are done."""
    weights: dict[str, Tensor]
    """Parameters by name."""
    optimizer: OptimizerState | None
    """Moments; None if only the weights were requested."""
    state: dict[str, Any]
    """JSON state that was saved with the checkpoint: identity of the run, tokens_seen, set-up."""
    tables: dict[str, pa.Table]
    """Rows since the previous regular checkpoint, by kind ("metrics", "lineage")."""
    interim: bool = False
    """Whether the next regular checkpoint replaces this one."""
    weights_sha256: str = ""
    """Hash of names, types, shapes and values of the weights, from the digests in COMMIT."""


def save_checkpoint(
    root: str,
    *,
    step: int,
    weights: Mapping[str, Tensor],
    optimizer: OptimizerState | None,
    state: Mapping[str, Any],
    tables: Mapping[str, pa.Table],
    interim: bool = False,
    writer: Writer = ALONE,
    changes: Changes | None = None,
) -> str:
    """Writes and commits the checkpoint of `step` below `root`; returns its directory.

    `tables` maps a name to a table that is kept as `name.parquet`. `interim`: the next regular checkpoint replaces this
    one. `writer` is one of several writers, each with its part of the tensors; the first writer waits for the other
    writers and commits. `changes`: the way to write below `root` (default: without a lease). Raises StoppedError if a
    committed checkpoint of this step exists already and no lease says that it is ours to replace, LeaseLost if another
    driver has taken over.
    """
    uri = checkpoint_uri(root, step)
    changes = changes or Changes(directory=root)
    commit_uri = storage.join(uri, COMMIT_NAME)
    if writer.rank == 0 and changes.lease_uri is None and read_commit(uri) is not None:
        raise StoppedError(f"{uri} is committed already: two runs write to {root}; stop one of the two")
    # Records of a checkpoint that was damaged or retired since: the run is back before it, and writes it anew.
    for name in (commit_uri, storage.join(uri, TABLES_NAME)) if writer.rank == 0 else ():
        changes.remove(name)

    files: dict[str, dict[str, Any]] = {}

    def write(name: str, data: bytes, **also: Any) -> None:
        changes.write(storage.join(uri, name), data)
        files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), **also}

    tensors = _by_file_names(weights, optimizer)
    sizes = writer.sizes or {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    for name, members in writer.files(sizes):
        shard = {member.partition("/")[2]: tensors[member].detach().contiguous() for member in members}
        data = safetensors.torch.save(shard, metadata=None if name.startswith("optimizer") else {"format": "pt"})
        write(name, data, tensors={member: tensor_digest(tensor) for member, tensor in shard.items()})
    if writer.rank > 0:
        leave_note(changes, uri, writer, files)
        return uri
    for name, table in tables.items():
        write(f"{name}.parquet", parquet_bytes(table))
    write(STATE_NAME, encode_state(state))
    if writer.count > 1:
        files |= collect_notes(uri, writer)
        remove_notes(changes, uri)
    commit: dict[str, Any] = {"format": FORMAT, "step": step, "files": dict(sorted(files.items()))}
    changes.create(commit_uri, encode_record(commit | ({"interim": True} if interim else {})))
    return uri


def load_newest(root: str, *, rename: bool = True, changes: Changes | None = None) -> Checkpoint | None:
    """The newest checkpoint that is whole, down to the last bit; None if there is none.

    A damaged checkpoint is logged in one line and skipped; with `rename` its COMMIT becomes DAMAGED, so that the run
    can write that step again.
    """
    for uri in reversed(list_checkpoints(root)):
        try:
            return load_checkpoint(uri)
        except Damaged as error:
            logger.warning("%s; continuing from the newest whole checkpoint before it", error)
            if rename:
                own = changes or Changes(directory=root)
                own.write(storage.join(uri, DAMAGED_NAME), storage.read_bytes(storage.join(uri, COMMIT_NAME)))
                own.remove(storage.join(uri, COMMIT_NAME))
    return None


def load_checkpoint(uri: str, *, with_optimizer: bool = True) -> Checkpoint:
    """Reads a checkpoint, and checks the sha256 of every file that it reads.

    Raises `Damaged`, a UserError, if the checkpoint is not committed, or if a file differs from the committed file.
    """
    commit = read_commit(uri)
    if commit is None:
        raise Damaged(
            f"{uri} is not a committed checkpoint; name a directory step-XXXXXXXX that holds a {COMMIT_NAME} file"
        )

    def tensors(kind: str) -> dict[str, Tensor]:
        loaded: dict[str, Tensor] = {}
        for name in sorted(commit["files"]):
            if name.startswith(kind) and name.endswith(".safetensors"):
                loaded |= safetensors.torch.load(read_verified(uri, commit, name))
        return loaded

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
        state=parse_state(uri, commit),
        tables={
            name.removesuffix(".parquet"): parse_table(read_verified(uri, commit, name))
            for name in commit["files"]
            if name.endswith(".parquet")
        },
        interim=bool(commit.get("interim")),
        weights_sha256=weights_sha256(
            {
                member: digest
                for name, file in commit["files"].items()
                if name.startswith("model") and name.endswith(".safetensors")
                for member, digest in file["tensors"].items()
            }
        ),
    )


def check_same_model(uri: str, config: Gemma2Config) -> None:
    """Raises UserError, naming the differences, if the checkpoint's model computes something else than `config`'s."""
    saved = with_absent(type(config), entry_of(read_state(uri), uri, "identity", "config", "model"))
    wanted = dataclasses.asdict(config)
    differing = [
        f"{name} is {saved.get(name)!r} there and {wanted[name]!r} here"
        for name in wanted
        if name != "init_std" and saved.get(name) != wanted[name]  # the weights exist, so none are drawn
    ]
    if differing:
        raise UserError(f"{uri} has another model: {'; '.join(differing)}; give this run the sizes of that model")


def _by_file_names(weights: Mapping[str, Tensor], optimizer: OptimizerState | None) -> dict[str, Tensor]:
    """The tensors as `kind/name`."""
    tensors = {f"model/{name}": tensor for name, tensor in weights.items()}
    if optimizer is not None:
        tensors |= {f"optimizer/{FIRST_PREFIX}{name}": tensor for name, tensor in optimizer.first.items()}
        tensors |= {f"optimizer/{SECOND_PREFIX}{name}": tensor for name, tensor in optimizer.second.items()}
        tensors |= {f"average/{name}": tensor for name, tensor in (optimizer.average or {}).items()}
        if optimizer.loss_statistics is not None:
            tensors[f"optimizer/{LOSS_NAME}"] = optimizer.loss_statistics
    return tensors


def _without(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
