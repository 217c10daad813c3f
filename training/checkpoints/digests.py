"""Digests of tensors in pieces, which COMMIT keeps, so that a reader of slices can check what it reads.

A piece has at most PIECE_BYTES of a tensor's values, in the order of memory. The hash of a model follows from the
digests alone: whoever has checked COMMIT knows it without reading a tensor. Cost: one sha256 over the values while a
checkpoint is saved, beside that over the files.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

PIECE_BYTES = 64 << 20
"""Largest size of a piece, in bytes."""

Digest = Mapping[str, Any]
"""dtype and shape of a tensor, and `pieces`, the sha256 of each piece of its values."""


def tensor_digest(tensor: Tensor) -> dict[str, Any]:
    """The digest of a tensor, as COMMIT keeps it."""
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    pieces = [hashlib.sha256(values[start : start + PIECE_BYTES]) for start in range(0, len(values), PIECE_BYTES)]
    return {
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "pieces": [piece.hexdigest() for piece in pieces],
    }


def weights_sha256(digests: Mapping[str, Digest]) -> str:
    """sha256 over names, types, shapes and piece digests of all weights, sorted by name."""
    hashed = hashlib.sha256()
    for name, digest in sorted(digests.items()):
        hashed.update(f"{name} {digest['dtype']} {tuple(digest['shape'])} {' '.join(digest['pieces'])}\n".encode())
    return hashed.hexdigest()


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """`weights_sha256` of weights in memory; `capture` takes it as `teacher_hash`."""
    return weights_sha256({name: tensor_digest(tensor) for name, tensor in weights.items()})
