"""Google's PyTorch checkpoints (google/gemma_pytorch): one `.ckpt`, or a directory with `pytorch_model.bin.index.json`.

They differ from Hugging Face's checkpoints in three ways. The embedding is called `embedder.weight`. The query, key and
value projections are stacked as one `qkv_proj` (rows in this order). There is also a table of rotary angles,
`freqs_cis`. The configuration is not stored with the weights, so the caller gives it. Files are memory-mapped, and only
tensors are unpickled (`weights_only=True`).
"""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.config import Gemma2Config
from model.errors import UserError
from model.gemma2 import Gemma2
from model.hf_weights import EMBEDDING, assemble, check_tensors, fit_vocabulary, read_weight_map

GOOGLE_INDEX_FILE = "pytorch_model.bin.index.json"


def load_gemma_pytorch(
    path: str | Path,
    config: Gemma2Config,
    dtype: torch.dtype | None = torch.float32,
    *,
    vocab_size: int | None = None,
) -> Gemma2:
    """The model in a `.ckpt` file or a directory of shards, on the CPU; `dtype` and `vocab_size` as in `load_hf`.

    Raises UserError, naming the tensor, for one that is missing, unknown or of a wrong shape, and for a quantized
    checkpoint.
    """
    path = Path(path)
    stored = _read(path)
    if any(name.endswith("weight_scaler") for name in stored):
        raise UserError(f"{path} is quantized (it has a weight_scaler); fetch the bfloat16 checkpoint instead")
    state: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        if name == "freqs_cis" or name.endswith(("local_freqs_cis", "global_freqs_cis")):
            continue
        if name == "embedder.weight":
            state[EMBEDDING] = tensor
        elif name.endswith(".qkv_proj.weight"):
            q_rows, kv_rows = config.heads * config.head_dim, config.kv_heads * config.head_dim
            if tensor.shape[0] != q_rows + 2 * kv_rows:
                raise UserError(
                    f"{path}: {name} has {tensor.shape[0]} rows, not {q_rows} + 2 * {kv_rows}; "
                    "give the configuration of this checkpoint's size"
                )
            for part, rows in zip("qkv", tensor.split((q_rows, kv_rows, kv_rows)), strict=True):
                state[name.replace("qkv_proj", f"{part}_proj")] = rows
        else:
            state[name] = tensor
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    config = fit_vocabulary(config, shapes, vocab_size, path)
    check_tensors(config, shapes, path)
    # Copied: the tensors are views of the mapped file and of each other.
    return assemble(config, {name: tensor.to(dtype or tensor.dtype, copy=True) for name, tensor in state.items()})


def _read(path: Path) -> dict[str, Tensor]:
    if path.is_dir():
        index = path / GOOGLE_INDEX_FILE
        if not index.exists():
            raise UserError(f"{path} has no {GOOGLE_INDEX_FILE}; give a .ckpt file, or the folder of its shards")
        names = sorted(set(read_weight_map(index).values()))
        state: dict[str, Tensor] = {}
        for name in names:
            state |= _unpickled(path / Path(name).name)
        return state
    return _unpickled(path)


def _unpickled(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        raise UserError(f"there is no {path}; give a .ckpt file, or the folder of its shards")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(f"{path} is not a checkpoint of plain tensors ({error}); fetch it again") from error
    state = content.get("model_state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} has no model_state_dict of tensors; give a checkpoint of gemma_pytorch")
    return state
