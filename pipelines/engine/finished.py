"""A run that has finished, as the functions that a stage declares get it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data.manifest import Manifest
from pipelines.engine.inputs import Input


@dataclass(frozen=True, kw_only=True)
class Finished:
    """Its manifest, its log and what it was made from."""

    directory: str
    """URI of the run"""
    manifest: Manifest
    config: Any
    """the stage's Config"""
    inputs: Mapping[str, Sequence[Input]]
    run: Mapping[str, Any]
    """`_RUN.json`; {} where it is missing"""

    @property
    def log(self) -> Mapping[str, Any]:
        """What the stage logged of itself."""
        log: Mapping[str, Any] = self.run.get("log", {})
        return log
