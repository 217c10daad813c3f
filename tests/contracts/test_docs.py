"""What a document says is tested is tested."""

import ast
import re
import tomllib

import yaml

from tests.programs.places import REPOSITORY

TEST = re.compile(r"`((?:[\w/]+/)?\w+\.py)::(\w+)`(\*?)")


def test_every_fault_of_a_training_run_names_tests_that_are_there() -> None:
    """With a star where they are part of `make chaos` alone."""
    page = (REPOSITORY / "docs" / "training-faults.md").read_text()
    faults = re.findall(r"^\| (\d+) \|", page, re.MULTILINE)
    items = dict(re.findall(r"^(\d+)\. (.*(?:\n +.*)*)", page, re.MULTILINE))
    assert len(faults) >= 13
    assert list(items) == faults
    for item in items.values():
        named = TEST.findall(item)
        assert named, item
        for file, function, star in named:
            path = REPOSITORY / file if "/" in file else next((REPOSITORY / "tests").rglob(file))
            functions = [
                statement for statement in ast.parse(path.read_text()).body if isinstance(statement, ast.FunctionDef)
            ]
            (test,) = (candidate for candidate in functions if candidate.name == function)
            if path.name != "chaos.py":
                assert bool(star) == any("mark.chaos" in ast.unparse(decorator) for decorator in test.decorator_list), (
                    item
                )


def test_the_pages_lead_to_files_that_are_there() -> None:
    """Files that the glossary and CONTRIBUTING name, and links of the index."""
    docs = REPOSITORY / "docs"
    named = {
        name
        for page in (docs / "glossary.md", REPOSITORY / "CONTRIBUTING.md")
        for name in re.findall(
            r"`((?:data|infra|model|pipelines|tests|training)/[\w/.]*)(?:::\w+(?:\.\w+)?)?`", page.read_text()
        )
    }
    assert len(named) >= 40
    assert sorted(name for name in named if not (REPOSITORY / name).exists()) == []
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (docs / "README.md").read_text())
    assert [link for link in links if not (docs / link).exists()] == []
    pages = {path.name for path in docs.glob("*.md")} - {"README.md"}
    assert sorted(pages - set(links)) == []


def test_the_citation_is_of_the_version_that_is_built() -> None:
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert f"## {project['version']}" in (REPOSITORY / "CHANGELOG.md").read_text()
