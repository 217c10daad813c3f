"""Google's PyTorch checkpoints (google/gemma_pytorch): one `.ckpt`, or a directory with `pytorch_model.bin.index.json`.

They differ from Hugging Face's checkpoints in three ways. The embedding is called `embedder.weight`. The query, key and
value projections are stacked as one `qkv_proj` (rows in this order). There is also a table of rotary angles,
`freqs_cis`. The configuration is not stored with the weights, so the caller gives it. Pickles with Hugging Face's names
are read too. Only tensors are unpickled (model/weight_files.py).
"""

from pathlib import Path

import torch
from torch import Tensor

from model.config import Gemma2Config
from model.errors import UserError
from model.gemma2 import Gemma2
from model.hf_weights import EMBEDDING, checked_model
from model.weight_files import read_pickled


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
    stored = read_pickled(path)
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
    return checked_model(config, state.items(), shapes, path, dtype, vocab_size=vocab_size)
