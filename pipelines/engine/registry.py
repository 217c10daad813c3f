"""The names of all stages, which are the files of the folder `pipelines/stages`, and their summaries.

Nothing here imports a stage: a stage that runs a model imports torch, which takes seconds.
"""

import ast
import importlib
import pkgutil
from pathlib import Path


def stage_names() -> list[str]:
    """The names of all stages, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(_folders()))


def summary(name: str) -> str:
    """The first line of a stage's docstring."""
    (path,) = [path for folder in _folders() if (path := Path(folder, f"{name}.py")).is_file()]
    return first_line(path)


def first_line(file: Path, function: str | None = None) -> str:
    """The first line of the docstring of a file of Python, or of a function in it. The code is read and not run."""
    body = ast.parse(file.read_text())
    if function is None:
        return (ast.get_docstring(body) or "").partition("\n")[0]
    (node,) = [node for node in body.body if isinstance(node, ast.FunctionDef) and node.name == function]
    return (ast.get_docstring(node) or "").partition("\n")[0]


def _folders() -> list[str]:
    return list(importlib.import_module("pipelines.stages").__path__)
