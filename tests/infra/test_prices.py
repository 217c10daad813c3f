"""Constants with sources, and money, energy and carbon from them."""

import json
from pathlib import Path

import pytest

from infra.chips import CHIPS
from infra.prices import CONSTANTS, PER_CHIP, PRICED, Prices, read_prices


def test_every_constant_says_where_it_comes_from() -> None:
    assert all(constant.source and constant.date for constant in CONSTANTS.values())
    assert set(CHIPS) < set(PRICED)
    for chip in PRICED:
        assert {f"{chip}.{name}" for name in PER_CHIP} <= set(CONSTANTS)


def test_a_chip_hour_costs_its_price_and_draws_chip_and_host() -> None:
    prices = Prices(constants=CONSTANTS)
    cost = prices.work(chip="v5p", chip_hours=1000)
    assert cost.usd == 4200
    assert cost.kwh == pytest.approx((320 + 52 * 2.5) * 1.10)
    assert cost.kg_co2e == pytest.approx(cost.kwh * 0.32305)


def test_a_gigabyte_is_paid_by_the_month_and_draws_nothing() -> None:
    cost = Prices(constants=CONSTANTS).storage(100e9)
    assert (cost.usd, cost.kwh) == (pytest.approx(6.0), 0)


def test_a_file_replaces_constants(tmp_path: Path) -> None:
    path = tmp_path / "prices.json"
    own = {"value": 0.1, "source": "our grid", "date": "2026"}
    path.write_text(json.dumps({"v5p.usd_per_chip_hour": 2, "v5p.grid_kg_per_kwh": own}))
    prices = read_prices(str(path))
    assert prices.work(chip="v5p", chip_hours=10).usd == 20
    assert prices.constants["v5p.grid_kg_per_kwh"].source == "our grid"
    assert prices["pue"] == CONSTANTS["pue"].value


def test_a_file_may_replace_every_constant(tmp_path: Path) -> None:
    path = tmp_path / "prices.json"
    path.write_text(json.dumps(dict.fromkeys(CONSTANTS, 7)))
    prices = read_prices(str(path))
    assert {prices[name] for name in CONSTANTS} == {7.0}
    assert {constant.source for constant in prices.constants.values()} == {str(path)}
    assert {name: constant.unit for name, constant in prices.constants.items()} == {
        name: constant.unit for name, constant in CONSTANTS.items()
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"v5p.usd_per_chip_huor": 2}', "no constant 'v5p.usd_per_chip_huor'; did you mean 'v5p.usd_per_chip_hour'"),
        ('{"pue": -1}', "a number of at least 0"),
        ('{"pue": {"value": 1, "unit": "x"}}', "value, source and date"),
        ("[1]", "an object of names and numbers"),
        ("pue: 1", "is not JSON"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "prices.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_prices(str(path))
    with pytest.raises(ValueError, match="no file of prices"):
        read_prices(str(tmp_path / "none.json"))
