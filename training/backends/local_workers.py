"""Several workers on this machine without Ray: processes that share each step over gloo or nccl, as under Ray Train.

They are for computing a step again (`training/replay.py`) and for tests; `training/worker/` is for runs that must
survive the loss of a machine. Cost: each process imports torch, about 3 s.
"""

import dataclasses
import multiprocessing
import pickle
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from training.backends.base import Backend
from training.backends.devices import resolve_device
from training.backends.make import abilities_of, make_backend
from training.setup import Setup

Work = Callable[..., Any]
"""(backend, *arguments) -> the answer of the worker of rank 0; importable by name, with picklable arguments."""


def run_workers(setup: Setup, work: Work, *arguments: Any) -> Any:
    """Calls `work` in a process for each worker of the set-up and returns what the first one returned.

    The backend of each worker comes from `make_backend`; on cuda each has its own GPU. If a worker raised an error
    whose class has an `exit_code`, raises the first of these errors, otherwise RuntimeError with the traceback of the
    first worker that failed.
    """
    world_size = setup.workers
    setup = dataclasses.replace(setup, device=resolve_device(setup.device))
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as directory:
        processes = [
            context.Process(target=_worker, args=(directory, rank, setup, work, arguments))
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        answers = [
            pickle.loads(path.read_bytes()) if (path := _answer(directory, rank)).exists() else (False, "it was killed")
            for rank in range(world_size)
        ]
    for good, answer in answers:
        if not good and isinstance(answer, Exception):
            raise answer
    for rank, (good, answer) in enumerate(answers):
        if not good:
            raise RuntimeError(f"worker {rank} of {world_size} failed: {answer}")
    return answers[0][1]


def _answer(directory: str, rank: int) -> Path:
    return Path(directory) / f"answer-{rank}"


def _worker(directory: str, rank: int, setup: Setup, work: Work, arguments: tuple[Any, ...]) -> None:
    abilities = abilities_of(setup.device)
    if abilities.accelerator == "GPU":
        torch.cuda.set_device(rank)
    torch.distributed.init_process_group(
        abilities.process_group, f"file://{directory}/meet", rank=rank, world_size=setup.workers
    )
    try:
        backend: Backend = make_backend(setup, rank)
        answer = (True, work(backend, *arguments))
    except Exception as error:
        answer = (False, error if hasattr(type(error), "exit_code") else traceback.format_exc())
    _answer(directory, rank).write_bytes(pickle.dumps(answer))
    torch.distributed.destroy_process_group()
