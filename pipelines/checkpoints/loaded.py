"""A checkpoint, made a model on a device: what the stages share that run a trained model without training it."""

import functools
import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from data import schema, shards, storage
from data.absent import with_absent
from data.logits import CodecSpec
from data.manifest import Shard
from model import Gemma2, Gemma2Config
from model.sharding import MeshShape
from pipelines.engine.errors import UserError
from pipelines.engine.inputs import Input
from pipelines.engine.stage import Context
from training.backends.base import Backend
from training.backends.devices import resolve_device
from training.backends.make import make_backend
from training.checkpoints.records import COMMIT_NAME, TABLES_NAME, checkpoint_uri, list_tables, read_commit
from training.checkpoints.save_load import Checkpoint, load_checkpoint
from training.config import Device, check_mesh_device
from training.distill.teacher import weights_hash

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model ready to run."""

    model: Gemma2
    backend: Backend
    weights_sha256: str
    """over names, types, shapes and values of the weights"""
    step: int


def checkpoint_of(checkpoints: Input) -> str:
    """Directory of the checkpoint that the input names: of its @step, or of the last step."""
    steps = checkpoints.data.facts["steps"]
    step = checkpoints.step if checkpoints.step is not None else steps[-1]
    return checkpoint_uri(storage.join(checkpoints.directory, CHECKPOINTS), step)


def committed_files(directory: str) -> tuple[dict[str, tuple[Shard, ...]], list[int]]:
    """Of a run's directory: every committed file as a shard of its dataset, and the steps that have a checkpoint.

    Tables are datasets of their own names ("metrics", "lineage"), all else is "checkpoints". Of a checkpoint that is no
    longer kept its rows stay listed; those of an interim one are in the next regular one.
    """
    found: dict[str, list[Shard]] = {CHECKPOINTS: []}
    steps = []
    for uri, record in list_tables(storage.join(directory, CHECKPOINTS)):
        whole = read_commit(uri) is not None
        if whole:
            steps.append(int(record["step"]))
        folder = f"{CHECKPOINTS}/{uri.rpartition('/')[2]}"
        for name, file in sorted(record["files"].items()):
            table = name.endswith(".parquet")
            rows = shards.open_parquet(storage.join(uri, name)).metadata.num_rows if table else 0
            shard = Shard(name=f"{folder}/{name}", rows=rows, bytes=file["bytes"], sha256=file["sha256"])
            found.setdefault(name.removesuffix(".parquet") if table else CHECKPOINTS, []).append(shard)
        name = COMMIT_NAME if whole else TABLES_NAME
        data = storage.read_bytes(storage.join(uri, name))
        sha256 = hashlib.sha256(data).hexdigest()
        found[CHECKPOINTS].append(Shard(name=f"{folder}/{name}", rows=0, bytes=len(data), sha256=sha256))
    return {name: tuple(files) for name, files in found.items()}, steps


@functools.lru_cache(maxsize=1)
def open_model(uri: str, device: Device, mesh: str = "") -> LoadedModel:
    """Loads a checkpoint onto a device, or divides it over a `mesh` of chips; kept by the process for its next shard.

    Raises UserError where it is damaged.
    """
    if read_commit(uri) is None:
        raise UserError(f"{uri} is not a committed checkpoint; train it again, or name another step")
    checkpoint = load_checkpoint(uri, with_optimizer=False)
    model = Gemma2(model_config_of(checkpoint))
    model.load_state_dict(checkpoint.weights)
    model.requires_grad_(False)
    backend = make_backend(device, mesh=mesh)
    backend.place_model(model)
    return LoadedModel(
        model=model, backend=backend, weights_sha256=weights_hash(checkpoint.weights), step=checkpoint.step
    )


def model_config_of(checkpoint: Checkpoint) -> Gemma2Config:
    """The sizes of the checkpoint's model."""
    return Gemma2Config(**with_absent(Gemma2Config, checkpoint.state["identity"]["config"]["model"]))


def setup_of(context: Context) -> dict[str, str]:
    """What the bytes depend on besides config and inputs: where sums of products are taken."""
    device, mesh = resolve_device(context.resources.device), context.resources.mesh
    check_mesh_device(mesh, device)
    divided = bool(mesh) and MeshShape.parse(mesh).chips > 1
    return {"device": device, **({"mesh": MeshShape.parse(mesh).text} if divided else {})}


def check_same_tokenizer(one: Input, other: Input) -> None:
    """Raises UserError, naming both, where two inputs hold ids of different tokenizers."""
    first, second = one.manifest.tokenizer_sha256, other.manifest.tokenizer_sha256
    if first != second:
        raise UserError(
            f"{one.reference} is of tokenizer {first}, {other.reference} of tokenizer {second}; "
            "ids of one mean nothing to the other: give inputs that were made with one tokenizer"
        )


def codec_of(logits: Input) -> CodecSpec:
    """How to read cached logits, from their manifest. Raises UserError where they are of an earlier format."""
    facts = logits.data.facts
    try:
        return CodecSpec(**with_absent(CodecSpec, facts["codec"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{logits.reference} does not say how its bytes are to be read ({error}): it is of an earlier version; "
            "run cache_logits again"
        ) from error


def batches_of(uri: str, rows: int) -> "list[tuple[int, dict[str, np.ndarray]]]":
    """(rows that count, batch) over one SEQUENCES shard in order; the last batch is padded with empty rows to `rows`.

    All batches have one shape, so XLA compiles one program, and a row's numbers do not depend on how many follow it.
    """
    table = shards.read_table(uri, schema.SEQUENCES.names)
    columns: dict[str, Any] = {name: _matrix(table, name, kind) for name, kind in _COLUMNS.items()}
    columns["sequence_hash"] = table["sequence_hash"].to_numpy()
    columns["text_bytes"] = table["text_bytes"].to_numpy()
    found = []
    for start in range(0, table.num_rows, rows):
        batch = {name: column[start : start + rows] for name, column in columns.items()}
        count = len(batch["tokens"])
        if count < rows:
            batch = {name: _padded(part, rows) for name, part in batch.items()}
        found.append((count, batch))
    return found


_COLUMNS = {"tokens": np.int32, "segment_ids": np.int32, "positions": np.int32, "loss_mask": np.bool_}


def _padded(part: np.ndarray, rows: int) -> np.ndarray:
    return np.concatenate([part, np.zeros((rows - len(part), *part.shape[1:]), part.dtype)])


def _matrix(table: pa.Table, name: str, kind: Any) -> np.ndarray:
    flat = table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    # a copy: torch takes no array that it may not write to
    return np.array(flat.reshape(table.num_rows, -1) if table.num_rows else np.zeros((0, 0)), dtype=kind)
