"""Files of weights from outside: JSON, the index of several files, and pickles of which only tensors are read."""

import json
import pickle
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.errors import UserError

PICKLED_FILE = "pytorch_model.bin"
PICKLED_INDEX_FILE = "pytorch_model.bin.index.json"
WEIGHT_ENDINGS = (".safetensors", ".bin", ".ckpt")
"""endings of the files that an index may name"""
_OF_BAD_PICKLES = (struct.error, AssertionError, TypeError, AttributeError)
"""further errors of the unpickler for damaged files"""


def read_pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.ckpt` or `.bin`, or of a directory: `pytorch_model.bin`, or its index and its shards.

    Files are memory-mapped, apart from those of PyTorch before 1.6, and nothing but tensors is unpickled
    (`weights_only=True`). Raises UserError for a file that is missing, or that holds something else.
    """
    if not path.is_dir():
        return _unpickled(path)
    index = path / PICKLED_INDEX_FILE
    if not index.exists():
        if (path / PICKLED_FILE).exists():
            return _unpickled(path / PICKLED_FILE)
        raise UserError(
            f"{path} has no {PICKLED_FILE} and no {PICKLED_INDEX_FILE}; give a .ckpt file, or the folder of its shards "
            "with the index"
        )
    state: dict[str, Tensor] = {}
    for name in sorted(set(read_weight_map(index).values())):
        state |= _unpickled(path / Path(name).name)
    return state


def _unpickled(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"there is no file {path}; give a .ckpt or .bin file, or the folder of all its shards")
    try:
        mapped = zipfile.is_zipfile(path)  # files of PyTorch before 1.6 are no archives, and are read into memory
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # of pickles that PyTorch did not write
            content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, *_OF_BAD_PICKLES) as error:
        raise UserError(f"{path} is not a checkpoint of plain tensors ({error}); fetch it again") from error
    state = content.get("model_state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(
            f"{path} has no model_state_dict of tensors; give the weights of a model, as gemma_pytorch or transformers "
            "stores them"
        )
    return state


def read_weight_map(index_path: Path) -> dict[str, str]:
    """Name of a tensor -> name of its file. Raises UserError for an index without such a map."""
    weight_map = read_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(n, str) for n in weight_map.values()):
        raise UserError(f"{index_path} has no weight_map of tensors to files; fetch it again")
    # of other names, nothing is known about the bytes: who imports a directory fingerprints its files of weights
    if other := sorted(name for name in weight_map.values() if not name.endswith(WEIGHT_ENDINGS)):
        raise UserError(
            f"{index_path} names {other[0]!r}, which is no file of weights ({', '.join(WEIGHT_ENDINGS)}); fetch it "
            "again"
        )
    return weight_map


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file from outside. Raises UserError if there is no file, or if it holds something else."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path.parent} has no {path.name}; give the directory of a Hugging Face model") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is JSON, but not an object of names and values; fetch it again")
    return content
