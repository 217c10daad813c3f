"""Loads a checkpoint as a model on a device, for the stages that run a trained model without training it."""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from data import schema, shards, storage
from data.manifest import Shard
from infra.warm_process import FORGET
from model import Gemma2, Gemma2Config
from pipelines.engine.config import from_dict
from pipelines.engine.errors import UserError
from pipelines.engine.inputs import Input
from pipelines.engine.stage import Context
from training.backends.base import Backend
from training.backends.devices import TPU_DEVICE, resolve_device
from training.backends.make import check_divides, check_setup, make_backend
from training.backends.names import Device
from training.checkpoints.records import (
    COMMIT_NAME,
    TABLES_NAME,
    entry_of,
    list_tables,
    listed_checkpoint,
    read_commit,
    read_state,
)
from training.checkpoints.save_load import Checkpoint, load_checkpoint
from training.config import ComputeType
from training.inputs import InputCheckpoint, InputDataset, TrainingInputs, check_one_tokenizer
from training.setup import Setup
from training.step import COMPUTE_TYPES

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model on its device, ready to run."""

    model: Gemma2
    backend: Backend
    weights_sha256: str
    """sha256 over names, types, shapes and values of the weights"""
    step: int
    uri: str
    """directory of the checkpoint"""


def checkpoint_of(checkpoints: Input) -> str:
    """The directory of the checkpoint that the input names by @step; default: the checkpoint of the last step.

    It is pinned to the COMMIT that the manifest lists. Raises UserError if the manifest lists none.
    """
    steps = checkpoints.data.facts["steps"]
    step = checkpoints.step if checkpoints.step is not None else steps[-1]
    files = {shard.name: shard for shard in checkpoints.data.shards}
    return listed_checkpoint(storage.join(checkpoints.directory, CHECKPOINTS), step, files)


def committed_files(directory: str) -> tuple[dict[str, tuple[Shard, ...]], list[int]]:
    """Every committed file below a run's directory as a shard of its dataset, and the steps that have a checkpoint.

    Tables are datasets of their own names ("metrics", "lineage"), all other files belong to "checkpoints". The tables
    of a checkpoint that was removed stay listed. The rows of an interim checkpoint are in the next regular checkpoint.
    """
    datasets: dict[str, list[Shard]] = {CHECKPOINTS: []}
    steps = []
    for uri, record in list_tables(storage.join(directory, CHECKPOINTS)):
        complete = read_commit(uri) is not None
        if complete:
            steps.append(int(record["step"]))
        folder = f"{CHECKPOINTS}/{uri.rpartition('/')[2]}"
        for name, file in sorted(record["files"].items()):
            table = name.endswith(".parquet")
            rows = shards.open_parquet(storage.join(uri, name)).metadata.num_rows if table else 0
            shard = Shard(name=f"{folder}/{name}", rows=rows, bytes=file["bytes"], sha256=file["sha256"])
            datasets.setdefault(name.removesuffix(".parquet") if table else CHECKPOINTS, []).append(shard)
        name = COMMIT_NAME if complete else TABLES_NAME
        data = storage.read_bytes(storage.join(uri, name))
        sha256 = hashlib.sha256(data).hexdigest()
        datasets[CHECKPOINTS].append(Shard(name=f"{folder}/{name}", rows=0, bytes=len(data), sha256=sha256))
    return {name: tuple(files) for name, files in datasets.items()}, steps


@functools.lru_cache(maxsize=1)
def open_model(uri: str, setup: Setup, dtype: ComputeType = "float32", decodes: bool = False) -> LoadedModel:
    """Loads a checkpoint onto a device, or divides it over a mesh of chips. The process keeps it for its next shard.

    Weights and activations have the type `dtype`, whatever type the checkpoint stores. A model that `decodes` generates
    text; any other runs whole rows.

    Raises UserError if the checkpoint is damaged, or if this machine's chips are not those of the mesh.
    """
    if read_commit(uri) is None:
        raise UserError(f"got {uri}, which is no committed checkpoint; train it again, or give another step")
    backend = make_backend(setup)  # before gigabytes are read: this machine may not have the chips of the mesh
    checkpoint = load_checkpoint(uri, with_optimizer=False)
    with torch.device("meta"):  # no memory, and no draw, for weights that are replaced
        model = Gemma2(model_config_of(checkpoint))
    weights = {name: tensor.to(COMPUTE_TYPES[dtype]) for name, tensor in checkpoint.weights.items()}
    model.load_state_dict(weights, assign=True)
    model.requires_grad_(False)
    backend.place_model(model, decodes=decodes)
    return LoadedModel(
        model=model,
        backend=backend,
        weights_sha256=checkpoint.weights_sha256,
        step=checkpoint.step,
        uri=str(uri),
    )


FORGET.append(open_model.cache_clear)


def model_config_of(checkpoint: Checkpoint) -> Gemma2Config:
    """The sizes of the checkpoint's model. Raises UserError if the checkpoint does not have them all."""
    return from_dict(
        Gemma2Config, entry_of(checkpoint.state, checkpoint.uri, "identity", "config", "model"), checkpoint.uri
    )


