"""`python -m pipelines replay --run REF --step N`: computes a step again and compares it with the record, bit for bit.

It takes the set-up that ran the step (device, workers, threads, rows at a time) from the checkpoint behind it, so it
needs a machine of that kind. Ray is not started. Exit code 0: the same; 1: it differs.
"""

from dataclasses import dataclass

import tyro

from pipelines.checkpoints.trained_run import open_run
from pipelines.engine.inputs import DEFAULT_ROOT
from training.replay import replay


@dataclass(frozen=True, kw_only=True)
class Question:
    """Was this step computed as it should have been?"""

    run: str
    """train_model/fingerprint, or the path of a run"""
    step: int
    """a step that the run has done, from 1"""
    root: str = DEFAULT_ROOT
    """where runs lie"""


def replay_(words: list[str]) -> int:
    """Prints the verdict; returns the exit code. Raises UserError where the run has no record of the step."""
    question = tyro.cli(Question, args=words, prog="python -m pipelines replay", description=__doc__.strip())
    run = open_run(question.run, question.root)
    result = replay(run.job(question.step), question.step)
    steps = f"steps {result.first_step + 1} to {result.first_step + result.steps}"
    for line in result.differences:
        print(line)
    if result.differences:
        print(
            f"{run.name}: {steps} computed again: NOT the same; this machine or the one that trained computes wrongly"
        )
        return 1
    print(f"{run.name}: {steps} computed again: the same losses, gradients and weights, bit for bit")
    return 0
