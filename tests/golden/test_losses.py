"""100 steps of a very small model give the losses that were stored: a refactor changes no number.

`python -m tests.programs.golden_losses > tests/golden/losses.json` remakes the file. Losses may differ in their last
digits between machines, and every step carries such a difference on: hence a bound for the first and one for all.
"""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from tests.programs.golden_losses import DEVICES, OBJECTIVES, STEPS, Curves, curves_of

STORED = json.loads((Path(__file__).parent / "losses.json").read_text())
FIRST_STEPS = 20


@pytest.fixture(scope="module")
def curves() -> dict[str, Curves]:
    has_xla = importlib.util.find_spec("torch_xla") is not None
    return curves_of(device for device in DEVICES if device != "xla" or has_xla)


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("device", DEVICES)
def test_losses_are_those_that_were_stored(curves: dict[str, Curves], device: str, objective: str) -> None:
    if device not in curves:
        pytest.skip("torch_xla is not installed")
    losses, stored = curves[device][objective], STORED[device][objective]
    assert len(losses) == len(stored) == STEPS
    np.testing.assert_allclose(losses[:FIRST_STEPS], stored[:FIRST_STEPS], rtol=1e-5)
    np.testing.assert_allclose(losses, stored, rtol=1e-3)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_stored_losses_fall_and_are_alike_on_both_devices(objective: str) -> None:
    cpu, xla = (STORED[device][objective] for device in DEVICES)
    assert np.mean(cpu[-10:]) < 0.9 * np.mean(cpu[:10])
    np.testing.assert_allclose(xla[:FIRST_STEPS], cpu[:FIRST_STEPS], rtol=1e-5)
    np.testing.assert_allclose(xla, cpu, rtol=1e-3)
