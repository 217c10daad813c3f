"""The measurements of `test_capture.py`, on four virtual devices: `python -m tests.programs.capture_run`."""

import json
from typing import Any

import numpy as np
import torch_xla.runtime as xr

from data.logits import Targets
from model import Gemma2
from model.sharding import MeshShape
from tests.programs.xla_examples import example_batch, example_config
from training.backends.base import Backend
from training.backends.torch_backend import TorchBackend
from training.backends.xla.backend import XlaBackend
from training.distill.kind import Kind
from training.distill.kinds.sample import Sample
from training.distill.kinds.topk import TopK
from training.distill.teacher import capture

MESHES = {"data=4": MeshShape(data=4), "data=2 model=2": MeshShape(data=2, model=2)}
CONFIG, ROWS = example_config(3), example_batch()


def captured(backend: Backend, kind: Kind) -> list[Targets]:
    """The kept targets of each row of the batch."""
    model = backend.place_model(Gemma2(CONFIG, seed=3).requires_grad_(False))
    batch = {**ROWS, "sequence_hash": np.arange(len(ROWS["tokens"]), dtype=np.uint64)}
    return [row for kept in capture(model, backend, [batch], kind, seed=0, teacher_hash="t") for row in kept]


def agreement(first: list[Targets], other: list[Targets]) -> dict[str, float]:
    """Share of targets with the same ids and counts, and largest difference of log p at targets with the same ids."""
    same, differences, targets = 0, [0.0], 0
    for mine, theirs in zip(first, other, strict=True):
        for target in range(len(mine["target_ids"])):
            targets += 1
            ids = [
                dict(zip(side["target_ids"][target].tolist(), values[target].tolist(), strict=True))
                for side in (mine, theirs)
                for values in [side.get("target_counts", side.get("target_log_probs"))]
                if values is not None
            ]
            if "target_counts" in mine:
                same += {k: v for k, v in ids[0].items() if v} == {k: v for k, v in ids[1].items() if v}
            else:
                same += ids[0].keys() == ids[1].keys()
                differences += [abs(ids[0][key] - ids[1][key]) for key in ids[0].keys() & ids[1].keys()]
    return {"same": same / targets, "difference": max(differences), "targets": targets}


def main() -> dict[str, Any]:
    xr.use_spmd()
    backends: dict[str, Backend] = {name: XlaBackend(mesh=mesh, remat="full") for name, mesh in MESHES.items()}
    kinds: dict[str, Kind] = {"sample": Sample(draws=50), "topk": TopK(top=5)}
    expected = {name: captured(TorchBackend("cpu"), kind) for name, kind in kinds.items()}
    by_kind_and_mesh = {
        f"{name} {mesh}": agreement(captured(backend, kind), expected[name])
        for name, kind in kinds.items()
        for mesh, backend in backends.items()
    }
    return {"agreement": by_kind_and_mesh}


if __name__ == "__main__":
    print(json.dumps(main()))
