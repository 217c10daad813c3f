"""Makes a checkpoint of published weights: a Hugging Face directory, or a google/gemma_pytorch `.ckpt`.

A Hugging Face directory has safetensors, or the older `pytorch_model.bin`. The weights keep their type and every bit.
The checkpoint is like those of `train_model`: later stages evaluate it, cache its logits, generate text with it and
train it on. The stage runs in the driver, without Ray. Cost: files on this disk are read three times (to hash them, to
take the tensors, and to see that the hash still holds), and the model is held in memory once.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data import storage
from data.absent import absent, present
from data.hf_tokenizer import MODEL_FILE
from data.manifest import Dataset
from data.shards import write_file
from data.tokenizer import Tokenizer
from model import Gemma2, Gemma2Config, load_gemma_pytorch, load_hf
from model.hf_config import config_from_hf
from model.weight_files import PICKLED_FILE, PICKLED_INDEX_FILE, read_json
from pipelines.account.costs import ImportCost
from pipelines.checkpoints.card_sections import imported_weights
from pipelines.checkpoints.loaded import CHECKPOINTS, committed_files
from pipelines.engine.declaration import WHOLE_MODEL_GIGABYTES, Declaration
from pipelines.engine.errors import UserError, exit_code
from pipelines.engine.inputs import Input, Read
from pipelines.engine.stage import Context, Outcome
from training.checkpoints.records import checkpoint_uri, read_commit
from training.checkpoints.save_load import save_checkpoint

CONFIG_FILE = "config.json"
HF_ENDINGS = (".safetensors", ".safetensors.index.json")
GOOGLE_ENDINGS = (".ckpt", ".bin", ".bin.index.json")


def belongs(config: Any, name: str) -> bool:
    """Whether a file of the directory is part of the model; a README is not."""
    return "/" not in name and (name in (CONFIG_FILE, MODEL_FILE) or name.endswith(HF_ENDINGS + GOOGLE_ENDINGS))


VERSION = 2
READS = {
    "weights": Read(
        help="Hugging Face directory (safetensors, or pytorch_model.bin), or google's .ckpt (or the directory of a "
        "sharded .ckpt)",
        select=belongs,
    ),
    "tokenizer": Read(
        help="tokenizer.model of the weights, if their directory holds none",
        dataset="tokenizer",
        file_allowed=True,
        optional=True,
    ),
}
WRITES = ("checkpoints", "tokenizer")
DECLARES = Declaration(lease=True, driver_gigabytes=WHOLE_MODEL_GIGABYTES, cost=ImportCost(), card=imported_weights)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Facts that the files do not hold."""

    model: Gemma2Config | None = absent(None)
    """Sizes of the model of a .ckpt, which does not hold them (--model gemma2_2b); None: read from config.json."""
    vocab_size: int | None = absent(None)
    """Rows of the embedding: 256000 leaves out the 128 padding rows of the paper's table, 256128 appends 128 rows of
    zeros; None: as stored."""


def run(context: Context, config: Config) -> Outcome:
    """Raises UserError that names a missing, unknown or misshaped tensor, and UserError if there is no tokenizer."""
    tokenizer_uri, tokenizer_model = _tokenizer_model(context)
    tokenizer = Tokenizer.from_bytes(tokenizer_model, tokenizer_uri)
    checkpoints = storage.join(context.directory, CHECKPOINTS)
    if read_commit(checkpoint_uri(checkpoints, 0)) is None:  # otherwise an earlier attempt was stopped after this part
        model = _load(context.input("weights"), config)
        if tokenizer.vocab_size > model.config.vocab_size:
            raise UserError(
                f"the tokenizer has {tokenizer.vocab_size} ids and the model has {model.config.vocab_size} rows of "
                "embedding; give the tokenizer that the model was trained with"
            )
        save_checkpoint(
            checkpoints,
            step=0,
            weights=model.state_dict(),
            optimizer=None,
            state={"step": 0, "tokens_seen": 0, "identity": {"config": {"model": present(model.config)}}},
            tables={},
            changes=context.changes,
        )
    files, steps = committed_files(context.directory)
    facts = {"vocab_size": tokenizer.vocab_size}
    return Outcome(
        datasets={
            CHECKPOINTS: Dataset(shards=files[CHECKPOINTS], facts={"steps": steps, **facts}),
            "tokenizer": Dataset(
                shards=(
                    write_file(
                        context.directory, f"tokenizer/{MODEL_FILE}", tokenizer_model, write=context.changes.write
                    ),
                ),
                facts=facts,
            ),
        },
        tokenizer_sha256=tokenizer.sha256,
    )


