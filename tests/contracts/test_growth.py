"""Options can be added: what fingerprints hold of today's Configs is stored, and an option that is off declares it.

`python -m tests.contracts.test_growth > tests/golden/configs.json` remakes the file.
"""

import dataclasses
import json
import typing
from collections.abc import Iterator
from typing import Any

import pytest

from data.absent import ABSENT
from model import gemma2_2b
from pipelines.engine import config as configs
from pipelines.engine.registry import stage_names
from pipelines.engine.stage import load_stage
from tests.programs.places import REPOSITORY

REQUIRED = {"train_model": {"model": gemma2_2b(), "steps": 1, "global_batch": 1}}
STORED = REPOSITORY / "tests/golden/configs.json"
OFF = (None, (), "", False)


def hashed_defaults(name: str) -> dict[str, Any]:
    return configs.hashed(load_stage(name).config(**REQUIRED.get(name, {})))


def fields_of(kind: type) -> Iterator[tuple[str, "dataclasses.Field[Any]"]]:
    """Every field of a Config and of the dataclasses in it."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        yield f"{kind.__name__}.{field.name}", field
        for inner in (hints[field.name], *typing.get_args(hints[field.name])):
            if dataclasses.is_dataclass(inner):
                yield from fields_of(typing.cast(type, inner))


def test_the_fingerprints_of_unchanged_configs_stay() -> None:
    stored = json.loads(STORED.read_text())
    changed = {name: hashed_defaults(name) for name in stored if hashed_defaults(name) != stored[name]}
    assert not changed, (
        "every run of these stages would be made again. A new field declares its absent value, "
        "`name: type = absent(value)`, and is then not hashed; a changed default is stored anew, as the docstring of "
        "this file says"
    )


@pytest.mark.parametrize("name", stage_names())
def test_an_option_that_is_off_by_default_declares_it(name: str) -> None:
    undeclared = [
        path
        for path, field in fields_of(load_stage(name).config)
        if ABSENT not in field.metadata
        and any(type(field.default) is type(value) and field.default == value for value in OFF)
    ]
    assert not undeclared, "write `name: type = absent(value)`, from data.absent"


@pytest.mark.parametrize("name", stage_names())
def test_a_stage_that_writes_tables_of_data_names_the_writer(name: str) -> None:
    """The bytes of a model's tables depend on the device first: stages that run one are not made again for a writer."""
    source = (REPOSITORY / "pipelines" / "stages" / f"{name}.py").read_text()
    writes_tables = "map_shards(" in source and "table=" in source
    runs_a_model = "pipelines.checkpoints.loaded" in source
    assert ("WRITER = shards.WRITER" in source) == (writes_tables and not runs_a_model)


if __name__ == "__main__":
    print(json.dumps({name: hashed_defaults(name) for name in stage_names()}, indent=1, sort_keys=True))
