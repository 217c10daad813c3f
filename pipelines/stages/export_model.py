"""Writes a checkpoint as a Hugging Face directory: safetensors, config, tokenizer, and a model card from the manifests.

`AutoModelForCausalLM.from_pretrained(RUN/model)` of `transformers` gives the same logits as our model. `import_model`
reads the same weights back, bit for bit. The stage runs in the driver, without Ray. Cost: the model in memory once,
and one file of weights beside it.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from data import storage
from data.absent import absent
from data.hf_tokenizer import tokenizer_files
from data.manifest import Dataset
from data.shards import write_file
from data.tokenizer import BOS, END_OF_TURN, EOS, PAD, Tokenizer
from model import Gemma2, hf_files
from model.hf_weights import SHARD_BYTES, assemble, fit_vocabulary
from pipelines.checkpoints.loaded import checkpoint_of, model_config_of
from pipelines.checkpoints.model_card import Exported, model_card
from pipelines.engine.declaration import WHOLE_MODEL_GIGABYTES, Declaration
from pipelines.engine.errors import UserError
from pipelines.engine.inputs import Read
from pipelines.engine.stage import Context, Outcome
from training.checkpoints.save_load import load_checkpoint

VERSION = 2
READS = {
    "checkpoint": Read(help="checkpoint to export", dataset="checkpoints"),
    "tokenizer": Read(help="tokenizer of the checkpoint", dataset="tokenizer", file_allowed=True),
    "evaluations": Read(
        help="evaluations of the checkpoint, for the model card", dataset="metrics", many=True, optional=True
    ),
}
WRITES = ("model",)
DECLARES = Declaration(lease=True, driver_gigabytes=WHOLE_MODEL_GIGABYTES)


@dataclass(frozen=True, kw_only=True)
class Config:
    """How the weights are stored, and the facts of the model card that no manifest holds."""

    name: str = "Gemma 2"
    """Title of the model card."""
    license: str = absent("")
    """License of the weights, by its Hugging Face name (apache-2.0, gemma); empty: the card names no license."""
    dtype: Literal["stored", "float32", "bfloat16"] = "stored"
    """Type of the weights; `stored`: as in the checkpoint."""
    vocab_size: int | None = absent(None)
    """Rows of the embedding: 256000 leaves out the 128 padding rows of the paper's table, 256128 appends 128 rows of
    zeros; None: as in the checkpoint."""
    shard_bytes: int = SHARD_BYTES
    """Largest size of one file of weights, in bytes; a single larger tensor has a file to itself."""

    def __post_init__(self) -> None:
        if self.shard_bytes < 1:
            raise UserError(f"shard_bytes is {self.shard_bytes}; it must be at least 1 (default: {SHARD_BYTES})")
        if not self.name.strip():
            raise UserError("name is empty; give the model card a title")


def run(context: Context, config: Config) -> Outcome:
    """Raises UserError for another tokenizer than the checkpoint's, and if the model card lacks a manifest."""
    checkpoint, (uri,) = context.input("checkpoint"), context.input("tokenizer").uris()
    tokenizer_model = storage.read_bytes(uri)
    tokenizer = Tokenizer.from_bytes(tokenizer_model, uri)
    trained_with = checkpoint.manifest.tokenizer_sha256
    if trained_with != tokenizer.sha256:
        raise UserError(
            f"got tokenizer {tokenizer.sha256} ({uri}), but {checkpoint.reference} was trained with {trained_with}; "
            "give the tokenizer that it was trained with"
        )
    model, step = _model(checkpoint_of(checkpoint), config)
    weights = list(model.parameters())
    root = context.directory.rstrip("/").rsplit("/", 2)[0]
    card = model_card(
        Exported(
            name=config.name,
            license=config.license,
            parameters=sum(tensor.numel() for tensor in weights),
            config=model.config,
            dtype=str(weights[0].dtype).removeprefix("torch."),
            tokenizer_sha256=tokenizer.sha256,
            tokenizer_vocab_size=tokenizer.vocab_size,
        ),
        checkpoint,
        step,
        context.inputs.get("evaluations", []),
        root,
    )

    def files() -> Iterator[tuple[str, bytes]]:
        yield "README.md", card.encode()
        yield "generation_config.json", generation_config()
        yield from tokenizer_files(tokenizer_model)
        yield from hf_files(model, shard_bytes=config.shard_bytes)

    write = context.changes.write
    written = [write_file(context.directory, f"model/{name}", data, write=write) for name, data in files()]
    facts = {"vocab_size": model.config.vocab_size, "step": step}
    return Outcome(datasets={"model": Dataset(shards=tuple(written), facts=facts)}, tokenizer_sha256=tokenizer.sha256)


def _model(uri: str, config: Config) -> tuple[Gemma2, int]:
    """The checkpoint's model in the form to be written, on the host, and its step."""
    checkpoint = load_checkpoint(uri, with_optimizer=False)
    shapes = {name: tuple(tensor.shape) for name, tensor in checkpoint.weights.items()}
    sizes = model_config_of(checkpoint)
    model = assemble(fit_vocabulary(sizes, shapes, config.vocab_size, Path(uri)), checkpoint.weights)
    if config.dtype != "stored":
        model.to(getattr(torch, config.dtype))
    return model.requires_grad_(False), checkpoint.step


def generation_config() -> bytes:
    """A config that ends a text at the same tokens as `generate_text`."""
    document = {"bos_token_id": BOS, "eos_token_id": [EOS, END_OF_TURN], "pad_token_id": PAD}
    return (json.dumps(document, indent=2) + "\n").encode()
