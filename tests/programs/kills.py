"""Runs that kill themselves, in processes of their own: in a step, or at a chosen moment of a save. No Ray.

    python -m tests.programs.kills DIRECTORY STEPS DEVICE EVERY KILL_AT MOMENT DYING RANK

Device `pair` is two workers on CPUs that divide the model (FSDP2 over gloo) and each write their files of a checkpoint.
If one is killed, the second is killed too, as Ray does.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.programs.examples import example_job, made_up_feed
from tests.programs.places import REPOSITORY
from training.backends.base import Backend
from training.job import TrainJob
from training.setup import Setup

ENVIRONMENT = {"PATH": "", "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
PAIR = "pair"
PAIR_SHARD_BYTES = 60_000  # several files for each of the two
SECONDS = 500


def in_process(
    directory: Path, steps: int, device: str, every: int, kill_at: int = 0, moment: float = -1.0, dying: int = 0
) -> int:
    """The exit code of `train_and_die` in a new process. With two workers, that of the worker `dying`."""
    count = 2 if device == PAIR else 1
    dying %= count
    words = [str(directory), str(steps), device, str(every), str(kill_at), str(moment), str(dying)]
    with tempfile.TemporaryDirectory() as home, tempfile.TemporaryFile() as errors:
        workers = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.programs.kills", *words, str(rank)],
                cwd=REPOSITORY,
                env=ENVIRONMENT | {"HOME": home},
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
            for rank in range(count)
        ]
        deadline = time.monotonic() + SECONDS
        while any(worker.poll() is None for worker in workers):
            if any(worker.poll() for worker in workers) or time.monotonic() > deadline:
                for worker in workers:
                    worker.kill()
            time.sleep(0.05)
        codes = [worker.wait() for worker in workers]
        if codes[dying] not in (0, -signal.SIGKILL):
            errors.seek(0)
            sys.stderr.write(errors.read().decode()[-3000:])
    return codes[dying] or max(map(abs, codes))


def first_step(directory: Path) -> int:
    """Number of steps that were done when the newest process began."""
    return int((directory.parent / f"{directory.name}-first-step").read_text())


def killed_job(directory: Path, steps: int, device: str, every: int) -> TrainJob:
    return example_job(
        directory,
        config={"steps": steps, "checkpoint_every_steps": every, "keep_last": 3, "keep_every_steps": 5 * every},
        device="cpu" if device == PAIR else device,
        workers=2 if device == PAIR else 1,
    )


def train_and_die(
    directory: Path, steps: int, device: str, every: int, kill_at: int, moment: float, dying: int, rank: int
) -> None:
    """Trains; the worker `dying` kills itself at step `kill_at`, or in a save after it at `moment` (0 to 1).

    A negative moment kills in the step itself.
    """
    from data import storage
    from training import loop

    loop.FETCH_STEPS = 1
    job = killed_job(directory, steps, device, every)
    torch.set_num_threads(1)
    backend = make(device, rank)
    # The writes and removals of a save that also retires a checkpoint.
    writes_of_save = 9 if device != PAIR else (18, 4)[rank]
    armed, writes = False, 0
    whole = storage.write_bytes, storage.create_exclusive, storage.remove

    def dies(number: int) -> Callable[..., None]:
        def write(uri: str, *data: bytes) -> None:
            nonlocal writes
            if armed:
                writes += 1
                if writes > int(moment * writes_of_save):
                    if data and number == 0:  # half of the file, as a kill in the middle of a write leaves it
                        Path(uri).parent.mkdir(parents=True, exist_ok=True)
                        Path(f"{uri}.dead.tmp").write_bytes(data[0][: len(data[0]) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
            whole[number](uri, *data)

        return write

    storage.write_bytes, storage.create_exclusive, storage.remove = dies(0), dies(1), dies(2)
    began = False

    def on_step(report: Any) -> None:
        nonlocal armed, began
        if not began and rank == 0:
            (directory.parent / f"{directory.name}-first-step").write_text(str(report.step - 1))
        began = True
        if kill_at and rank == dying and report.step >= kill_at:
            if moment < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            armed = True

    loop.run_training(job, backend, made_up_feed(job, backend.rank, backend.world_size), on_step)


def make(device: Any, rank: int) -> Backend:
    from training.backends.make import make_backend
    from training.checkpoints import files as checkpoint_files

    if device != PAIR:
        return make_backend(Setup(device=device))
    from training.backends.fsdp import FsdpBackend

    checkpoint_files.SHARD_BYTES = PAIR_SHARD_BYTES
    checkpoint_files.LOOK_SECONDS = 0.05
    meet = Path(os.environ["HOME"]) / "meet"
    torch.distributed.init_process_group("gloo", f"file://{meet}", rank=rank, world_size=2)
    return FsdpBackend("cpu", rank, 2)


def main(words: list[str]) -> None:
    directory, steps, device, every, kill_at, moment, dying, rank = words
    train_and_die(Path(directory), int(steps), device, int(every), int(kill_at), float(moment), int(dying), int(rank))


if __name__ == "__main__":
    main(sys.argv[1:])
