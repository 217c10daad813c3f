"""A driver of `filter_text`, in a process of its own: work on a shard waits until a file GATE.<shard> is there.

python -m tests.programs.slow_driver ROOT REFERENCE GATE: the fingerprint and the bytes are the stage's.
"""

import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from infra.ray_session import RaySession
from pipelines.engine.resources import Resources
from pipelines.engine.runner import run_task
from pipelines.engine.shard_map import ShardOutput
from pipelines.engine.stage import Context, Outcome, load_stage
from pipelines.engine.task import Task, resolve_inputs
from pipelines.stages import filter_text

PATIENCE_SECONDS = 600


@dataclass(frozen=True)
class Slow:
    """The stage's own work, after the gate."""

    config: filter_text.Config
    gate: str

    def __call__(self, uri: str) -> ShardOutput:
        Path(f"{self.gate}.worker-{os.getpid()}").touch()
        gate = Path(self.gate + "." + Path(uri).stem.rpartition("-")[2])
        for _ in range(PATIENCE_SECONDS * 50):
            if gate.exists():
                return FILTER(self.config)(uri)
            time.sleep(0.02)
        raise TimeoutError(gate)


FILTER = filter_text._Filter


def main(root: str, reference: str, gate: str) -> None:
    """Runs the stage, and prints which driver came first."""
    stage = load_stage("filter_text")
    config = filter_text.Config()

    def run(context: Context, config: filter_text.Config) -> Outcome:
        filter_text._Filter = lambda config, words, classifiers: Slow(config, gate)  # type: ignore[assignment, misc]
        return filter_text.run(context, config)

    task = Task(
        stage=replace(stage, run=run),
        config=config,
        inputs=resolve_inputs(stage, config, {"text": [reference]}, root),
        root=root,
    )
    session = RaySession(cpus=1)
    try:
        run_task(task, Resources(), session)
    finally:
        session.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
