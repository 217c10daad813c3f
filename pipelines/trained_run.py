"""A training run opened again, finished or not, without Ray: its config, inputs and job, and the run of a reference.

A reference is `train_model/fingerprint[@step]`, the path of a run's directory, or that of a checkpoint in it.
"""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from data import storage
from infra.ray_session import RaySession
from pipelines import config as configs
from pipelines.inputs import REFERENCE, SUFFIXED_PATH, Input
from pipelines.models import CHECKPOINTS
from pipelines.runner import CONFIG_NAME, resolve_inputs
from pipelines.stage import Context, Resources, load_stage
from pipelines.stages import train_model
from training.checkpoint import STATE_NAME, list_tables
from training.config import TrainJob

STAGE = "train_model"


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """A run of train_model."""

    directory: str
    config: train_model.Config
    inputs: dict[str, tuple[Input, ...]]
    step: int | None
    """the step that the reference names; None: the last"""

    @property
    def name(self) -> str:
        return "/".join(self.directory.rstrip("/").split("/")[-2:])

    @property
    def checkpoints_uri(self) -> str:
        return storage.join(self.directory, CHECKPOINTS)

    def job(self, step: int) -> TrainJob:
        """The job in the set-up that ran `step`. Raises ValueError where no checkpoint is behind that step."""
        after = [uri for uri, record in list_tables(self.checkpoints_uri) if record["step"] >= step]
        if not after:
            raise ValueError(f"{self.directory} has no checkpoint of step {step} or later; name an earlier step")
        setup: dict[str, Any] = json.loads(storage.read_bytes(storage.join(after[0], STATE_NAME)))["setup"]
        context = Context(
            stage=STAGE,
            directory=self.directory,
            fingerprint=self.directory.rstrip("/").rpartition("/")[2],
            inputs={name: list(many) for name, many in self.inputs.items()},
            resources=Resources(**{name: setup[name] for name in ("device", "workers", "microbatch_rows")}),
            attempt="",
            session=RaySession(None),  # not started
            quiet=True,
        )
        job = train_model.make_job(context, self.config)
        remat = setup["remat"] if setup["device"] == "xla" else None
        return replace(job, cpu_threads=setup["cpu_threads"], remat=remat)


def open_run(reference: str, root: str) -> TrainedRun:
    """Raises ValueError where the reference names no run of train_model."""
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
        raise ValueError(
            f"no run {reference!r} under {root}: {directory} has no {CONFIG_NAME}; `python -m pipelines list --runs` "
            "shows the runs there are"
        ) from None
    if document["stage"] != STAGE:
        raise ValueError(f"{reference!r} is a run of {document['stage']}; give one of {STAGE}, or a checkpoint of it")
    stage = load_stage(STAGE)
    config: Any = configs.from_dict(stage.config, document["config"], directory)
    own_root = directory.rstrip("/").rsplit("/", 2)[0]
    inputs = resolve_inputs(stage, config, _texts(document["inputs"]), own_root)
    return TrainedRun(directory=directory, config=config, inputs=inputs, step=step)


def _texts(inputs: dict[str, Any]) -> dict[str, Sequence[str]]:
    return {name: [given] if isinstance(given, str) else list(given) for name, given in inputs.items()}
