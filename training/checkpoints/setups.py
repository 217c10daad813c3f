"""The set-up of each step of a run: one set-up for all steps, or several if the run was resized or moved.

A checkpoint's state lists the set-ups of the steps since the previous regular checkpoint, each with the number of steps
that were done when the set-up began. The same set-up gives the same bits, so a replay of a step needs the step's own
set-up.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from training.backends.base import Backend
from training.checkpoints.records import STATE_NAME, list_tables, read_verified
from training.setup import Setup

Record = Mapping[str, Any]
"""A set-up as plain JSON values, `Setup.record()`."""


def running_setup(setup: Setup, backend: Backend) -> Setup:
    """The set-up with the values that its backend has chosen."""
    return dataclasses.replace(setup, device=backend.abilities.device, workers=backend.world_size, remat=backend.remat)


class SetupRecord:
    """Set-ups of the steps since the last regular checkpoint, as the next checkpoint lists them."""

    def __init__(self, setup: Record, step: int, before: Sequence[Mapping[str, Any]] = ()) -> None:
        """`before`: set-ups in the interim checkpoint that the run is resumed from; the next one lists them too."""
        self._setup = setup
        self._listed = _appended(before, step, setup)

    def listed(self) -> list[dict[str, Any]]:
        """The set-ups as plain JSON values, {"after": steps done before, "setup": ...}, in order."""
        return list(self._listed)

    def saved(self, step: int) -> None:
        """Starts a new list after the regular checkpoint of this step, which has the set-ups until now."""
        self._listed = _appended((), step, self._setup)


def read_setups(root: str) -> list[tuple[int, Record]]:
    """(steps done before, set-up) for each change of the set-up in a whole run, in order."""
    setups: list[dict[str, Any]] = []
    for uri, record in list_tables(root):
        state = json.loads(read_verified(uri, record, STATE_NAME))
        for entry in state["setups"]:
            setups = _appended(setups, entry["after"], entry["setup"])
    return [(entry["after"], entry["setup"]) for entry in setups]


def setups_between(root: str, first: int, last: int) -> list[tuple[int, Record]]:
    """(steps done at its end, set-up) for each set-up of the steps first + 1 to last, in order."""
    setups = read_setups(root)
    ends = [after for after, _ in setups[1:]] + [last]
    return [
        (min(end, last), setup)
        for (after, setup), end in zip(setups, ends, strict=True)
        if end > first and after < last
    ]


def _appended(before: Sequence[Mapping[str, Any]], step: int, setup: Record) -> list[dict[str, Any]]:
    """The set-ups until `step`, and this set-up from then on."""
    kept = [dict(entry) for entry in before if entry["after"] < step]
    return kept if kept and kept[-1]["setup"] == setup else [*kept, {"after": step, "setup": dict(setup)}]
