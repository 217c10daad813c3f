"""A finished run, as it is passed to the functions that a stage declares."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data.manifest import Manifest
from pipelines.engine.inputs import Input


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The manifest, config, inputs and log of a finished run."""

    directory: str
    """URI of the run's directory"""
    manifest: Manifest
    config: Any
    """Config of the stage"""
    inputs: Mapping[str, Sequence[Input]]
    run: Mapping[str, Any]
    """contents of `_RUN.json`; {} if the file is missing"""

    @property
    def log(self) -> Mapping[str, Any]:
        """The log that the stage itself wrote."""
        log: Mapping[str, Any] = self.run.get("log", {})
        return log
