"""The names of all stages: the files of the folder `pipelines/stages`."""

import importlib
import pkgutil


def stage_names() -> list[str]:
    """The names of all stages, sorted."""
    package = importlib.import_module("pipelines.stages")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))
