"""The rows of a step do not depend on the number of workers, nor on a change of it in the middle of an epoch."""

from pathlib import Path

import pytest

from tests.training.worlds import rows_by_world


@pytest.mark.slow
def test_a_resized_run_takes_the_rows_and_losses_of_one_worker(tmp_path: Path) -> None:
    check(rows_by_world(tmp_path, ("one", "resized")))


@pytest.mark.chaos
def test_every_number_of_workers_takes_the_same_rows(tmp_path: Path) -> None:
    check(rows_by_world(tmp_path))


def check(found: dict) -> None:
    assert found["steps"] == 16
    assert found["rows"] == 64
    assert found["same_rows"]
    assert found["largest_loss_difference"] < 1e-5
