"""Steps of a very small model give the losses that were stored: a refactor changes no number.

`make test` compares 100 steps on cpu and the first 30 on xla, `make chaos` 100 on both.

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


HAS_XLA = importlib.util.find_spec("torch_xla") is not None
IN_MAKE_TEST = {"cpu": STEPS, **({"xla": 30} if HAS_XLA else {})}


@pytest.fixture(scope="module")
def curves() -> dict[str, Curves]:
    return curves_of(IN_MAKE_TEST)


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("device", DEVICES)
def test_losses_are_those_that_were_stored(curves: dict[str, Curves], device: str, objective: str) -> None:
    if device not in curves:
        pytest.skip("torch_xla is not installed")
    check(curves, device, objective, IN_MAKE_TEST[device])


@pytest.mark.chaos("golden losses")
@pytest.mark.skipif(not HAS_XLA, reason="torch_xla is not installed")
def test_all_losses_on_xla_are_those_that_were_stored() -> None:
    curves = curves_of({"xla": STEPS})
    for objective in OBJECTIVES:
        check(curves, "xla", objective, STEPS)


def check(curves: dict[str, Curves], device: str, objective: str, steps: int) -> None:
    losses, stored = curves[device][objective], STORED[device][objective]
    assert len(losses) == steps
    assert len(stored) == STEPS
    np.testing.assert_allclose(losses[:FIRST_STEPS], stored[:FIRST_STEPS], rtol=1e-5)
    np.testing.assert_allclose(losses, stored[:steps], rtol=1e-3)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_stored_losses_fall_and_are_alike_on_both_devices(objective: str) -> None:
    cpu, xla = (STORED[device][objective] for device in DEVICES)
    assert np.mean(cpu[-10:]) < 0.9 * np.mean(cpu[:10])
    np.testing.assert_allclose(xla[:FIRST_STEPS], cpu[:FIRST_STEPS], rtol=1e-5)
    np.testing.assert_allclose(xla, cpu, rtol=1e-3)
