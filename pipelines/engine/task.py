"""A stage with its config and inputs: the document that is hashed to a fingerprint, and the resolution of inputs."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data import storage
from data.manifest import Manifest, read_manifest
from pipelines.engine import config as configs
from pipelines.engine.errors import UserError
from pipelines.engine.inputs import Input, Read, external_input, refuse_other_stage, resolve, run_reference
from pipelines.engine.stage import Stage


@dataclass(frozen=True, kw_only=True)
class Task:
    """A stage with its config and resolved inputs, which together decide the result."""

    stage: Stage
    config: Any
    inputs: Mapping[str, tuple[Input, ...]]
    root: str

    def __post_init__(self) -> None:
        configs.check_values(self.config)

    @property
    def fingerprint(self) -> str:
        """The first 16 hex digits of the sha256 over `hashed()`."""
        return configs.digest(self.hashed())

    def hashed(self) -> dict[str, Any]:
        """Stage, VERSION, Config without absent options, fingerprints of the inputs, and the writer if there is one.

        Options at their absent value are left out, so that a new option changes no fingerprint (`data/absent.py`).
        """
        document = {
            "stage": self.stage.name,
            "version": self.stage.version,
            "config": configs.hashed(self.config),
            "inputs": {name: [entry.reference for entry in entries] for name, entries in sorted(self.inputs.items())},
        }
        return document if self.writer is None else document | {"writer": self.writer}

    @property
    def writer(self) -> int | None:
        """The version of the Parquet writer that the bytes depend on, which a data stage declares as WRITER."""
        return getattr(self.stage.module, "WRITER", None)

    @property
    def directory(self) -> str:
        return storage.join(self.root, self.stage.name, self.fingerprint)

    def manifest(self) -> Manifest | None:
        """The manifest of the finished run, or None.

        Raises UserError if its inputs have changed since the run, or if it is the manifest of another stage.
        """
        manifest = read_manifest(self.directory)
        if manifest is not None:
            refuse_other_stage(manifest, self.stage.name, self.directory)
            self._check_inputs_unchanged(manifest)
        return manifest

    def _check_inputs_unchanged(self, manifest: Manifest) -> None:
        """Refuses inputs with other bytes: weights of another set-up have the same fingerprint and other bytes."""
        for name, recorded in manifest.inputs.items():
            for source, before in zip(self.inputs.get(name, ()), recorded, strict=False):
                present = None if source.external else read_manifest(source.directory)
                if present is not None and source.content() != before["content"]:
                    raise UserError(
                        f"got other bytes of {source.reference} in {source.directory} than {self.directory} was made "
                        f"from (the same config was run on another set-up); remove {self.directory} and run again"
                    )


def resolve_inputs(
    stage: Stage, config: Any, given: Mapping[str, Sequence[str]], root: str
) -> dict[str, tuple[Input, ...]]:
    """The resolved inputs that the user named. Raises UserError if an input is missing, unknown or given too often."""
    refuse_given(stage, given)
    named = {name: [text for text in given.get(name, ()) if text] for name in stage.reads}
    return {name: resolve_texts(stage.reads[name], config, texts, root) for name, texts in named.items() if texts}


def refuse_given(stage: Stage, given: Mapping[str, Sequence[str]]) -> None:
    """Raises UserError if an input is missing, unknown or given too often; opens none of the inputs."""
    for name in given:
        if name not in stage.reads:
            raise UserError(f"{stage.name}: {configs.no_such('input', name, stage.reads)}")
    for name, read in stage.reads.items():
        texts = [text for text in given.get(name, ()) if text]
        if not texts and not read.optional:
            raise UserError(f"got no --{name}: {stage.name} needs --{name} ({read.help})")
        if len(texts) > 1 and not read.many:
            raise UserError(
                f"got {len(texts)} inputs for --{name} ({', '.join(texts)}): {stage.name} takes one; give one"
            )


def resolve_texts(read: Read, config: Any, texts: Sequence[str], root: str) -> tuple[Input, ...]:
    if read.external:
        select, exclude = (
            None if chosen is None else functools.partial(chosen, config) for chosen in (read.select, read.exclude)
        )
        return (external_input(texts, select, exclude),)
    return tuple(resolve(text, read, root) for text in texts)


def future_input(task: Task, dataset: str, step: int | None = None) -> Input:
    """The input that the output of `task` will be, before that task has run."""
    return Input(
        reference=run_reference(task.stage.name, task.fingerprint, dataset, step),
        given=run_reference(task.stage.name, task.fingerprint, dataset, step),
        directory=task.directory,
        dataset=dataset,
        step=step,
    )
