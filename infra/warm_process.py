"""One process on the embedded Ray that keeps its imports and compiled programs from one task of a driver to the next.

    RaySession.map(whole_node=True)   the shards of a stage that computes with a model
    train_under_ray                   a run of training with one worker

Otherwise each of them would start its own processes, which import torch and torch_xla and compile again. The process
reserves no resources of Ray, so its user must have the machine to itself. The steps of a recipe do, one after another.
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
"""functions that run in the process when a stage or a run has ended, to drop shared objects such as a model"""

END_SECONDS = 10.0
"""longest wait for the end of a killed process, in seconds"""


class WarmProcess:
    """The process starts with the first task, and again if it has died or a task needs another kind of process."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._kind = ""
        self._actor: Any = None
        self._pid = 0

    def run(self, function: Callable[..., Any], *arguments: Any, kind: str = "") -> Any:
        """The result of the function. `kind`: what a process cannot change after it has computed, such as its mesh.

        An exception of the function is raised as Ray's RayTaskError. Any other RayError means that the process died.
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
        except BaseException:  # it died, or the driver has to stop: its work is no longer needed
            self.close()
            raise

    def forget(self) -> None:
        """Frees the memory for the next stage or run, after one has ended."""
        import ray

        if self._actor is not None:
            try:
                self.run(_forget, kind=self._kind)
            except ray.exceptions.RayError as error:  # the results of the stage are already returned
                logger.warning("the warm process is closed: %s", error)
                self.close()

    def close(self) -> None:
        """Ends the process and waits for its end: two processes could write to one run."""
        import ray

        if self._actor is not None:
            ray.kill(self._actor)
            deadline = time.monotonic() + END_SECONDS
            while self._pid and Path(f"/proc/{self._pid}").exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            self._actor, self._pid = None, 0


class _Process:
    """The actor. Every task has the same number of torch threads."""

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
        torch.cuda.empty_cache()  # another process may need the memory of the GPU next
