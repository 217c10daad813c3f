"""Hugging Face directories: `config.json` and weights, in one file or in shards with an index.

Both directions are strict. A directory is refused, before any weight is read, if a tensor is missing, unknown or of
another shape, or if the configuration is not Gemma 2's. The error names the tensor or the key. `transformers` loads
what `save_hf` writes, and `load_hf` returns it bit for bit.

Weights are safetensors. A directory without safetensors may have the older `pytorch_model.bin`, of which only tensors
are unpickled. Directories are local. Peak memory: the model, and one tensor in its stored dtype.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from model.config import PAPER_VOCAB_SIZE, VOCAB_SIZE, Gemma2Config
from model.errors import UserError
from model.gemma2 import Gemma2
from model.hf_config import CONFIG_FILE, config_from_hf, config_to_hf
from model.weight_files import PICKLED_FILE, PICKLED_INDEX_FILE, read_json, read_pickled, read_weight_map

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000
WEIGHT_TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def load_hf(
    directory: str | Path, dtype: torch.dtype | None = torch.float32, *, vocab_size: int | None = None
) -> Gemma2:
    """The model in `directory`, on the CPU, its weights as `dtype` (None: as stored).

    `vocab_size` is needed only to change between 256000 rows, one per token, and the 256128 rows of the paper. The last
    128 rows are cut, or rows of zeros are appended, whose logits are 0 (mask them if probabilities matter).
    Raises UserError, naming the tensor, for one that is missing, unknown or of a wrong shape.
    """
    directory = Path(directory)
    config = config_from_hf(read_json(directory / CONFIG_FILE), str(directory / CONFIG_FILE))
    if _only_pickled(directory):
        stored = read_pickled(directory)
        return checked_model(config, stored.items(), _shapes(stored), directory, dtype, vocab_size=vocab_size)
    listing = _list_tensors(directory)
    shapes = {name: shape for name, (_, shape) in listing.items()}
    return checked_model(config, _read_tensors(listing), shapes, directory, dtype, vocab_size=vocab_size)


def checked_model(
    config: Gemma2Config,
    tensors: Iterable[tuple[str, Tensor]],
    shapes: Mapping[str, tuple[int, ...]],
    source: Path,
    dtype: torch.dtype | None,
    *,
    vocab_size: int | None,
) -> Gemma2:
    """A model of the tensors from `source`, whose shapes are checked before the first tensor is read.

    The tensors are copied, as they may be views of a mapped file. Raises UserError as `load_hf` does.
    """
    config = fit_vocabulary(config, shapes, vocab_size, source)
    check_tensors(config, shapes, source)
    state: dict[str, Tensor] = {}
    for name, tensor in tensors:
        if tensor.dtype not in WEIGHT_TYPES:
            raise UserError(
                f"{source}: {name} holds {tensor.dtype}, but weights are float32, bfloat16 or float16; export it "
                "unquantized"
            )
        if not torch.isfinite(tensor).all():
            raise UserError(f"{source}: {name} holds values that are not finite; fetch it again, or train it again")
        state[name] = tensor.to(dtype or tensor.dtype, copy=True)
    head = state.pop(HEAD, None)
    if head is not None and not torch.equal(head, state[EMBEDDING]):
        raise UserError(
            f"{source}: {HEAD} differs from {EMBEDDING}, but Gemma 2's head is its embedding; "
            f"remove {HEAD} if the embedding is the one to keep"
        )
    return assemble(config, state)


def save_hf(model: Gemma2, directory: str | Path, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes `config.json` and the weights, in their own dtype, as files of at most `shard_bytes` (or one tensor).

    Creates `directory`. Raises UserError if it already holds weights, whose shards would be mixed with the new ones.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    present = sorted(path.name for path in directory.iterdir() if ".safetensors" in path.name)
    if present:
        raise UserError(f"{directory} already holds {present[0]}; choose an empty directory, or remove that file first")
    for name, data in hf_files(model, shard_bytes=shard_bytes):
        (directory / name).write_bytes(data)


def hf_files(model: Gemma2, *, shard_bytes: int = SHARD_BYTES) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of each file that `save_hf` writes: the weights, the index of several files, the config.

    For writers to a directory that is not local. Peak memory beside the model: one file, twice.
    Raises UserError for `shard_bytes` below 1.
    """
    if shard_bytes < 1:
        raise UserError(f"shard_bytes is {shard_bytes}, but must be at least 1 byte; leave it out for 5 GB")
    state = model.state_dict()
    shards: list[list[str]] = [[]]
    filled = 0
    for name, tensor in state.items():
        if shards[-1] and filled + tensor.nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += tensor.nbytes
    single = len(shards) == 1
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file_name = SINGLE_FILE if single else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: state[name].detach().cpu().contiguous() for name in names}
        # transformers refuses files that do not name the framework of their tensors.
        yield file_name, serialize(tensors, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file_name)
    if not single:
        total = sum(tensor.nbytes for tensor in state.values())
        yield INDEX_FILE, _json({"metadata": {"total_size": total}, "weight_map": weight_map})
    yield CONFIG_FILE, _json(config_to_hf(model.config, next(iter(state.values())).dtype))


