"""A recipe over the user's own text: nothing of it is left out by what is meant for the demo's text."""

from pathlib import Path

import pytest

from pipelines.cli.arguments import parse_recipe
from pipelines.recipes import registry as recipes
from pipelines.recipes.recipe import tasks_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a/y.jsonl", "test/x.jsonl", "zebra.jsonl"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"body": "Some text."}\n')
    return tmp_path / "in"


@pytest.mark.parametrize("recipe", ["demo", "smoke"])
@pytest.mark.parametrize("flags", [[], ["--collect.text-field", "body"]])
def test_every_file_is_read_with_flags_of_the_step_and_without(
    folder: Path, tmp_path: Path, recipe: str, flags: list[str]
) -> None:
    words = ["--root", str(tmp_path / "runs"), "--input", str(folder), *flags]
    command = parse_recipe(recipes.load(recipe), words)
    (collect,) = (step for step in command.recipe.steps if step.name == "collect")
    assert collect.note == "Your files become text."
    assert collect.config.text_field == ("body" if flags else "text")
    assert collect.config.exclude == ()
    (entry,) = tasks_of(command.recipe, command.root)["collect"].inputs["input"]
    assert sorted(Path(file.uri).name for file in entry.files) == ["x.jsonl", "y.jsonl", "zebra.jsonl"]
