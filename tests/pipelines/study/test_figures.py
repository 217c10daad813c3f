"""Intervals against scipy's own, calibration against its definition, plots within their frames."""

import math
import re

import numpy as np
import pytest
import scipy.stats
import torch

from pipelines.study import plots
from pipelines.study.intervals import Difference, over_documents, over_seeds
from pipelines.study.scores import BINS, Scores
from pipelines.study.text import Rows

V, B, T = 11, 4, 30


def test_over_seeds_is_the_paired_t_interval() -> None:
    ours, theirs = [3.1, 3.3, 3.25], [3.0, 3.05, 3.21]
    difference = over_seeds(ours, theirs)
    expected = scipy.stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert difference.mean - difference.half_width == pytest.approx(expected.low)
    assert difference.mean + difference.half_width == pytest.approx(expected.high)
    assert over_seeds([1.0], [2.0]).half_width == math.inf
    with pytest.raises(AssertionError, match="got 1 and 2 values"):
        over_seeds([1.0], [2.0, 3.0])


def test_over_documents_of_equal_size_is_the_t_interval_of_their_means() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(3.0, 1.0, 40), rng.normal(2.9, 1.0, 40)
    documents = np.repeat(np.arange(10), 4)
    difference = over_documents(ours, theirs, [1] * 40, documents)
    means = (ours - theirs).reshape(10, 4).mean(1)
    expected = scipy.stats.ttest_1samp(means, 0.0).confidence_interval(0.95)
    assert difference.mean - difference.half_width == pytest.approx(expected.low)
    assert difference.mean + difference.half_width == pytest.approx(expected.high)


def test_over_documents_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        sizes = rng.integers(20, 200, 50)
        effects = rng.normal(0.05, 0.1, 50)  # what documents have in common
        sums = (effects + rng.normal(0.0, 0.3, 50) / np.sqrt(sizes)) * sizes
        difference = over_documents(sums.tolist(), [0.0] * 50, sizes.tolist(), list(range(50)))
        covered += abs(difference.mean - 0.05) <= difference.half_width
    assert 0.92 <= covered / 400 <= 0.98


def test_scores_are_their_definitions() -> None:
    generator = torch.Generator().manual_seed(0)
    log_q, log_p = ((3.0 * torch.randn(B, T, V, generator=generator)).log_softmax(-1) for _ in range(2))
    tokens = torch.randint(0, V, (B, T), generator=generator, dtype=torch.int32)
    mask = torch.rand(B, T, generator=generator) < 0.8
    mask[:, -1] = False
    scores = Scores()
    for row in range(B):
        part = slice(row, row + 1)
        scores.add(log_q[part], log_p[part], {"tokens": tokens[part], "loss_mask": mask[part]})
    summary = scores.summary(Rows(columns={}, documents=np.arange(B)))

    bins: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    losses, agreed, kl = [], [], []
    for row in range(B):
        for at in range(T):
            if mask[row, at]:
                q, p, following = log_q[row, at], log_p[row, at], int(tokens[row, at + 1])
                losses.append(-float(q[following]))
                agreed.append(int(q.argmax()) == int(p.argmax()))
                kl.append(float((p.exp() * (p - q)).sum()))
                sure = float(q.max().exp())
                bins[min(int(sure * BINS), BINS - 1)].append((sure, int(q.argmax()) == following))
    count = len(losses)
    error = sum(abs(sum(right for _, right in rated) - sum(sure for sure, _ in rated)) for rated in bins) / count
    assert summary["targets"] == count
    assert summary["loss"] == pytest.approx(np.mean(losses), rel=1e-6)
    assert summary["agreement"] == pytest.approx(np.mean(agreed))
    assert summary["kl_to_teacher"] == pytest.approx(np.mean(kl), rel=1e-5)
    assert summary["calibration_error"] == pytest.approx(error, rel=1e-5)


def test_what_is_drawn_lies_inside_the_picture() -> None:
    wide = Difference(mean=0.5, half_width=0.4)
    lines = [plots.Line(name=f"arm {number}", differences=(wide, wide)) for number in range(9)]
    drawn = plots.differences("title", "nats", ("seeds", "documents"), lines)
    points = {"one": (3.0, 3.1), "two": (3.0, 3.1), "three": (90.0, 4.0)}
    for picture in (drawn, plots.scatter("title", "bytes", "loss", points)):
        width, height = (float(size) for size in re.findall(r'width="(\d+)" height="(\d+)"', picture)[0])
        for x, y in re.findall(r'x="([\d.-]+)" y="([\d.-]+)"', picture):
            assert 0.0 <= float(x) <= width
            assert 0.0 <= float(y) <= height
