"""`python -m pipelines replay --run REF --step N`: computes a step again and compares it with the record, bit for bit.

The set-up of the step (device, workers, threads, rows at a time) comes from the next checkpoint after it, so the
command needs a machine of that kind. It does not start Ray. Exit codes: 0 if the results are the same, 1 if they
differ.
"""

from dataclasses import dataclass, fields

from pipelines.checkpoints.trained_run import open_run
from pipelines.engine.flags import parse, refuse_unknown
from pipelines.engine.inputs import DEFAULT_ROOT
from pipelines.engine.printed import print_line
from training.replay import replay


@dataclass(frozen=True, kw_only=True)
class Question:
    """Was this step computed correctly?"""

    run: str
    """run as train_model/fingerprint, or as the path of its directory"""
    step: int
    """step that the run has done, counted from 1"""
    root: str = DEFAULT_ROOT
    """root of all runs"""


def replay_(words: list[str]) -> int:
    """Prints the verdict; returns the exit code. Raises UserError if the run has no record of the step."""
    refuse_unknown(words, [entry.name for entry in fields(Question)])
    question = parse(Question, words, program="python -m pipelines replay", description=__doc__.strip())
    run = open_run(question.run, question.root)
    result = replay(run.job(question.step), question.step)
    steps = f"steps {result.first_step + 1} to {result.first_step + result.steps}"
    for line in result.differences:
        print_line(line)
    if result.differences:
        print(
            f"{run.name}: {steps} computed again: NOT the same; this machine or the one that trained computes wrongly"
        )
        return 1
    print(f"{run.name}: {steps} computed again: the same losses, gradients and weights, bit for bit")
    return 0
