"""95 % confidence intervals of PAIRED differences between arms: over seeds, and over held-out documents.

Over seeds (same initial weights, same rows in the same order): Student's t of the differences, one for each seed. This
interval covers the chance in training. Over documents: the difference is a ratio of sums, nats over targets, and its
variance is that of its linearization between documents (Cochran, Sampling Techniques, 1977, section 6.3). Rows of one
document are alike, so documents are the samples. This interval covers the choice of the held-out text.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The mean of a difference and half the width of its interval (infinite for one sample)."""

    mean: float
    half_width: float

    @property
    def clear(self) -> bool:
        """Whether the interval does not contain 0."""
        return abs(self.mean) > self.half_width


def over_seeds(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """The interval of ours - theirs, seed by seed, for at least one pair."""
    assert len(ours) == len(theirs) > 0, f"got {len(ours)} and {len(theirs)} values"
    differences = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    count = len(differences)
    if count == 1:
        return Difference(mean=float(differences[0]), half_width=math.inf)
    error = float(differences.std(ddof=1)) / math.sqrt(count)
    return Difference(mean=float(differences.mean()), half_width=_t(count - 1) * error)


def over_documents(
    ours: Sequence[float], theirs: Sequence[float], targets: Sequence[int], documents: Sequence[int]
) -> Difference:
    """The interval of (sum of ours - sum of theirs) / targets, from the sums and the document of each row."""
    of_document, groups = np.unique(np.asarray(documents), return_inverse=True)
    count = len(of_document)
    sums = np.bincount(groups, np.asarray(ours, np.float64) - np.asarray(theirs, np.float64), count)
    weights = np.bincount(groups, np.asarray(targets, np.float64), count)
    mean = float(sums.sum() / weights.sum())
    if count == 1:
        return Difference(mean=mean, half_width=math.inf)
    variance = count / (count - 1) * float(np.square(sums - mean * weights).sum()) / float(weights.sum()) ** 2
    return Difference(mean=mean, half_width=_t(count - 1) * math.sqrt(variance))


def _t(degrees: int) -> float:
    return float(stdtrit(degrees, 0.5 + CONFIDENCE / 2))
