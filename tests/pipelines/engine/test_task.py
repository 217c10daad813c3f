"""A fingerprint holds what decides the result, and survives options that are added."""

import dataclasses
from dataclasses import replace
from typing import Any

import pytest

from data import shards
from data.absent import absent
from data.logits import CodecSpec
from pipelines.engine import config as configs
from pipelines.engine.stage import load_stage
from pipelines.engine.task import Task
from pipelines.stages import cache_logits, collect_text, filter_text


def task_of(name: str, config: Any) -> Task:
    stage = replace(load_stage(name), config=type(config))
    return Task(stage=stage, config=config, inputs={}, root="runs")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GrownGopher(filter_text.GopherQuality):
    max_emoji: float | None = absent(None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GrownFilter(filter_text.Config):
    toxicity: bool = absent(False)
    gopher: GrownGopher = dataclasses.field(default_factory=GrownGopher)


def test_a_new_option_changes_no_fingerprint_until_it_is_used() -> None:
    before = task_of("filter_text", filter_text.Config(c4=True)).fingerprint
    assert task_of("filter_text", GrownFilter(c4=True)).fingerprint == before
    used = [GrownFilter(c4=True, toxicity=True), GrownFilter(c4=True, gopher=GrownGopher(max_emoji=0.1))]
    assert len({before, *(task_of("filter_text", config).fingerprint for config in used)}) == 3


def test_a_document_from_before_an_option_is_read_as_the_config_without_it() -> None:
    old = configs.to_dict(filter_text.Config(c4=True))
    assert configs.from_dict(GrownFilter, old, "here") == GrownFilter(c4=True)
    sparse = configs.hashed(filter_text.Config(c4=True))
    assert "languages" not in sparse
    assert configs.from_dict(filter_text.Config, sparse, "here") == filter_text.Config(c4=True)


def test_the_writer_is_part_of_a_data_stages_fingerprint_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [task_of("collect_text", collect_text.Config()), task_of("cache_logits", cache_logits.Config())]
    assert [task.hashed().get("writer") for task in tasks] == [shards.WRITER, None]
    before = [task.fingerprint for task in tasks]
    monkeypatch.setattr(collect_text, "WRITER", shards.WRITER + 1)
    assert [task.fingerprint == old for task, old in zip(tasks, before, strict=True)] == [False, True]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GrownCache(cache_logits.Config):
    antithetic: bool = absent(False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GrownSpec(CodecSpec):
    block: int | None = absent(None)


def test_shards_of_a_cache_from_before_an_option_are_those_of_the_same_cache() -> None:
    before = cache_logits.made_as_of(
        "abc", cache_logits.Config(), CodecSpec(vocab_size=9, estimator="sample", draws=50)
    )
    assert cache_logits.made_as_of("abc", GrownCache(), GrownSpec(vocab_size=9, estimator="sample", draws=50)) == before
    assert (
        cache_logits.made_as_of(
            "abc", GrownCache(antithetic=True), GrownSpec(vocab_size=9, estimator="sample", draws=50)
        )
        != before
    )
    assert (
        cache_logits.made_as_of("abc", GrownCache(), GrownSpec(vocab_size=9, estimator="sample", draws=50, block=4))
        != before
    )
