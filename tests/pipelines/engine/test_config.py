import dataclasses
import re
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model import gemma2_tiny
from pipelines.cli.arguments import parse_stage
from pipelines.engine import config as configs
from pipelines.engine.errors import exit_code
from pipelines.engine.registry import stage_names
from pipelines.engine.stage import load_stage
from pipelines.engine.task import Task


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.1
    kind: Literal["cosine", "linear"] = "cosine"


@dataclass(frozen=True, kw_only=True)
class Outer:
    steps: int
    names: tuple[str, ...] = ()
    limit: int | None = None
    shuffle: bool = True
    inner: Inner = Inner()

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; at least 1")


OUTERS = st.builds(
    Outer,
    steps=st.integers(1, 10**9),
    names=st.lists(st.text(max_size=5), max_size=3).map(tuple),
    limit=st.none() | st.integers(),
    shuffle=st.booleans(),
    inner=st.builds(Inner, rate=st.floats(allow_nan=False, allow_infinity=False).map(lambda x: x + 0.0)),
)


@settings(deadline=None, max_examples=50)
@given(OUTERS)
def test_a_config_is_read_back_from_its_json(config: Outer) -> None:
    assert configs.from_dict(Outer, configs.to_dict(config), "here") == config


@settings(deadline=None, max_examples=50)
@given(OUTERS, OUTERS)
def test_two_configs_are_equal_where_their_digests_are(first: Outer, other: Outer) -> None:
    assert (configs.digest(configs.to_dict(first)) == configs.digest(configs.to_dict(other))) == (first == other)


def test_a_whole_number_for_a_float_is_that_float() -> None:
    whole, point = Outer(steps=1, inner=Inner(rate=1)), Outer(steps=1, inner=Inner(rate=1.0))
    assert whole == point
    assert configs.canonical_json(configs.to_dict(whole)) == configs.canonical_json(configs.to_dict(point))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stepz": 1}, "here: no field 'stepz'; did you mean 'steps'?"),
        ({"steps": 1, "zzz": 1}, "no field 'zzz'; allowed: inner, limit, names, shuffle, steps"),
        ({"steps": 1, "inner": {"ratio": 1}}, "no field 'inner.ratio'; did you mean 'inner.rate'?"),
        ({}, "field 'steps': Field required"),
        ({"steps": "1"}, "got '1' for field 'steps': Input should be a valid integer"),
        ({"steps": 1.5}, "field 'steps': Input should be a valid integer"),
        ({"steps": True}, "got True for field 'steps': Input should be a valid integer"),
        ({"steps": 1, "shuffle": 1}, "got 1 for field 'shuffle': Input should be a valid boolean"),
        ({"steps": 1, "names": "abc"}, "field 'names'"),
        ({"steps": 1, "names": ["a", 2]}, "field 'names.1'"),
        (
            {"steps": 1, "inner": {"kind": "step"}},
            "got 'step' for field 'inner.kind': Input should be 'cosine' or 'linear'",
        ),
        ({"steps": 1, "inner": 3}, "got 3 for inner; it must be an object of fields"),
        ({"steps": 0}, "steps is 0; at least 1"),
    ],
)
def test_a_mistake_names_its_field(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^here: .*" + re.escape(message.removeprefix("here: "))):
        configs.from_dict(Outer, values, "here")


def test_the_order_of_keys_does_not_change_a_digest() -> None:
    assert configs.digest({"a": 1, "b": [1, 2]}) == configs.digest({"b": [1, 2], "a": 1})
    assert configs.digest({"a": [1, 2]}) != configs.digest({"a": [2, 1]})


def test_a_digest_never_changes() -> None:
    assert configs.digest({"a": 1, "b": "\u00e9"}) == "09ad9fd2fb648cb2"  # by sha256sum


def test_differences_are_told_field_by_field() -> None:
    before, after = Outer(steps=1, inner=Inner(rate=0.5)), Outer(steps=2, names=("a",))
    differences = configs.differences(configs.to_dict(before), configs.to_dict(after))
    assert differences == ["inner.rate 0.5 -> 0.1", 'names [] -> ["a"]', "steps 1 -> 2"]
    assert configs.differences(configs.to_dict(after), configs.to_dict(after)) == []


@pytest.mark.parametrize("name", stage_names())
def test_a_stage_is_declared_whole(name: str) -> None:
    stage = load_stage(name)
    assert stage.summary.endswith(".")
    assert isinstance(stage.version, int)
    assert stage.writes
    assert dataclasses.is_dataclass(stage.config)
    parameters = stage.config.__dataclass_params__  # type: ignore[attr-defined]
    assert parameters.frozen
    assert all(field.kw_only for field in dataclasses.fields(stage.config))


def test_a_stage_that_is_none_is_told_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no stage 'filter_texts'; did you mean 'filter_text'\?"):
        load_stage("filter_texts")


def test_an_input_may_be_named_like_a_word_of_python() -> None:
    words = ["--model", "gemma2_2b", "--steps", "5", "--global-batch", "2", "--from", "train_model/0123456789abcdef@4"]
    assert parse_stage(load_stage("train_model"), words).inputs["from"] == ("train_model/0123456789abcdef@4",)
    with pytest.raises(ValueError, match="no field 'form'; did you mean 'from'"):
        parse_stage(load_stage("train_model"), ["--form", "x"])


SEEDS = [
    (stage, field.name)
    for stage in stage_names()
    for field in dataclasses.fields(load_stage(stage).config)
    if field.name.endswith("seed")
]


@pytest.mark.parametrize(("stage", "name"), SEEDS)
def test_a_seed_has_63_bits(stage: str, name: str) -> None:
    loaded = load_stage(stage)
    needed = {
        field.name: 1
        for field in dataclasses.fields(loaded.config)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    if "model" in needed:
        needed |= {"model": gemma2_tiny(), "steps": 1, "global_batch": 1}
    if loaded.name == "train_tokenizer":
        needed |= {"vocab_size": 1024}
    for value in (-1, 2**63, 10**5000):
        with pytest.raises(ValueError, match=rf"{name} is .*; allowed are 0 to 2\*\*63 - 1") as caught:
            Task(stage=loaded, config=loaded.config(**needed | {name: value}), inputs={}, root="r")
        assert exit_code(caught.value) == 2
    for value in (0, 2**63 - 1):
        Task(stage=loaded, config=loaded.config(**needed | {name: value}), inputs={}, root="r")


def test_a_whole_number_has_64_bits_at_any_depth() -> None:
    inner = dataclasses.make_dataclass("inner", [("rows", int)])
    outer = dataclasses.make_dataclass("outer", [("part", inner), ("limit", int)])
    configs.check_values(outer(inner(-5), 2**63 - 1))
    with pytest.raises(ValueError, match=r"part\.rows is 100000000000000000000000; allowed are whole numbers of 64"):
        configs.check_values(outer(inner(10**23), 1))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "inner.b is nan; allowed are finite numbers"),
        ((0.5, float("-inf")), "inner.b is -inf; allowed are finite numbers"),
        ("a\udcff", r"inner.b is 'a\\udcff', which is not UTF-8; write the text in UTF-8"),
    ],
)
def test_a_value_that_no_stage_can_take_is_refused_by_its_field(value: object, message: str) -> None:
    inner = dataclasses.make_dataclass("Inner", ["b"])
    outer = dataclasses.make_dataclass("Outer", ["inner"])
    with pytest.raises(ValueError, match=message):
        configs.check_values(outer(inner(value)))
