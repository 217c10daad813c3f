"""All recipes by name. A recipe's module, which imports torch, is imported when the recipe is loaded."""

import functools
import importlib
from collections.abc import Callable
from pathlib import Path

from pipelines.engine.config import no_such
from pipelines.engine.errors import UserError
from pipelines.engine.registry import first_line
from pipelines.recipes.recipe import Recipe

MODULES = {
    "pipelines.recipes.demo": ("demo", "smoke"),
    "pipelines.recipes.gemma2": ("gemma2_27b_pretrain", "gemma2_9b_distill", "gemma2_2b_distill"),
}
"""module -> functions in it that return a recipe of their name"""


def names() -> list[str]:
    """The names of all recipes, sorted."""
    return sorted(_RECIPES)


def load(name: str) -> Recipe:
    """The recipe of that name. Raises UserError if there is no such recipe."""
    if name not in _RECIPES:
        raise UserError(no_such("recipe", name, names()))
    return _RECIPES[name]()


def summary(name: str) -> str:
    """The first line of the recipe's docstring, read without an import."""
    (module,) = [module for module, functions in MODULES.items() if name in functions]
    return first_line(Path(__file__).with_name(f"{module.rpartition('.')[2]}.py"), name)


def _made_by(module: str, function: str) -> Recipe:
    recipe: Recipe = getattr(importlib.import_module(module), function)()
    return recipe


_RECIPES: dict[str, Callable[[], Recipe]] = {
    function: functools.partial(_made_by, module, function)
    for module, functions in MODULES.items()
    for function in functions
}
