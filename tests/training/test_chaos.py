"""A seeded few of `python -m tests.programs.chaos`; all of it is `make chaos`."""

import pytest

from tests.programs import chaos

pytestmark = pytest.mark.slow


def test_a_run_killed_in_its_saves_goes_on_to_the_same_bits(capsys: pytest.CaptureFixture[str]) -> None:
    """One kill of two workers that write together; `make chaos` has those that write alone too."""
    assert chaos.saves_of("pair", kills=1, seed=2)
    assert "saves pair: runs 3, kills 1, not resumable 0, begun before the newest 0, lost 0" in capsys.readouterr().out
