"""Run in each worker by test_fsdp.py: a model divided over the workers trains as whole models do. No Ray."""

import contextlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model import Gemma2, gemma2_tiny
from tests.programs.examples import example_job, made_up_feed, moved
from training import run
from training.backends.base import Backend
from training.backends.fsdp import FsdpBackend
from training.backends.names import Device
from training.backends.torch_backend import TorchBackend
from training.checkpoints.save_load import load_checkpoint
from training.checkpoints.state import restore_state, snapshot_state
from training.config import OptimizerConfig
from training.drain import DrainWhen
from training.faults import BadStep, Corrupted, Drained
from training.feed import direct_feed
from training.job import TrainJob
from training.loop import run_training
from training.optim import init_state

STEPS = 20
HALF = "step-00000010"
# Sizes that neither 2 nor 4 workers divide evenly.
MODEL = gemma2_tiny(vocab_size=65, d_model=30, ffw_dim=62, heads=2, kv_heads=1, head_dim=16, query_scale=16)
BAD_TOKEN = 63


def divided_job(directory: str, name: str, workers: int, **config: Any) -> TrainJob:
    settings = {"model": MODEL, "steps": STEPS, "global_batch": 8, "checkpoint_every_steps": 10, **config}
    return example_job(Path(directory) / name, config=settings, workers=workers)


def train(job: TrainJob, backend: Backend, **more: Any) -> Any:
    return run_training(job, backend, made_up_feed(job, backend.rank, backend.world_size), **more)


def runs(given: TorchBackend, directory: str) -> dict[str, Any]:
    """All runs, and what only the workers see; `directory` holds a run of one worker, `one`.

    A worker alone divides its model too, into one part: the one GPU of a machine takes the same path as many.
    """
    torch.set_num_threads(1)
    device: Device = "cuda" if given.device.type == "cuda" else "cpu"
    rank, workers = given.rank, given.world_size
    whole, backend = TorchBackend(device, rank, workers), FsdpBackend(device, rank, workers)
    train(divided_job(directory, "divided", workers), backend)
    train(divided_job(directory, "whole", workers), whole)
    for dtype in ("bfloat16", "float32"):
        optimizer = OptimizerConfig(learning_rate=0.01, warmup_steps=2, average_decay=0.9)
        config = {"compute_dtype": dtype, "steps": 4, "spike_sigmas": 8.0, "optimizer": optimizer}
        for kind, backend_of_kind in (("divided", backend), ("whole", whole)):
            job = divided_job(directory, f"{kind}-{dtype}", workers, **config)
            train(moved(job, microbatch_rows=1), backend_of_kind)
    resumed(backend, divided_job(directory, "resumed", workers), stop=7)
    if rank == 0:
        shutil.copytree(f"{directory}/one/{HALF}", f"{directory}/from-one/{HALF}")
    torch.distributed.barrier()
    train(divided_job(directory, "from-one", workers), backend)
    return {
        "back_and_forth": back_and_forth(backend, f"{directory}/one/{HALF}"),
        "shares": backend.gather(np.array([share(backend)])).tolist(),
        "flipped": said_by_all(backend, flipped(divided_job(directory, "flipped", workers), device)),
        "bad": said_by_all(backend, bad(backend, divided_job(directory, "bad", workers))),
        "bad_whole": said_by_all(backend, bad(whole, divided_job(directory, "bad-whole", workers))),
    }


def resumed(backend: Backend, job: TrainJob, stop: int) -> None:
    """A run that is stopped after `stop` steps and resumed from its checkpoint."""
    steps: list[int] = []

    def asked() -> bool:
        steps.append(1)
        return len(steps) == stop

    with contextlib.suppress(Drained):
        train(job, backend, drain=DrainWhen(asked))
    assert len(steps) == stop
    torch.distributed.barrier()
    assert train(job, backend).first_step == stop


