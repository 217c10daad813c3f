"""Opens a training run by its reference, finished or not, without Ray: its config, inputs and job.

A reference is `train_model/fingerprint[@step]`, the path of a run's directory, or the path of a checkpoint in it.
"""

import hashlib
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data import storage
from data.documents import parse_object
from data.manifest import is_of_another_run, read_manifest
from data.sealed import unsealed
from infra.ray_session import RaySession
from pipelines.engine import config as configs
from pipelines.engine.errors import UserError
from pipelines.engine.inputs import REFERENCE, SUFFIXED_PATH, Input, resolve
from pipelines.engine.registry import stage_names
from pipelines.engine.resources import Resources
from pipelines.engine.runner import CONFIG_NAME
from pipelines.engine.stage import Context, Stage, load_stage, load_stages
from training.checkpoints.records import COMMIT_NAME, TABLES_NAME, list_tables

if TYPE_CHECKING:
    from training.job import TrainJob

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """A run of a stage that has a `job_of`."""

    stage: Stage
    directory: str
    config: Mapping[str, Any]
    inputs: Mapping[str, tuple[Input, ...]]
    step: int | None
    """step that the reference names; None: the last step"""

    @property
    def name(self) -> str:
        return "/".join(self.directory.rstrip("/").split("/")[-2:])

    @property
    def root(self) -> str:
        return self.directory.rstrip("/").rsplit("/", 2)[0]

    @property
    def checkpoints_uri(self) -> str:
        return storage.join(self.directory, CHECKPOINTS)

    def job(self, step: int) -> "TrainJob":
        """The job of the run, for a step before or at a checkpoint. Raises UserError if no checkpoint follows the step.

        Its set-up is the default. The set-ups of the steps are in the checkpoints (`training/checkpoints/setups.py`).
        """
        if not any(record["step"] >= step for _, record in list_tables(self.checkpoints_uri)):
            raise UserError(
                f"got step {step}, but {self.directory} has no checkpoint of step {step} or later; give an earlier step"
            )
        from training.setup import Setup  # imports torch

        context = Context(
            stage=self.stage.name,
            directory=self.directory,
            fingerprint=self.name.rpartition("/")[2],
            inputs={name: list(sources) for name, sources in self.inputs.items()},
            resources=Resources(),
            attempt="",
            session=RaySession(None),  # not started
            quiet=True,
        )
        assert self.stage.job_of is not None
        config: Any = configs.from_dict(self.stage.config, self.config, self.directory)
        return self.stage.job_of(context, config, Setup())


def has_steps(stage: str) -> bool:
    """Whether runs of the stage can be opened, because the stage makes a job."""
    return stage in stage_names() and load_stage(stage).job_of is not None


def open_run(reference: str, root: str) -> TrainedRun:
    """The run of a reference. Raises UserError if the reference names no run of a stage that trains."""
    if match := REFERENCE.match(reference):
        directory = storage.join(root, match["stage"], match["fingerprint"])
    else:
        match = SUFFIXED_PATH.match(reference)
        assert match is not None
        directory = storage.absolute(match["path"])
    step = None if match["step"] is None else int(match["step"])
    if inside := re.fullmatch(rf"(.*)/{CHECKPOINTS}/step-(\d{{8}})", directory.rstrip("/")):
        directory, step = inside[1], int(inside[2])
    config_uri = storage.join(directory, CONFIG_NAME)
    advice = f"a run writes its {CONFIG_NAME} at its start: run the same line again, or copy the file from a backup"
    try:
        content = storage.read_bytes(config_uri)
        document = unsealed(content, parse_object(content, config_uri, advice), config_uri, advice)
    except FileNotFoundError:
        raise UserError(
            f"no run {reference!r} under {root}: {directory} has no {CONFIG_NAME}; `python -m pipelines list --runs` "
            "lists all runs"
        ) from None
    if not all(isinstance(document.get(name), dict) for name in ("config", "inputs")):
        raise UserError(f"got {config_uri} without 'config' or 'inputs'; {advice}")
    if "fingerprint" in document and is_of_another_run(directory, document["fingerprint"]):
        raise UserError(f"got {config_uri} of the run {document['fingerprint']}, exchanged with another file; {advice}")
    if not isinstance(name := document.get("stage"), str):
        raise UserError(f"got {config_uri} without a stage; {advice}")
    stage = load_stage(name)
    if stage.job_of is None:
        trains = ", ".join(known.name for known in load_stages() if known.job_of is not None)
        raise UserError(
            f"got {reference!r}, a run of {stage.name}; give a run of {trains}, or a checkpoint of such a run"
        )
    _refuse_other_files(directory)
    own_root = directory.rstrip("/").rsplit("/", 2)[0]
    if unknown := [name for name in document["inputs"] if name not in stage.reads]:
        raise UserError(f"{config_uri}: {configs.no_such('input', unknown[0], stage.reads)}; {advice}")
    if not document["inputs"].get("sequences"):
        raise UserError(f"got {config_uri} without 'sequences' among its inputs; {advice}")
    inputs = {
        name: tuple(
            resolve(text, stage.reads[name], own_root) for text in configs.texts(paths, f"{config_uri}: input {name!r}")
        )
        for name, paths in document["inputs"].items()
    }
    return TrainedRun(stage=stage, directory=directory, config=document["config"], inputs=inputs, step=step)


def _refuse_other_files(directory: str) -> None:
    """Raises UserError unless a finished run has each checkpoint and table that its manifest lists.

    Of a run in progress, what is committed counts. Without this, the steps of a damaged checkpoint would be steps that
    the run never did.
    """
    manifest = read_manifest(directory)
    if manifest is None:
        return
    there: dict[str, str] = {}
    for uri, record in list_tables(storage.join(directory, CHECKPOINTS)):
        folder = f"{CHECKPOINTS}/{uri.rstrip('/').rpartition('/')[2]}"
        there |= {f"{folder}/{name}": file["sha256"] for name, file in record["files"].items()}
        for name in (COMMIT_NAME, TABLES_NAME):
            with suppress(FileNotFoundError):
                there[f"{folder}/{name}"] = hashlib.sha256(storage.read_bytes(storage.join(uri, name))).hexdigest()
    for dataset in manifest.datasets.values():
        for shard in dataset.shards:
            if there.get(shard.name) != shard.sha256:
                raise UserError(
                    f"got {directory}, whose {shard.name} is not the one that its manifest lists: the checkpoint is "
                    "damaged, incomplete or of another run; put the run's own back, or run it again"
                )
