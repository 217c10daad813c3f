"""Several workers on this machine without Ray: processes that share each step over gloo or nccl, as under Ray Train.

For computing a step again (`training/replay.py`) and for tests; a run that has to survive the loss of a machine is
`training/worker/`'s. Cost: each process imports torch, about 3 s.
"""

import multiprocessing
import pickle
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from training.backends.base import Backend
from training.backends.make import make_backend
from training.config import Device

Work = Callable[..., Any]
"""(backend, *arguments) -> what the worker of rank 0 answers; importable by name, as are its arguments picklable"""


def run_workers(world_size: int, work: Work, *arguments: Any, device: Device = "cpu", mesh: str = "") -> Any:
    """Calls `work` in `world_size` processes and returns what the first one returned.

    Their backend is `make_backend`'s, on cuda with a GPU for each. Raises what the first worker raised where its class
    has an `exit_code`, otherwise RuntimeError with the traceback of the first worker that failed.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as directory:
        processes = [
            context.Process(target=_worker, args=(directory, rank, world_size, device, mesh, work, arguments))
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


def _worker(
    directory: str, rank: int, world_size: int, device: Device, mesh: str, work: Work, arguments: tuple[Any, ...]
) -> None:
    if device == "cuda":
        torch.cuda.set_device(rank)
    kind = "nccl" if device == "cuda" else "gloo"
    torch.distributed.init_process_group(kind, f"file://{directory}/meet", rank=rank, world_size=world_size)
    try:
        backend: Backend = make_backend(device, rank, world_size, mesh=mesh)
        answer = (True, work(backend, *arguments))
    except Exception as error:
        answer = (False, error if hasattr(type(error), "exit_code") else traceback.format_exc())
    _answer(directory, rank).write_bytes(pickle.dumps(answer))
    torch.distributed.destroy_process_group()