def model_config_at(uri: str) -> Gemma2Config:
    """The sizes of a checkpoint's model, from its records: before Ray starts, and without a tensor.

    Raises UserError if the checkpoint is not committed, or if its record does not have all sizes.
    """
    return from_dict(Gemma2Config, entry_of(read_state(uri), uri, "identity", "config", "model"), uri)


def checked_checkpoint(checkpoints: Input, setup: Setup, forward_rows: int | None = None) -> tuple[str, Gemma2Config]:
    """The directory of the checkpoint that the input names, and the sizes of its model.

    Raises UserError if the checkpoint is not committed, or if the mesh cannot divide the model or the rows of a forward
    pass: what the records decide is refused before Ray starts.
    """
    uri = checkpoint_of(checkpoints)
    sizes = model_config_at(uri)
    check_divides(setup, sizes, forward_rows)
    return uri, sizes


def device_of(context: Context) -> Device:
    """The device that a stage computes on. For `auto`, a TPU of the cluster comes first, then this machine decides."""
    if context.resources.device == "auto" and context.session.has_tpu():
        return TPU_DEVICE
    return resolve_device(context.resources.device)


def setup_of(context: Context) -> Setup:
    """The set-up of a model that is not trained: one process, on one device or over a mesh of its chips.

    Raises UserError if the device cannot divide a model over that mesh.
    """
    setup = Setup(device=device_of(context), mesh=context.resources.mesh_shape)
    check_setup(setup)
    return setup


def training_inputs(inputs: Mapping[str, Sequence[Input]]) -> TrainingInputs:
    """The inputs of a stage that trains, in the form that the training package takes."""
    initial, carried = ([checkpoint_given(entry) for entry in inputs.get(name, ())] for name in ("initial", "from"))
    return TrainingInputs(
        sequences=tuple(dataset_given(entry) for entry in inputs["sequences"]),
        logits=tuple(dataset_given(entry) for entry in inputs.get("logits", ())),
        initial=initial[0] if initial else None,
        carried=carried[0] if carried else None,
    )


def dataset_given(entry: Input) -> InputDataset:
    """A dataset in the form that the training package takes."""
    return InputDataset(
        reference=entry.reference,
        content=entry.content(),
        tokenizer_sha256=entry.manifest.tokenizer_sha256,
        uris=tuple(entry.uris()),
        shard_rows=tuple(shard.rows for shard in entry.data.shards),
        facts=entry.data.facts,
    )


def checkpoint_given(entry: Input) -> InputCheckpoint:
    """A checkpoint in the form that the training package takes."""
    return InputCheckpoint(
        reference=entry.reference,
        content=entry.content(),
        tokenizer_sha256=entry.manifest.tokenizer_sha256,
        uri=checkpoint_of(entry),
    )


def check_same_tokenizer(first: Input, second: Input) -> None:
    """Raises UserError, naming both inputs, if they hold ids of different tokenizers."""
    check_one_tokenizer(dataset_given(first), dataset_given(second))


def batches_of(uri: str, rows: int) -> "list[tuple[int, dict[str, np.ndarray]]]":
    """(number of real rows, batch) over one SEQUENCES shard in order; the last batch is padded to `rows` by empty rows.

    All batches have one shape. So XLA compiles one program, and a row's results do not depend on the rows after it.
    """
    table = shards.read_table(uri, schema.SEQUENCES)
    columns: dict[str, Any] = {name: _matrix(table, name, kind) for name, kind in _COLUMNS.items()}
    columns["sequence_hash"] = table["sequence_hash"].to_numpy()
    columns["text_bytes"] = table["text_bytes"].to_numpy()
    batches = []
    for start in range(0, table.num_rows, rows):
        batch = {name: column[start : start + rows] for name, column in columns.items()}
        count = len(batch["tokens"])
        if count < rows:
            batch = {name: _padded(part, rows) for name, part in batch.items()}
        batches.append((count, batch))
    return batches


_COLUMNS = {"tokens": np.int32, "segment_ids": np.int32, "positions": np.int32, "loss_mask": np.bool_}


def _padded(part: np.ndarray, rows: int) -> np.ndarray:
    return np.concatenate([part, np.zeros((rows - len(part), *part.shape[1:]), part.dtype)])


def _matrix(table: pa.Table, name: str, kind: Any) -> np.ndarray:
    flat = table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    # a copy, because torch takes no read-only array
    return np.array(flat.reshape(table.num_rows, -1) if table.num_rows else np.zeros((0, 0)), dtype=kind)