def fit_vocabulary(
    config: Gemma2Config, shapes: Mapping[str, tuple[int, ...]], vocab_size: int | None, source: Path
) -> Gemma2Config:
    """`config` with the number of rows that the model gets. `vocab_size` can change 256000 to 256128, and back."""
    rows = (shapes.get(EMBEDDING) or (config.vocab_size,))[0]
    wanted = config.vocab_size if vocab_size is None else vocab_size
    if rows == wanted:
        return replace(config, vocab_size=wanted)
    if {rows, wanted} != {VOCAB_SIZE, PAPER_VOCAB_SIZE}:
        raise UserError(
            f"{source}: {EMBEDDING} has {rows} rows, not {wanted}; rows are changed only between {VOCAB_SIZE} and "
            f"{PAPER_VOCAB_SIZE}: give vocab_size={rows} here and in {CONFIG_FILE}"
        )
    if vocab_size is None:
        raise UserError(
            f"{source}: {EMBEDDING} has {rows} rows, but the configuration has {wanted}; the 128 rows between "
            f"{VOCAB_SIZE} and {PAPER_VOCAB_SIZE} are padding: give vocab_size={VOCAB_SIZE} to leave them out, or "
            f"vocab_size={PAPER_VOCAB_SIZE} to keep them"
        )
    return replace(config, vocab_size=wanted)


def check_tensors(config: Gemma2Config, shapes: Mapping[str, tuple[int, ...]], source: Path) -> None:
    """Raises UserError unless `shapes` are the model's. Embedding and tied head may have 256000 or 256128 rows."""
    if config.layers > len(shapes):  # before a model of a billion layers is made, if only of shapes
        raise UserError(
            f"{source}: there are {len(shapes)} tensors, and the configuration has {config.layers} layers; the weights "
            "do not belong to the configuration: fetch both again from one place"
        )
    try:
        with torch.device("meta"):
            expected = {name: tuple(tensor.shape) for name, tensor in Gemma2(config).state_dict().items()}
    except (RuntimeError, OverflowError) as error:
        raise UserError(
            f"{source}: the configuration has sizes that no tensor can have ({str(error).splitlines()[0]}); fetch it "
            "again"
        ) from error
    rows = (shapes.get(EMBEDDING) or expected[EMBEDDING])[0]
    if {rows, config.vocab_size} == {VOCAB_SIZE, PAPER_VOCAB_SIZE}:
        expected[EMBEDDING] = (rows, config.d_model)
    optional = {HEAD: expected[EMBEDDING]}
    problems = [f"{name} is missing" for name in expected if name not in shapes]
    for name, shape in shapes.items():
        right = (expected | optional).get(name)
        if right is None:
            problems.append(f"{name} is not a tensor of this model")
        elif tuple(shape) != right:
            problems.append(f"{name} has shape {list(shape)}, not {list(right)}")
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise UserError(
            f"{source}: {'; '.join(problems[:5])}{more}; the weights do not belong to the configuration: "
            "fetch both again from one place"
        )


def assemble(config: Gemma2Config, state: dict[str, Tensor]) -> Gemma2:
    """A model with the checked tensors of `state`. The embedding is cut or padded to the configuration's rows."""
    table_VD = state[EMBEDDING]
    if config.vocab_size < table_VD.shape[0]:
        state[EMBEDDING] = table_VD[: config.vocab_size].clone()
    elif config.vocab_size > table_VD.shape[0]:
        padding_VD = table_VD.new_zeros(config.vocab_size - table_VD.shape[0], table_VD.shape[1])
        state[EMBEDDING] = torch.cat((table_VD, padding_VD))
    with torch.device("meta"):
        model = Gemma2(config)
    model.load_state_dict(state, strict=True, assign=True)
    return model


def _only_pickled(directory: Path) -> bool:
    """Whether a directory has its weights as `pytorch_model.bin` or its shards, and no safetensors."""
    if any((directory / name).exists() for name in (SINGLE_FILE, INDEX_FILE)):
        return False
    return any((directory / name).exists() for name in (PICKLED_FILE, PICKLED_INDEX_FILE))


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _list_tensors(directory: Path) -> dict[str, tuple[Path, tuple[int, ...]]]:
    """Name -> (file, shape) of every stored tensor. Reads only headers."""
    index_path, single_path = directory / INDEX_FILE, directory / SINGLE_FILE
    weight_map: dict[str, str] | None = None
    if index_path.exists():
        weight_map = read_weight_map(index_path)
        paths = [directory / Path(name).name for name in sorted(set(weight_map.values()))]
    else:
        paths = [single_path]
    listing: dict[str, tuple[Path, tuple[int, ...]]] = {}
    for path in paths:
        if not path.is_file():
            raise UserError(
                f"{directory} has no {path.name}; a model needs {SINGLE_FILE}, or {INDEX_FILE} and its shards: fetch "
                f"the directory again{_others(directory) if weight_map is None else ''}"
            )
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    if weight_map is not None and weight_map.get(name) != path.name:
                        raise UserError(
                            f"{path} holds {name}, but {INDEX_FILE} names {weight_map.get(name)} for it; "
                            "fetch the directory again"
                        )
                    listing[name] = (path, tuple(file.get_slice(name).get_shape()))
        except SafetensorError as error:
            raise UserError(f"{path} is not a whole safetensors file ({error}); fetch it again") from error
    return listing


def _others(directory: Path) -> str:
    """What a directory without a whole model holds instead, to end a message with."""
    names = sorted(path.name for path in directory.glob("*.safetensors"))
    if any(name.startswith("adapter_") for name in names):
        return " (it holds an adapter: merge the adapter into its model first, and give the merged model)"
    return f" (it holds {', '.join(names[:3])})" if names else ""


def _read_tensors(listing: Mapping[str, tuple[Path, tuple[int, ...]]]) -> Iterable[tuple[str, Tensor]]:
    for path in dict.fromkeys(path for path, _ in listing.values()):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                yield name, file.get_tensor(name)


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
