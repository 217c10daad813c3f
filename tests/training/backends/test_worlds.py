"""The rows of a step do not depend on the number of workers, nor on a change of it in the middle of an epoch."""

from pathlib import Path

import pytest

from tests.programs.chaos_log import Counts
from tests.programs.worlds import rows_by_world


@pytest.mark.slow
def test_a_resized_run_takes_the_rows_and_losses_of_one_worker(tmp_path: Path) -> None:
    check(rows_by_world(tmp_path, ("one", "resized")))


@pytest.mark.chaos("training worlds")
def test_every_number_of_workers_takes_the_same_rows(tmp_path: Path, counts: Counts) -> None:
    comparison = rows_by_world(tmp_path)
    check(comparison)
    counts.add(runs=3, compared=comparison["rows"])


def check(comparison: dict) -> None:
    assert comparison["steps"] == 16
    assert comparison["rows"] == 64
    assert comparison["same_rows"]
    assert comparison["largest_loss_difference"] < 1e-5
