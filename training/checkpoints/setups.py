"""In which set-up each step of a run was taken: one for all of them, or several where it was resized or moved.

A checkpoint's state lists those of the steps since the regular checkpoint before it, each with the number of steps that
were done when it began. The same set-up gives the same bits, so whoever computes a step again has to know its own.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from training.backends.base import Backend
from training.checkpoints.records import STATE_NAME, list_tables, read_verified
from training.setup import Setup

Record = Mapping[str, Any]
"""a set-up as plain JSON values, `Setup.record()`"""


def running_setup(setup: Setup, backend: Backend) -> Setup:
    """The set-up with what its backend has chosen."""
    return dataclasses.replace(setup, device=backend.abilities.device, workers=backend.world_size, remat=backend.remat)


class SetupRecord:
    """Set-ups of the steps since the last regular checkpoint, as the next one lists them."""

    def __init__(self, setup: Record, step: int, before: Sequence[Mapping[str, Any]] = ()) -> None:
        """`before`: of the interim checkpoint that the run goes on from, whose steps the next one lists again."""
        self._setup = setup
        self._listed = _appended(before, step, setup)

    def listed(self) -> list[dict[str, Any]]:
        """As plain JSON values: {"after": steps done before, "setup": ...}, in order."""
        return list(self._listed)

    def saved(self, step: int) -> None:
        """A regular checkpoint of this step lists what was until now."""
        self._listed = _appended((), step, self._setup)


def read_setups(root: str) -> list[tuple[int, Record]]:
    """(steps done before, set-up) of a whole run, in order; only where it changes."""
    setups: list[dict[str, Any]] = []
    for uri, record in list_tables(root):
        state = json.loads(read_verified(uri, record, STATE_NAME))
        for entry in state["setups"]:
            setups = _appended(setups, entry["after"], entry["setup"])
    return [(entry["after"], entry["setup"]) for entry in setups]


def setups_between(root: str, first: int, last: int) -> list[tuple[int, Record]]:
    """(steps done at its end, set-up) for the steps first + 1 to last, in order."""
    setups = read_setups(root)
    ends = [after for after, _ in setups[1:]] + [last]
    return [
        (min(end, last), setup)
        for (after, setup), end in zip(setups, ends, strict=True)
        if end > first and after < last
    ]


def _appended(before: Sequence[Mapping[str, Any]], step: int, setup: Record) -> list[dict[str, Any]]:
    """What was there until `step`, and this set-up from then on."""
    kept = [dict(entry) for entry in before if entry["after"] < step]
    return kept if kept and kept[-1]["setup"] == setup else [*kept, {"after": step, "setup": dict(setup)}]