def _tokenizer_model(context: Context) -> tuple[str, bytes]:
    """URI and bytes of the tokenizer beside the weights, or of the given tokenizer."""
    weights, tokenizers = context.input("weights"), context.inputs.get("tokenizer", [])
    uris: list[str] = [file.pinned for file in weights.files if file.name == MODEL_FILE] + [
        uri for tokenizer in tokenizers for uri in tokenizer.uris()
    ]
    if not uris:
        raise UserError(
            f"there is no {MODEL_FILE} in {_given(weights)}; give the tokenizer that the model was trained with, by "
            f"--tokenizer PATH (Gemma's own: `make tokenizer`)"
        )
    models = [storage.read_bytes(uri) for uri in uris]
    if models[0] != models[-1]:
        raise UserError(f"{uris[1]} differs from {uris[0]}, the tokenizer beside the weights; leave --tokenizer out")
    return uris[0], models[0]


def _load(weights: Input, config: Config) -> Gemma2:
    names = [file.name for file in weights.files]
    with _local_folder(weights) as folder:
        try:
            if any(name.endswith(HF_ENDINGS) for name in names):
                return _load_hf(folder, config, names)
            return _load_pickled(folder, config, names)
        except ValueError as error:
            if exit_code(error) is None:
                raise
            raise UserError(str(error).replace(str(folder), _given(weights))) from error


def _load_hf(folder: Path, config: Config, names: list[str]) -> Gemma2:
    if CONFIG_FILE not in names:
        raise UserError(f"{folder} holds safetensors and no {CONFIG_FILE}; give a directory that holds both")
    if config.model is not None:
        raise UserError(f"got --model for {folder}, which has the model's sizes in {CONFIG_FILE}; leave --model out")
    return load_hf(folder, dtype=None, vocab_size=config.vocab_size)


def _load_pickled(folder: Path, config: Config, names: list[str]) -> Gemma2:
    """The model of a `.ckpt` or of `pytorch_model.bin`, by Google's or Hugging Face's names of tensors."""
    files = [name for name in names if name.endswith(".ckpt")]
    if len(files) > 1:
        raise UserError(f"{folder} holds {len(files)} checkpoints, {', '.join(files)}; give one of them")
    binaries = [name for name in names if name.endswith(".bin")]
    if not files and not binaries and PICKLED_INDEX_FILE not in names:
        raise UserError(f"{folder} holds no weights; give a directory of safetensors and {CONFIG_FILE}, or a .ckpt")
    if not files and not {PICKLED_FILE, PICKLED_INDEX_FILE} & set(names):
        if len(binaries) > 1:
            raise UserError(
                f"{folder} holds {', '.join(binaries[:3])} and no {PICKLED_INDEX_FILE}, which names their tensors; "
                "fetch the index too"
            )
        files = binaries
    sizes = _sizes(folder, config, names, files[0] if files else PICKLED_FILE)
    path = folder / files[0] if files else folder
    return load_gemma_pytorch(path, sizes, dtype=None, vocab_size=config.vocab_size)


def _sizes(folder: Path, config: Config, names: list[str], weights: str) -> Gemma2Config:
    """The model's sizes: from Hugging Face's config.json if it is there, otherwise as given."""
    stored = read_json(folder / CONFIG_FILE) if CONFIG_FILE in names else {}
    if "model_type" not in stored:  # google's own config.json, or none
        if config.model is None:
            beside = f"and its {CONFIG_FILE} has no model_type" if CONFIG_FILE in names else f"and no {CONFIG_FILE}"
            raise UserError(
                f"{folder} holds {weights}, which does not name the model's sizes, {beside}; give --model gemma2_2b, "
                "gemma2_9b or gemma2_27b, or a directory with Hugging Face's config.json"
            )
        return config.model
    if config.model is not None:
        raise UserError(f"got --model for {folder}, which has the model's sizes in {CONFIG_FILE}; leave --model out")
    return config_from_hf(stored, str(folder / CONFIG_FILE))


@contextmanager
def _local_folder(weights: Input) -> Iterator[Path]:
    """The directory that holds the files; files in a bucket are copied to a temporary directory."""
    if (on_disk := storage.local_path(weights.files[0].uri)) is not None:
        try:
            yield on_disk.parent
        finally:
            for file in weights.files:  # tensors are read here and there, so nothing was hashed on the way
                storage.check_pinned(file.pinned)
        return
    with tempfile.TemporaryDirectory() as folder:
        for file in weights.files:
            storage.download(file.pinned, Path(folder) / file.name)
        yield Path(folder)


def _given(weights: Input) -> str:
    return ", ".join(json.loads(weights.given))
