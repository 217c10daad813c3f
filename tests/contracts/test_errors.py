"""One rule for errors: an exception whose class has `exit_code` is one line for the user, any other is our bug."""

import ast
import builtins
import functools
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.engine.errors import exit_code
from tests.contracts.test_layout import PACKAGES, modules, relative
from tests.programs.places import REPOSITORY

HOMES = {
    "model": "model.errors",
    "data": "data.errors",
    "infra": "infra.errors",
    "training": "training.errors",
    "pipelines": "pipelines.engine.errors",
}
"""package -> the module of its UserError"""
NEVER_SEEN = {
    "data.fast_encoder.NotExactError": "the tokenizer catches it and encodes with SentencePiece",
    "infra.hlo_trips._Unknown": "the module catches it: a loop whose number of trips is not known",
}
"""exception classes without an exit code -> why none of them reaches a user"""
CODES = {1, 2, 130}
BARE = ("BaseException", "Exception", "NotImplementedError", "ValueError")
"""classes that say neither whose fault it is nor what went wrong"""
DECIDES = ("pipelines/__main__.py", "pipelines/engine/", "pipelines/recipes/", "pipelines/cli/")


def names_of(node: ast.AST) -> Iterator[str]:
    """Every name and attribute in `node`."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name):
            yield inner.id
        elif isinstance(inner, ast.Attribute):
            yield inner.attr


def test_each_package_has_one_user_error() -> None:
    homes = {
        relative(path)
        for path in modules(*PACKAGES)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and node.name == "UserError"
    }
    assert homes == {f"{module.replace('.', '/')}.py" for module in HOMES.values()}


@pytest.mark.parametrize("package", HOMES)
def test_a_user_error_is_a_value_error_with_exit_code_2(package: str) -> None:
    kind = importlib.import_module(HOMES[package]).UserError
    assert issubclass(kind, ValueError)
    assert kind.exit_code == 2
    others = {importlib.import_module(module).UserError for name, module in HOMES.items() if name != package}
    assert not others & set(kind.__mro__), "it is one of another package"


def test_a_package_raises_its_own_user_error() -> None:
    wrong = [
        f"{relative(path)}:{node.lineno} takes UserError from {node.module}"
        for path in modules(*PACKAGES)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and any(alias.name == "UserError" for alias in node.names)
        if node.module != HOMES[relative(path).partition("/")[0]]
    ]
    assert wrong == []


def test_no_module_makes_an_exception_that_says_nothing() -> None:
    wrong = [
        f"{relative(path)}:{node.lineno}: {node.func.id}"
        for path in modules(*PACKAGES)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in BARE
    ]
    wrong += [
        f"{relative(path)}:{node.lineno}: raise {node.exc.id}"
        for path in modules(*PACKAGES)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Name) and node.exc.id in BARE
    ]
    assert wrong == []


@functools.cache
def exception_classes() -> dict[str, int | None]:
    """Module and name of every exception class of ours -> its exit code, its own or that of a base; read, not imported.

    Classes are known by name: a base is a built-in exception, or a class of ours.
    """
    written: dict[str, tuple[str, set[str], int | None]] = {}
    for path in modules(*PACKAGES):
        module = relative(path).removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                bases = {name for base in node.bases for name in names_of(base)}
                written[f"{module}.{node.name}"] = (node.name, bases, own_exit_code(node))
    codes: dict[str, int | None] = {
        name: None
        for name, kind in vars(builtins).items()
        if isinstance(kind, type) and issubclass(kind, BaseException)
    }
    exit_codes: dict[str, int | None] = {}
    while new := {name for name, (_, bases, _) in written.items() if bases & codes.keys()} - exit_codes.keys():
        for name in new:
            short, bases, own = written[name]
            inherited = [codes[base] for base in bases & codes.keys() if codes[base] is not None]
            exit_codes[name] = codes[short] = own if own is not None or not inherited else inherited[0]
    return exit_codes


def own_exit_code(node: ast.ClassDef) -> int | None:
    for line in node.body:
        if isinstance(line, ast.Assign) and [ast.unparse(target) for target in line.targets] == ["exit_code"]:
            return int(ast.literal_eval(line.value))
    return None


def test_every_exception_class_has_an_exit_code_or_never_reaches_a_user() -> None:
    classes = exception_classes()
    assert classes["training.faults.BadStep"] == 1, "its base has it"
    assert classes["training.checkpoints.records.Damaged"] == 2
    assert {name for name, code in classes.items() if code is None} == set(NEVER_SEEN)
    assert set(classes.values()) - {None} == CODES


def test_the_class_decides_and_not_the_instance() -> None:
    bug = KeyError("a")
    bug.exit_code = 2  # type: ignore[attr-defined]
    assert exit_code(bug) is None
    assert exit_code(importlib.import_module("training.checkpoints.records").Damaged("a")) == 2


def deciding() -> list[Path]:
    paths = [REPOSITORY / place for place in DECIDES]
    return [path for place in paths for path in ([place] if place.is_file() else sorted(place.rglob("*.py")))]


def test_the_engine_names_no_class_of_a_package_where_it_decides() -> None:
    """`except` and `isinstance` know exceptions of ours by the attribute alone."""
    ours = {name.rpartition(".")[2] for name in exception_classes()}
    wrong = []
    for path in deciding():
        for node in ast.walk(ast.parse(path.read_text())):
            decision: ast.AST | None = None
            if isinstance(node, ast.ExceptHandler):
                decision = node.type
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                decision = node.args[1] if node.func.id in ("isinstance", "issubclass") else None
            if decision is not None and (named := ours & set(names_of(decision))):
                wrong.append(f"{relative(path)}:{decision.lineno}: {', '.join(sorted(named))}")  # type: ignore[attr-defined]
    assert wrong == []
