"""What can go wrong in a step, and how the host reacts: bad steps, silent corruption, a machine that is lost.

The step itself (`training/step.py`) leaves the weights unchanged if loss or gradient is not finite or the loss is a
spike, and sums the bits of its weights and gradients. The host reads these values a few steps later, here.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from model import Gemma2
from training.backends.base import Backend, gather_slots
from training.backends.checksum import from_halves
from training.errors import StoppedError
from training.loss import LossFunction
from training.step import VALUES

EXCHANGED = ("gradients", "weights_after")
"""Checksums that are the same in every worker."""
NAMED_ROWS = 8
"""Rows that a message names; the log names all rows."""


class BadStep(StoppedError):
    """A step whose loss or gradient is not finite, or whose loss is a spike, in a run that stops at such a step."""


class Corrupted(StoppedError):
    """Weights that changed without a step, or that differ between workers."""


class Drained(RuntimeError):
    """The run was asked to stop, and stopped after it had committed a checkpoint."""

    exit_code = 130


class WeightsWatch:
    """Compares the weights that each step found with those that the step before left, and compares all workers."""

    def __init__(self, backend: Backend, expected: int | None) -> None:
        self._backend, self._expected = backend, expected

    def sums(self, values: Sequence[Sequence[float]]) -> np.ndarray:
        """What this worker reports of its steps' VALUES: int64 [steps, 2], the sums of gradients and of weights."""
        sums = [[checksums(row)[name] for name in EXCHANGED] for row in values]
        return np.array(sums, np.int64).reshape(-1, len(EXCHANGED))

    def check(self, steps: Sequence[int], values: Sequence[Sequence[float]], everyone: Sequence[np.ndarray]) -> None:
        """Checks steps in order, each with its VALUES; `everyone` has the `sums` of all workers. Raises Corrupted."""
        if not steps:
            return
        sums = [checksums(row) for row in values]
        for step, step_sums in zip(steps, sums, strict=True):
            if self._expected is not None and step_sums["weights_before"] != self._expected:
                whose = "one of the workers" if self._backend.snapshot_by_all else f"worker {self._backend.rank}"
                raise Corrupted(
                    f"step {step} found weights with the checksum {step_sums['weights_before']:08x}, but step "
                    f"{step - 1} left {self._expected:08x}: memory of {whose} changed between the two; nothing "
                    "was saved since, so run the same line again, on another machine if it happens twice"
                )
            self._expected = step_sums["weights_after"]
        stacked = np.stack(everyone)
        differing = np.argwhere(stacked != stacked[0])
        if len(differing):
            worker, place, name = differing[np.argsort(differing[:, 1], kind="stable")][0].tolist()
            raise Corrupted(
                f"step {steps[place]}: worker {worker} has other {EXCHANGED[name]} than worker 0 after the same sums "
                "over workers: one of the two machines computes wrongly; run the same line again without that machine"
            )


def checksums(values: Sequence[float]) -> dict[str, int]:
    """The checksums among a step's VALUES, by name."""
    named = dict(zip(VALUES, values, strict=True))
    return {
        name: from_halves(named[f"{name}_low"], named[f"{name}_high"])
        for name in ("weights_before", "gradients", "weights_after")
    }


def bad_step_message(step: int, loss: float, grad_norm: float, rows: Sequence[tuple[str, float, float]]) -> str:
    """What a person needs to know about a bad step; `rows` as `worst_rows` returns them."""
    what = "not finite" if not (math.isfinite(loss) and math.isfinite(grad_norm)) else "a spike"
    named = "; ".join(f"{row} (loss {mean:.4g}, gradient {norm:.4g})" for row, mean, norm in rows[:NAMED_ROWS])
    return (
        f"step {step}: loss {loss:.4g}, gradient norm {grad_norm:.4g}: {what}; the weights were left as they were. "
        f"Rows of the step, worst first: {named}{' and others' if len(rows) > NAMED_ROWS else ''}. Look at the rows "
        "with `python -m pipelines trace`, or run again with --on-bad-step skip to go on without this update"
    )


def worst_rows(
    model: Gemma2, loss_function: LossFunction, batch: dict[str, np.ndarray], rows: Sequence[str], backend: Backend
) -> list[tuple[str, float, float]]:
    """(row, mean loss, gradient norm) of each row alone, values that are not finite first, then by loss.

    All workers must take part. `batch` has this worker's rows, `rows` names the rows of all workers. The weights are
    the present ones: those of the bad step, or of a few updates later. If workers share the parameters, each forward
    needs all workers, so all compute the same row at once; the row then counts once for each worker, or for each place
    of a mesh that divides rows.
    """
    together = backend.snapshot_by_all
    if together:
        batch = dict(zip(batch, gather_slots(backend, *batch.values()), strict=True))
    figures = []
    for number in range(len(batch["tokens"])):
        row = {name: np.repeat(column[number : number + 1], backend.least_rows, 0) for name, column in batch.items()}
        gradients, sums = backend.gradients(model, loss_function, [backend.to_device(row)], torch.float32)
        values = torch.cat([sums, backend.norm(gradients)[None]])
        backend.step_boundary()
        ((of_row, count, norm),) = backend.fetch([values])
        figures.append([of_row / max(1.0, count), norm / max(1.0, count)])
    everyone = np.array(figures, np.float64)
    if not together:
        (everyone,) = gather_slots(backend, everyone)
    results = [(row, float(mean), float(norm)) for row, (mean, norm) in zip(rows, everyone, strict=True)]
    return sorted(results, key=lambda result: (math.isfinite(result[1]) and math.isfinite(result[2]), -result[1]))