def back_and_forth(backend: FsdpBackend, uri: str) -> bool:
    """Whether weights and moments of a checkpoint are the same bits after they were divided and gathered."""
    checkpoint = load_checkpoint(uri)
    assert checkpoint.optimizer is not None
    model = Gemma2(MODEL)
    model.load_state_dict(checkpoint.weights)
    backend.place_model(model, training=True)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    state = init_state(parameters)
    restore_state(backend, checkpoint.optimizer, state)
    weights, moments = snapshot_state(backend, parameters, state)
    return (
        same(weights, checkpoint.weights)
        and same(moments.first, checkpoint.optimizer.first)
        and same(moments.second, checkpoint.optimizer.second)
    )


def same(tensors: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> bool:
    return tensors.keys() == expected.keys() and all(
        torch.equal(tensors[name], tensor) for name, tensor in expected.items()
    )


def share(backend: FsdpBackend) -> float:
    """Bytes of parameters and moments in this worker, divided by those of the whole model."""
    model = Gemma2(MODEL)
    elements = sum(parameter.numel() for parameter in model.parameters())
    backend.place_model(model, training=True)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    state = init_state(parameters)
    held = [part for of in (parameters, state.first, state.second) for part in backend.parts(of).values()]
    return sum(part.untyped_storage().nbytes() for part in held) / (3 * 4 * elements)


class Flipping(FsdpBackend):
    """Flips one bit of the last worker's parts between steps 5 and 6."""

    steps = 0
    model: Any = None

    def place_model(self, model: Any, **how: Any) -> Any:
        self.model = super().place_model(model, **how)
        return self.model

    def step_boundary(self) -> None:
        self.steps += 1
        if self.steps == 6 and self.rank == self.world_size - 1:  # the first boundary is before the steps
            part = next(iter(self.parts(dict(self.model.named_parameters())).values()))
            part.view(torch.int32).view(-1)[3] ^= 1 << 9


def flipped(job: TrainJob, device: Device) -> str:
    try:
        train(job, Flipping(device, torch.distributed.get_rank(), job.setup.workers))
    except Corrupted as error:
        return str(error)
    return ""


def bad(backend: Backend, job: TrainJob) -> str:
    """The message of a run with an infinite loss in the second row of the last worker, at step 7."""
    plain = run.loss_function

    def poisoned(*arguments: Any) -> Any:
        inner = plain(*arguments)

        def loss(model: Any, batch: Any) -> Any:
            loss_sum, targets = inner(model, batch)
            return loss_sum / (batch["tokens"] != BAD_TOKEN).all(), targets

        return loss

    def feed(start: int, stop: int) -> Any:
        for step, batch in made_up_feed(job, backend.rank, backend.world_size)(start, stop):
            if step + 1 == 7 and backend.rank == backend.world_size - 1:
                batch = {**batch, "tokens": batch["tokens"].copy()}
                batch["tokens"][1, 5] = BAD_TOKEN
            yield step, batch

    run.loss_function = poisoned  # type: ignore[assignment]
    try:
        run_training(job, backend, feed)
    except BadStep as error:
        return str(error)
    finally:
        run.loss_function = plain
    return ""


def said_by_all(backend: Backend, said: str) -> list[str]:
    return [str(text) for text in backend.gather(np.array([said], object))]


def from_files(backend: Backend, job: TrainJob) -> None:
    """A run that `training/replay.py` can compute again."""
    torch.set_num_threads(1)
    run_training(job, backend, direct_feed(job, backend.rank, backend.world_size))


def groups(given: Backend, directory: str) -> dict[str, Any]:
    """Workers in two groups, each of which divides a model; `directory` holds a run of one worker, `one`."""
    torch.set_num_threads(1)
    workers = given.world_size
    backend = FsdpBackend("cpu", given.rank, workers, replica=2)
    train(divided_job(directory, "groups", workers), backend)
    resumed(backend, divided_job(directory, "groups-resumed", workers), stop=7)
    return {
        "back_and_forth": back_and_forth(backend, f"{directory}/one/{HALF}"),
        "shares": backend.gather(np.array([share(backend)])).tolist(),
    }
