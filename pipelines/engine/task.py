"""A stage with its config and inputs: what is hashed to a fingerprint, and how inputs that a user named are found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data import storage
from data.manifest import Manifest, read_manifest
from pipelines.engine import config as configs
from pipelines.engine.errors import UserError
from pipelines.engine.inputs import Input, Read, external_input, resolve, run_reference
from pipelines.engine.stage import Stage


@dataclass(frozen=True, kw_only=True)
class Task:
    """A stage with its config and resolved inputs: all that decides the result."""

    stage: Stage
    config: Any
    inputs: Mapping[str, tuple[Input, ...]]
    root: str

    @property
    def fingerprint(self) -> str:
        """sha256 over what `hashed` gives, 16 hex digits."""
        return configs.digest(self.hashed())

    def hashed(self) -> dict[str, Any]:
        """Stage, VERSION, the Config without absent options, the inputs' fingerprints, and the writer where it counts.

        Options that are absent are left out so that adding one to a Config changes no fingerprint (`data/absent.py`).
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
        """The Parquet writer that the bytes of a data stage depend on, as its file declares by WRITER."""
        return getattr(self.stage.module, "WRITER", None)

    @property
    def directory(self) -> str:
        return storage.join(self.root, self.stage.name, self.fingerprint)

    def manifest(self) -> Manifest | None:
        """Of the finished run, or None. Raises UserError where it was made from inputs that have changed since."""
        manifest = read_manifest(self.directory)
        if manifest is not None:
            self._check_inputs_unchanged(manifest)
        return manifest

    def _check_inputs_unchanged(self, manifest: Manifest) -> None:
        """A run elsewhere on another set-up can have one fingerprint and other bytes (weights): never mix the two."""
        for name, recorded in manifest.inputs.items():
            for source, before in zip(self.inputs.get(name, ()), recorded, strict=False):
                present = None if source.external else read_manifest(source.directory)
                if present is not None and source.content() != before["content"]:
                    raise UserError(
                        f"{self.directory} was made from another {source.reference} than the one in "
                        f"{source.directory} (same config, other "
                        f"bytes: it was made again on another set-up); remove {self.directory} and run again"
                    )


def resolve_inputs(
    stage: Stage, config: Any, given: Mapping[str, Sequence[str]], root: str
) -> dict[str, tuple[Input, ...]]:
    """What the user named, resolved. Raises UserError for what is missing, unknown or too many."""
    refuse_given(stage, given)
    named = {name: [text for text in given.get(name, ()) if text] for name in stage.reads}
    return {name: resolve_texts(stage.reads[name], config, texts, root) for name, texts in named.items() if texts}


def refuse_given(stage: Stage, given: Mapping[str, Sequence[str]]) -> None:
    """Raises UserError for inputs that are missing, unknown or too many; looks at none of them."""
    for name in given:
        if name not in stage.reads:
            raise UserError(f"{stage.name}: {configs.no_such('input', name, stage.reads)}")
    for name, read in stage.reads.items():
        texts = [text for text in given.get(name, ()) if text]
        if not texts and not read.optional:
            raise UserError(f"{stage.name} needs --{name} ({read.help})")
        if len(texts) > 1 and not read.many:
            raise UserError(f"{stage.name} takes one --{name}, got {len(texts)}: {', '.join(texts)}")


def resolve_texts(read: Read, config: Any, texts: Sequence[str], root: str) -> tuple[Input, ...]:
    if read.external:
        chosen = read.select
        return (external_input(texts, None if chosen is None else lambda name: chosen(config, name)),)
    return tuple(resolve(text, read, root) for text in texts)


def future_input(task: Task, dataset: str, step: int | None = None) -> Input:
    """The input that another task's output will be, known before that task has run."""
    return Input(
        reference=run_reference(task.stage.name, task.fingerprint, dataset, step),
        given=run_reference(task.stage.name, task.fingerprint, dataset, step),
        directory=task.directory,
        dataset=dataset,
        step=step,
    )
