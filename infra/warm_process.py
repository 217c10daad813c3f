"""One process on the embedded Ray that keeps what it has imported and compiled from one task of a driver to the next.

    RaySession.map(whole_node=True)   the shards of a stage that computes with a model
    train_under_ray                   a run of training with one worker

Each would start processes of its own otherwise, which import torch and torch_xla and compile again. The process
reserves nothing of Ray, so whoever uses it has the machine alone: the steps of a recipe do, one after another.
"""

import gc
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

FORGET: list[Callable[[], None]] = []
"""called in the process when a stage or a run has ended: drops what only its own tasks share, such as a model"""

END_SECONDS = 10.0
"""that a killed process may take to be gone"""


class WarmProcess:
    """Starts with the first task, and again after it has died or where a task needs another kind of process."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._kind = ""
        self._actor: Any = None
        self._pid = 0

    def run(self, function: Callable[..., Any], *arguments: Any, kind: str = "") -> Any:
        """What the function returns. `kind`: what a process cannot change once it has computed, such as its mesh.

        Raises what the function raises, as Ray hands it on: a RayTaskError. Any other RayError says that the process
        died.
        """
        import ray

        if self._actor is None or kind != self._kind:
            self.close()
            self._actor = ray.remote(num_cpus=0)(_Process).remote(self._threads)
            self._kind = kind
        try:
            self._pid = self._pid or ray.get(self._actor.pid.remote())
            return ray.cloudpickle.loads(ray.get(self._actor.run.remote(ray.cloudpickle.dumps((function, arguments)))))
        except ray.exceptions.RayTaskError:
            raise
        except BaseException:  # it died, or the driver was told to stop: what it still does is of no use
            self.close()
            raise

    def forget(self) -> None:
        """A stage or a run has ended: the next one has the memory for itself."""
        import ray

        if self._actor is not None:
            try:
                self.run(_forget, kind=self._kind)
            except ray.exceptions.RayError as error:  # what was asked for is done already
                logger.warning("the warm process is closed: %s", error)
                self.close()

    def close(self) -> None:
        """Ends the process, and waits until it is gone: two of them could write one run."""
        import ray

        if self._actor is not None:
            ray.kill(self._actor)
            deadline = time.monotonic() + END_SECONDS
            while self._pid and Path(f"/proc/{self._pid}").exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            self._actor, self._pid = None, 0


class _Process:
    """The actor: each task finds as many threads of torch as the first one did."""

    def __init__(self, threads: int) -> None:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # read when torch is imported
        self._threads = threads

    def pid(self) -> int:
        return os.getpid()

    def run(self, call: bytes) -> bytes:
        from ray import cloudpickle

        if (torch := sys.modules.get("torch")) is not None:
            torch.set_num_threads(self._threads)
        function, arguments = cloudpickle.loads(call)
        return bytes(cloudpickle.dumps(function(*arguments)))


def _forget() -> None:
    for forget in FORGET:
        forget()
    gc.collect()
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # back to the GPU: another process may need it next
