"""All recipes by name."""

from collections.abc import Callable

from pipelines.engine.config import no_such
from pipelines.engine.errors import UserError
from pipelines.recipes.demo import demo, smoke
from pipelines.recipes.gemma2 import gemma2_2b_distill, gemma2_9b_distill, gemma2_27b_pretrain
from pipelines.recipes.recipe import Recipe


def names() -> list[str]:
    """The names of all recipes, sorted."""
    return sorted(_RECIPES)


def load(name: str) -> Recipe:
    """The recipe of that name. Raises UserError if there is no such recipe."""
    if name not in _RECIPES:
        raise UserError(no_such("recipe", name, names()))
    return _RECIPES[name]()


_RECIPES: dict[str, Callable[[], Recipe]] = {
    recipe.__name__: recipe for recipe in (demo, smoke, gemma2_2b_distill, gemma2_9b_distill, gemma2_27b_pretrain)
}
