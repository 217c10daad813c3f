"""The study's figures from its metrics files, and nothing else: means over seeds, paired differences, curves."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.study.intervals import Difference, over_documents, over_seeds
from pipelines.study.lockstep import is_done, read_trial


@dataclass(frozen=True, kw_only=True, eq=False)
class ArmFigures:
    """One arm over all seeds."""

    name: str
    learns_from: str
    finals: tuple[dict[str, Any], ...]
    """final measurements of each seed"""
    curves: tuple[list[dict[str, Any]], ...]
    """points of the curve of each seed"""

    def mean(self, key: str) -> float:
        return float(np.mean([final[key] for final in self.finals]))

    @property
    def tokens_per_cpu_second(self) -> float:
        """The speed of training steps whose targets are ready: tokens per second of one core."""
        return sum(final["tokens"] for final in self.finals) / sum(final["step_cpu_seconds"] for final in self.finals)

    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """(steps, held-out loss in nats as the mean over seeds)."""
        steps = np.array([point["step"] for point in self.curves[0]], np.float64)
        losses = [[point["loss_sum"] / point["targets"] for point in curve] for curve in self.curves]
        return steps, np.mean(losses, axis=0)

    def reliability(self) -> tuple[np.ndarray, np.ndarray]:
        """(mean probability of the likeliest id, share of correct ids) of each bin with at least 100 targets."""
        count, sure, right = np.sum([final["bins"] for final in self.finals], axis=0)
        some = count >= 100
        return sure[some] / count[some], right[some] / count[some]


def read_arms(directory: str, names: Sequence[str], seeds: Sequence[int]) -> dict[str, ArmFigures]:
    """The arms that are finished for every seed, in the order of `names`."""
    by_arm = {}
    for name in names:
        trials = [f"{name}-{seed}" for seed in seeds]
        if all(is_done(directory, trial) for trial in trials):
            lines = [read_trial(directory, trial) for trial in trials]
            finals = tuple(points[-1] for points in lines)
            curves = tuple(points[:-1] for points in lines)
            by_arm[name] = ArmFigures(name=name, learns_from=finals[0]["learns_from"], finals=finals, curves=curves)
    return by_arm


def by_seeds(ours: ArmFigures, theirs: ArmFigures, key: str = "loss") -> Difference:
    """The difference ours - theirs, paired over seeds."""
    return over_seeds([final[key] for final in ours.finals], [final[key] for final in theirs.finals])


def by_documents(ours: ArmFigures, theirs: ArmFigures) -> Difference:
    """The difference of the losses, each the mean over seeds, paired over held-out documents."""
    sums = [np.mean([final["loss_of_rows"] for final in arm.finals], axis=0).tolist() for arm in (ours, theirs)]
    final = ours.finals[0]
    return over_documents(sums[0], sums[1], final["targets_of_rows"], final["document_of_rows"])
