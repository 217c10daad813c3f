"""A stage, an input or a field that is added is fuzzed as it comes; the page of the fuzzers has the kept counts."""

import dataclasses
import random

import pytest

from pipelines.engine.registry import stage_names
from pipelines.engine.stage import load_stage, load_stages
from tests.contracts.test_pages import PAGES
from tests.programs import fuzz, fuzz_folders, fuzz_page, fuzz_runs, fuzz_values

FAULTS = (*fuzz.FAULTS, *fuzz_values.FAULTS)


def test_every_stage_has_an_example() -> None:
    missing = sorted({*stage_names()} - {example.stage for example in fuzz_runs.EXAMPLES.values()})
    assert missing == [], "give each a step in EXAMPLES of tests/programs/fuzz_runs.py: a run of a second on small data"


def test_every_input_that_reads_a_dataset_is_given_in_an_example() -> None:
    given = {(example.stage, key) for example in fuzz_runs.EXAMPLES.values() for key in example.inputs}
    read = {(stage.name, key) for stage in load_stages() for key, read in stage.reads.items() if read.dataset}
    assert sorted(read - given) == []


def test_an_example_stands_after_the_steps_that_it_reads() -> None:
    steps = list(fuzz_runs.EXAMPLES)
    for place, example in enumerate(fuzz_runs.EXAMPLES.values()):
        for source in example.inputs.values():
            assert source.startswith(fuzz_runs.OUTSIDE) or steps.index(source) < place


@pytest.mark.parametrize("stage", stage_names())
def test_every_field_of_a_config_gets_hostile_values(stage: str) -> None:
    config = load_stage(stage).config
    paths = list(fuzz_values.fields_of(config))
    assert {path[0] for path in paths} == {entry.name for entry in dataclasses.fields(config)}
    assert len(set(paths)) == len(paths)


def test_a_change_changes_the_content() -> None:
    content = bytes(range(1, 200))
    changed = [make(random.Random(1), content) for make in fuzz.CHANGES.values()]
    assert content not in changed
    assert changed[-1] is None


def test_the_page_of_the_fuzzers_has_the_kept_counts_without_a_fault() -> None:
    assert PAGES["docs/fuzzing.md"] == fuzz_page.page(), "run `python -m tests.programs.fuzz_page > docs/fuzzing.md`"
    figures = fuzz_page.load()
    assert set(figures["files"]) <= {*fuzz_runs.EXAMPLES, fuzz_runs.RECIPE}
    assert set(fuzz_page.summed(figures["files"])) <= {*fuzz.CHANGES, *fuzz.EXCHANGES}
    assert set(fuzz_folders.CHANGES) < set(fuzz_page.summed(figures["values"]))
    kinds = [counted for parts in figures.values() for part in parts.values() for counted in part.values()]
    assert [(fault, counted) for counted in kinds for fault in FAULTS if counted.get(fault)] == []
