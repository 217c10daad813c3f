"""The stages there are: the files of the folder `pipelines/stages`."""

import importlib
import pkgutil


def stage_names() -> list[str]:
    """Every stage there is, in the order of the names."""
    package = importlib.import_module("pipelines.stages")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))
