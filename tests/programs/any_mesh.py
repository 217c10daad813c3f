"""Checkpoints of every kind of run, loaded by every other kind: are parameters and moments the same bits?

    python -m tests.programs.any_mesh DIRECTORY ALL KIND ...    ALL: kinds with commas; KIND ...: those of this process

A kind is `cpu`, `fsdp` (two workers that divide the model over gloo), or a mesh of virtual devices such as 1x2x2 (chips
along replica, data and model). Each process trains two steps as each of its kinds, waits for the checkpoints of all
other kinds, loads each and saves it again. Prints {kind: {other kind: names of files that differ}}.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from model import Gemma2
from tests.programs.examples import made_up_feed, moved
from tests.programs.meshes import mesh_job, mesh_of
from tests.programs.places import REPOSITORY
from tests.programs.xla_flags import QUICK_COMPILES
from training.backends.base import Backend
from training.backends.torch_backend import TorchBackend
from training.checkpoints.records import checkpoint_uri, read_commit
from training.checkpoints.save_load import load_checkpoint, save_checkpoint
from training.checkpoints.state import restore_state, snapshot_state
from training.job import TrainJob
from training.loop import run_training
from training.optim import init_state
from training.setup import Setup

STEPS = 2
MESHES = ("1x1x1", "1x2x1", "1x1x2", "1x2x2", "2x2x1")
KINDS = ("cpu", "fsdp", *MESHES)
SECONDS = 240.0


def changed_files_by_kind(kinds: Iterable[str], directory: Path) -> dict[str, dict[str, list[str]]]:
    """The results of processes that run together: one for each number of chips, one for `cpu`, one for `fsdp`."""
    kinds = list(kinds)
    groups: dict[str, list[str]] = {}
    for kind in kinds:
        groups.setdefault(kind if kind in ("cpu", "fsdp") else str(mesh_of(kind).chips), []).append(kind)
    running = []
    for chips, mine in groups.items():
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
        if chips.isdigit():
            environment |= {"PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": chips, "XLA_FLAGS": QUICK_COMPILES}
        words = [sys.executable, "-m", "tests.programs.any_mesh", str(directory), ",".join(kinds), *mine]
        running.append(subprocess.Popen(words, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True))
    by_kind: dict[str, dict[str, list[str]]] = {}
    outputs = [process.communicate()[0] for process in running]
    for process, lines in zip(running, outputs, strict=True):
        assert process.returncode == 0, process.args
        by_kind |= json.loads(lines.splitlines()[-1])
    return by_kind


def job_of(kind: str, directory: str) -> TrainJob:
    job = mesh_job(Path(directory) / kind)
    config = dataclasses.replace(job.config, steps=STEPS, checkpoint_every_steps=STEPS)
    return moved(dataclasses.replace(job, config=config), workers=2 if kind == "fsdp" else 1)


def trained(backend: Backend, directory: str, kind: str) -> None:
    job = job_of(kind, directory)
    run_training(job, backend, made_up_feed(job, backend.rank, backend.world_size))


def loaded(backend: Backend, directory: str, kind: str, others: Iterable[str]) -> dict[str, list[str]]:
    """Other kind -> files of tensors that differ after its checkpoint was loaded and saved again on this kind."""
    changed_files = {}
    for other in others:
        if other == kind:
            continue
        uri = checkpoint_uri(str(Path(directory) / other), STEPS)
        deadline = time.monotonic() + SECONDS
        while (commit := read_commit(uri)) is None:
            assert time.monotonic() < deadline, f"{uri} does not come"
            time.sleep(0.2)
        saved = again(backend, uri)
        files = {name for name in commit["files"] if name.endswith(".safetensors")}
        assert {name.partition(".")[0] for name in files} == {"model", "optimizer", "average"}
        changed_files[other] = sorted(name for name in files if saved["files"].get(name) != commit["files"][name])
    return changed_files


def again(backend: Backend, uri: str) -> dict[str, Any]:
    """The COMMIT of a checkpoint that was loaded on this backend, as by a resumed run, and saved again."""
    checkpoint = load_checkpoint(uri)
    assert checkpoint.optimizer is not None
    model = Gemma2(job_of("cpu", "").config.model, seed=99)  # other weights than any run's
    model.load_state_dict(checkpoint.weights)
    placed = backend.place_model(model, training=True)
    parameters = {name: parameter.detach() for name, parameter in placed.named_parameters()}
    state = init_state(parameters, True, False, zeros=backend.zeros_like)
    restore_state(backend, checkpoint.optimizer, state)
    backend.step_boundary()
    weights, moments = snapshot_state(backend, parameters, state)
    with tempfile.TemporaryDirectory() as temporary:
        there = save_checkpoint(temporary, step=STEPS, weights=weights, optimizer=moments, state={}, tables={})
        commit = read_commit(there)
    assert commit is not None
    return commit


def as_fsdp(given: Backend, directory: str, others: list[str]) -> dict[str, list[str]]:
    """The same in each of the two workers."""
    from training.backends.fsdp import FsdpBackend

    backend = FsdpBackend("cpu", given.rank, given.world_size)
    trained(backend, directory, "fsdp")
    return loaded(backend, directory, "fsdp", others)


def main(directory: str, everyone: str, *mine: str) -> None:
    others = everyone.split(",")
    by_kind: dict[str, Any] = {}
    if mine == ("fsdp",):
        from training.backends.local_workers import run_workers

        by_kind["fsdp"] = run_workers(Setup(workers=2, device="cpu"), as_fsdp, directory, others)
    elif mine == ("cpu",):
        trained(TorchBackend("cpu"), directory, "cpu")
        by_kind["cpu"] = loaded(TorchBackend("cpu"), directory, "cpu", others)
    else:
        from training.backends.xla.backend import XlaBackend

        backends = {kind: XlaBackend(remat="full", mesh=mesh_of(kind)) for kind in mine}
        for kind, backend in backends.items():
            trained(backend, directory, kind)
        by_kind = {kind: loaded(backend, directory, kind, others) for kind, backend in backends.items()}
    print(json.dumps(by_kind))


if __name__ == "__main__":
    main(*sys.argv[1:])
