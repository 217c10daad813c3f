"""A seeded few of `python -m tests.training.chaos`; all of it is `make chaos`."""

import pytest

from tests.training import chaos

pytestmark = pytest.mark.slow


def test_a_run_killed_in_its_saves_goes_on_to_the_same_bits() -> None:
    assert chaos.saves(kills=2, seed=2)
