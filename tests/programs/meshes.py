"""Runs of one job on meshes of virtual devices, in processes of their own: one for each number of devices.

    python -m tests.programs.meshes DIRECTORY RUN ...    a RUN: 2x2x2, or 1x4x2<2x2x2, which resumes 2x2x2 at step 10

The numbers are chips along replica, data and model. All runs of a process have the same number of chips. Each prints
its results as one JSON object in its last line. `remat` is that of a TPU.
"""

import itertools
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model import gemma2_tiny
from model.sharding import MeshShape
from tests.programs.examples import VOCAB, example_job, made_up_feed
from tests.programs.places import REPOSITORY
from tests.programs.xla_flags import QUICK_COMPILES
from training import loop
from training import run as run_module
from training.checkpoints.records import checkpoint_uri
from training.checkpoints.save_load import load_checkpoint
from training.checkpoints.state import snapshot_state
from training.config import OptimizerConfig
from training.job import TrainJob
from training.optim import OptimizerState, init_state

STEPS, SAVED = 20, 10
CHIPS = (1, 2, 4, 8)
SHAPES = [shape for chips in CHIPS for shape in itertools.product(CHIPS, repeat=3) if math.prod(shape) == chips]
"""(replica, data, model) of every mesh of 1, 2, 4 or 8 chips"""
CONTINUED = ("1x1x1<2x2x2", "1x4x2<2x2x2")


def records_of(runs: Iterable[str], directory: Path) -> dict[str, dict[str, Any]]:
    """The results of each run, in a process for each number of chips. The largest number is first; others resume it."""
    runs, by_run = list(runs), {}
    for chips in reversed(CHIPS):
        mine = [run for run in runs if mesh_of(run).chips == chips]
        if not mine:
            continue
        environment = os.environ | {
            "PJRT_DEVICE": "CPU",
            "CPU_NUM_DEVICES": str(chips),
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",
            "XLA_FLAGS": QUICK_COMPILES,
            "TF_CPP_MIN_LOG_LEVEL": "1",  # warnings
        }
        done = subprocess.run(
            [sys.executable, "-m", "tests.programs.meshes", str(directory), *mine],
            cwd=REPOSITORY,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        by_run |= json.loads(done.stdout.splitlines()[-1])
        by_run[mine[0]]["warnings"] = done.stderr
    return by_run


def mesh_of(run: str) -> MeshShape:
    replica, data, model = (int(size) for size in run.partition("<")[0].split("x"))
    return MeshShape(replica=replica, data=data, model=model)


def mesh_job(checkpoints: Path) -> TrainJob:
    """Two pairs of layers. Every width that a mesh divides is a multiple of 8."""
    model = gemma2_tiny(
        vocab_size=VOCAB, d_model=64, layers=4, heads=8, kv_heads=8, head_dim=8, ffw_dim=128, query_scale=8, window=9
    )
    optimizer = OptimizerConfig(learning_rate=0.003, warmup_steps=2, average_decay=0.9)
    config = {"model": model, "steps": STEPS, "global_batch": 8, "checkpoint_every_steps": SAVED}
    return example_job(checkpoints, config=config | {"optimizer": optimizer}, device="xla")


def trained(run: str, directory: Path) -> dict[str, Any]:
    """Losses by step, how parameters and state lay at each of the first boundaries, and whether what was restored is
    what was saved."""
    from training.backends.xla.backend import XlaBackend

    job = mesh_job(directory / run)
    _, _, before = run.partition("<")
    if before:
        saved = Path(checkpoint_uri(str(directory / before), SAVED))
        shutil.copytree(saved, directory / run / saved.name)
    placed: list[tuple[dict[str, Tensor], OptimizerState]] = []
    lies: list[dict[str, list[str]]] = []
    compiles: list[int] = []
    restored: list[str] = []

    class Watched(XlaBackend):
        def step_boundary(self) -> None:
            super().step_boundary()
            ((parameters, state),) = placed
            if not compiles and before:
                restored.extend(differences(saved, *snapshot_state(self, parameters, state)))
            compiles.append(self.compiles())
            if len(lies) < 2:
                lies.append(layout(parameters, state))

    def remember(parameters: dict[str, Tensor], *rest: Any, **named: Any) -> OptimizerState:
        state = init_state(parameters, *rest, **named)
        placed.append((dict(parameters), state))
        return state

    losses: dict[int, float] = {}
    run_module.init_state = remember  # type: ignore[assignment]
    loop.run_training(
        job,
        Watched(remat="full", mesh=mesh_of(run)),
        made_up_feed(job),
        lambda report: losses.update({report.step: report.loss}),
    )
    return {"losses": losses, "lies": lies, "compiles": compiles, "restored": restored}


def differences(saved: Path, weights: dict[str, Tensor], state: OptimizerState) -> list[str]:
    """Names of tensors on the chips whose bits differ from the checkpoint's."""
    checkpoint = load_checkpoint(str(saved))
    assert checkpoint.optimizer is not None
    wrong = []
    for kind in ("weights", "first", "second", "average"):
        expected = checkpoint.weights if kind == "weights" else getattr(checkpoint.optimizer, kind)
        got = weights if kind == "weights" else getattr(state, kind)
        wrong += [f"{kind} {name}" for name in expected.keys() ^ got.keys()]
        wrong += [f"{kind} {name}" for name in expected.keys() & got.keys() if not same_bits(expected[name], got[name])]
    return sorted(wrong)


def same_bits(left: Tensor, right: Tensor) -> bool:
    return torch.equal(left.view(torch.int32), right.view(torch.int32))


def layout(parameters: dict[str, Tensor], state: OptimizerState) -> dict[str, list[str]]:
    """Parameter -> how it, its moments and its average are divided over the chips, in the compiler's words."""
    import torch_xla

    torch_xla.sync(wait=True)
    assert state.average is not None
    parts = [parameters, state.first, state.second, state.average]
    return {name: [torch_xla._XLAC._get_xla_sharding_spec(part[name]) for part in parts] for name in parameters}


def farthest(losses: dict[str, float], from_: dict[str, float]) -> float:
    """The largest relative difference between two runs' losses in the steps of the first."""
    return max(abs(loss / from_[step] - 1) for step, loss in losses.items())


def main(directory: str, *runs: str) -> None:
    print(json.dumps({run: trained(run, Path(directory)) for run in runs}))


if __name__ == "__main__":
    main(*sys.argv[1:])
