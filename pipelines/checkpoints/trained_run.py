"""A training run opened again, finished or not, without Ray: its config, inputs and job, and the run of a reference.

A reference is `train_model/fingerprint[@step]`, the path of a run's directory, or that of a checkpoint in it.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data import storage
from infra.ray_session import RaySession
from pipelines.engine import config as configs
from pipelines.engine.errors import UserError
from pipelines.engine.inputs import REFERENCE, SUFFIXED_PATH, Input, resolve
from pipelines.engine.registry import stage_names
from pipelines.engine.resources import Resources
from pipelines.engine.runner import CONFIG_NAME
from pipelines.engine.stage import Context, Stage, load_stage, load_stages
from training.checkpoints.records import list_tables

if TYPE_CHECKING:
    from training.job import TrainJob

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """A run of a stage that has a `make_job`."""

    stage: Stage
    directory: str
    config: Mapping[str, Any]
    inputs: Mapping[str, tuple[Input, ...]]
    step: int | None
    """the step that the reference names; None: the last"""

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
        """The job, for a step that a checkpoint is behind. Raises UserError where none is.

        Its set-up is the default one: the steps' own are in the checkpoints (`training/checkpoints/setups.py`).
        """
        if not any(record["step"] >= step for _, record in list_tables(self.checkpoints_uri)):
            raise UserError(f"{self.directory} has no checkpoint of step {step} or later; name an earlier step")
        context = Context(
            stage=self.stage.name,
            directory=self.directory,
            fingerprint=self.name.rpartition("/")[2],
            inputs={name: list(many) for name, many in self.inputs.items()},
            resources=Resources(),
            attempt="",
            session=RaySession(None),  # not started
            quiet=True,
        )
        assert self.stage.make_job is not None
        return self.stage.make_job(context, configs.from_dict(self.stage.config, self.config, self.directory))


def has_steps(stage: str) -> bool:
    """Whether runs of the stage can be opened: it makes a job."""
    return stage in stage_names() and load_stage(stage).make_job is not None


def open_run(reference: str, root: str) -> TrainedRun:
    """Raises UserError where the reference names no run of a stage that trains."""
    if match := REFERENCE.match(reference):
        directory = storage.join(root, match["stage"], match["fingerprint"])
    else:
        match = SUFFIXED_PATH.match(reference)
        assert match is not None
        directory = match["path"] if storage.is_remote(match["path"]) else os.path.abspath(match["path"])
    step = None if match["step"] is None else int(match["step"])
    if inside := re.fullmatch(rf"(.*)/{CHECKPOINTS}/step-(\d{{8}})", directory.rstrip("/")):
        directory, step = inside[1], int(inside[2])
    try:
        document = json.loads(storage.read_bytes(storage.join(directory, CONFIG_NAME)))
    except FileNotFoundError:
        raise UserError(
            f"no run {reference!r} under {root}: {directory} has no {CONFIG_NAME}; `python -m pipelines list --runs` "
            "shows the runs there are"
        ) from None
    stage = load_stage(document["stage"])
    if stage.make_job is None:
        trains = ", ".join(known.name for known in load_stages() if known.make_job is not None)
        raise UserError(f"{reference!r} is a run of {stage.name}; give one of {trains}, or a checkpoint of it")
    own_root = directory.rstrip("/").rsplit("/", 2)[0]
    inputs = {
        name: tuple(resolve(text, stage.reads[name], own_root) for text in given)
        for name, given in document["inputs"].items()
    }
    return TrainedRun(stage=stage, directory=directory, config=document["config"], inputs=inputs, step=step)
