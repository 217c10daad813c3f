"""The measurements of `test_scan.py`, on four virtual devices: `python -m tests.programs.mesh_run`.

With the word `all`, each mesh has both objectives.
"""

import json
import sys
from functools import partial
from typing import Any

import torch
import torch_xla.distributed.spmd as xs
import torch_xla.runtime as xr

from model import Gemma2
from model.sharding import MeshShape
from tests.programs.xla_examples import example_batch, example_config, largest_difference, loss_and_gradients
from training.backends.base import RowShare
from training.backends.torch_backend import TorchBackend
from training.backends.xla.backend import XlaBackend
from training.backends.xla.mesh import share_of
from training.checkpoints.state import restore_state, snapshot_state
from training.faults import worst_rows
from training.loss import LossOptions, next_token_loss
from training.optim import OptimizerState, init_state

MESHES = {
    "data=4": MeshShape(data=4),
    "data=2 model=2": MeshShape(data=2, model=2),
    "model=4": MeshShape(model=4),
    "replica=2 data=2": MeshShape(replica=2, data=2),
    "replica=2 model=2": MeshShape(replica=2, model=2),
}
CONFIG, BATCH = example_config(3), example_batch()
OBJECTIVES = {
    "next_token": ("data=4", "model=4", "replica=2 model=2"),
    "distill": ("data=2 model=2", "replica=2 data=2"),
}
"""objective -> the meshes that have it"""


def differences(backends: dict[str, XlaBackend], everything: bool) -> dict[str, float]:
    """Differences of each mesh from plain PyTorch."""
    by_mesh = {}
    for objective, meshes in OBJECTIVES.items():
        expected = loss_and_gradients(CONFIG, TorchBackend("cpu"), objective, BATCH)
        for mesh in backends if everything else meshes:
            backend = backends[mesh]
            got = loss_and_gradients(CONFIG, backend, objective, BATCH)
            by_mesh[f"{objective} {mesh}"] = largest_difference(got, expected)
    return by_mesh


def parts(backend: XlaBackend) -> list[list[int]]:
    """Shapes on the first chip of the table, of a stacked projection, and of the rows."""
    model = backend.place_model(Gemma2(CONFIG), training=True)
    parameters = dict(model.named_parameters())
    tokens = backend.to_device({"tokens": BATCH["tokens"]})["tokens"]
    names = ("model.embed_tokens.weight", "model.layers.local.mlp.down_proj.weight")
    tensors = [*(parameters[name].detach() for name in names), tokens]
    return [list(xs.wrap_if_sharded(tensor).local_shards[0].data.shape) for tensor in tensors]


def saved(backend: XlaBackend) -> list[str]:
    """Names of weights and moments that a snapshot from this mesh lacks, has too many, or holds otherwise.

    They come from the host, by the names of one model, and go back there: so whatever one mesh saved, another restores.
    """
    model = Gemma2(CONFIG, seed=3)
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    moments = OptimizerState(
        first={name: torch.randn_like(weight) for name, weight in weights.items()},
        second={name: torch.rand_like(weight) for name, weight in weights.items()},
    )
    placed = {
        name: parameter.detach() for name, parameter in backend.place_model(model, training=True).named_parameters()
    }
    state = init_state(placed)
    restore_state(backend, moments, state)
    restored_weights, restored_moments = snapshot_state(backend, placed, state)
    pairs = {"weights": (weights, restored_weights), "first": (moments.first, restored_moments.first)}
    pairs["second"] = (moments.second, restored_moments.second)
    return sorted(
        f"{kind} {name}"
        for kind, (expected, got) in pairs.items()
        for name in expected.keys() | got.keys()
        if name not in got or name not in expected or not torch.equal(got[name], expected[name])
    )


def by_process(backend: XlaBackend, hosts: list[list[int]]) -> bool:
    """Whether rows given as several hosts give them lie on each host's chips as one process, with all, divides them.

    `hosts`: the chips of each; what a host puts on the chips of others here is never looked at.
    """
    assert backend.mesh is not None
    shape, device = backend.mesh.shape, str(backend.device)

    def on_chips(rows: torch.Tensor, share: RowShare) -> list[torch.Tensor]:
        assert backend.mesh is not None
        (placed,) = backend.mesh.place_rows([rows], device, share)
        return [shard.data.cpu() for shard in xs.wrap_if_sharded(placed).local_shards]

    tokens = torch.from_numpy(BATCH["tokens"])
    expected = on_chips(tokens, RowShare())
    for number, chips in enumerate(hosts):
        share = share_of(number, hosts, shape)
        shards = on_chips(tokens.chunk(share.parts)[share.part], share)
        if not all(torch.equal(shards[chip], expected[chip]) for chip in chips):
            return False
    return True


HOSTS: dict[str, tuple[str, list[list[int]]]] = {
    "two hosts": ("data=4", [[0, 1], [2, 3]]),
    "numbered otherwise": ("data=4", [[2, 3], [0, 1]]),
    "two slices": ("replica=2 data=2", [[0, 1], [2, 3]]),
    "a model axis on each": ("data=2 model=2", [[0, 1], [2, 3]]),
    "a model axis on both": ("model=4", [[0, 1], [2, 3]]),
    "four hosts, two model axes": ("data=2 model=2", [[0], [1], [2], [3]]),
}


def worst(backend: XlaBackend | TorchBackend) -> list[Any]:
    model = backend.place_model(Gemma2(CONFIG, seed=1), training=True)
    rows = [f"row {number}" for number in range(len(BATCH["tokens"]))]
    return worst_rows(
        model, partial(next_token_loss, options=LossOptions(run_head=backend.run_head)), BATCH, rows, backend
    )


def refusal() -> str:
    try:
        XlaBackend(mesh=MeshShape(data=8))
    except ValueError as error:
        return str(error)
    return ""


def main(*words: str) -> dict[str, Any]:
    xr.use_spmd()
    backends = {name: XlaBackend(mesh=mesh, remat="full") for name, mesh in MESHES.items()}
    return {
        "differences": differences(backends, words == ("all",)),
        "parts": {name: parts(backend) for name, backend in backends.items()},
        "saved": {name: saved(backend) for name, backend in backends.items()},
        "by_process": {name: by_process(backends[mesh], hosts) for name, (mesh, hosts) in HOSTS.items()},
        "worst": worst(backends["data=2 model=2"]),
        "worst_expected": worst(TorchBackend("cpu")),
        "refused": refusal(),
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
