"""A field at its absent value is left out, at any depth, and a document without it means that value."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.absent import absent, present, with_absent, without_absent


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    rate: float = 0.1
    warmup_steps: int = absent(0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rollouts:
    """Every field declares its absent value, so all of it can be left out."""

    samples: int = absent(4)
    filters: tuple[str, ...] = absent(())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    steps: int
    names: tuple[str, ...] = absent(())
    limit: int | None = absent(None)
    on_by_default: bool = dataclasses.field(default=True, metadata={"absent": False})
    schedule: Schedule = Schedule()
    rollouts: Rollouts = Rollouts()
    teacher: Schedule | None = absent(None)
    phases: tuple[Schedule, ...] = absent(())


CONFIGS = st.builds(
    Config,
    steps=st.integers(0, 3),
    names=st.lists(st.sampled_from("ab"), max_size=2).map(tuple),
    limit=st.none() | st.integers(0, 2),
    on_by_default=st.booleans(),
    schedule=st.builds(Schedule, rate=st.sampled_from([0.1, 1.0]), warmup_steps=st.integers(0, 1)),
    rollouts=st.builds(Rollouts, samples=st.integers(3, 4)),
    teacher=st.none() | st.builds(Schedule, warmup_steps=st.integers(0, 1)),
    phases=st.lists(st.builds(Schedule, warmup_steps=st.integers(0, 1)), max_size=2).map(tuple),
)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (Config(steps=1, on_by_default=False), {"steps": 1, "schedule": {"rate": 0.1}}),
        (Config(steps=1), {"steps": 1, "on_by_default": True, "schedule": {"rate": 0.1}}),
        (
            Config(steps=1, on_by_default=False, names=("a",), limit=0, rollouts=Rollouts(samples=5)),
            {"steps": 1, "names": ["a"], "limit": 0, "schedule": {"rate": 0.1}, "rollouts": {"samples": 5}},
        ),
        (
            Config(steps=1, on_by_default=False, teacher=Schedule(), phases=(Schedule(warmup_steps=2), Schedule())),
            {
                "steps": 1,
                "schedule": {"rate": 0.1},
                "teacher": {"rate": 0.1},
                "phases": [{"rate": 0.1, "warmup_steps": 2}, {"rate": 0.1}],
            },
        ),
    ],
)
def test_fields_at_their_absent_value_are_left_out(config: Config, expected: dict[str, Any]) -> None:
    assert present(config) == expected


@settings(deadline=None, max_examples=100)
@given(CONFIGS, CONFIGS)
def test_two_configs_are_equal_where_what_is_present_is(first: Config, second: Config) -> None:
    assert (present(first) == present(second)) == (first == second)


@settings(deadline=None, max_examples=100)
@given(CONFIGS)
def test_what_was_left_out_is_put_back(config: Config) -> None:
    whole = with_absent(Config, present(config))
    assert with_absent(Config, whole) == whole
    assert without_absent(Config, whole) == present(config)
    assert set(whole) == {field.name for field in dataclasses.fields(Config)}


def test_a_document_from_before_a_field_means_its_absent_value_not_its_default() -> None:
    assert Config(steps=1).on_by_default
    assert with_absent(Config, {"steps": 1})["on_by_default"] is False
    assert with_absent(Config, {"steps": 1})["rollouts"] == {"samples": 4, "filters": []}
    assert "schedule" not in with_absent(Config, {"steps": 1}), "its rate declares nothing: it has to be there"


def test_names_of_another_version_stay() -> None:
    values = {"steps": 1, "from_the_future": 3, "schedule": {"rate": 0.1, "newer": None}}
    assert without_absent(Config, values) == values
