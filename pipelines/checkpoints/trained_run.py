"""A training run opened again, finished or not, without Ray: its config, inputs and job, and the run of a reference.

A reference is `train_model/fingerprint[@step]`, the path of a run's directory, or that of a checkpoint in it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data import storage
from data.documents import parse_object
from pipelines.engine import config as configs
from pipelines.engine.errors import UserError
from pipelines.engine.inputs import REFERENCE, SUFFIXED_PATH, Input, Read, resolve
from pipelines.engine.runner import CONFIG_NAME
from pipelines.engine.stage import load_stage
from training.checkpoints.records import list_tables

if TYPE_CHECKING:
    from training.job import TrainJob

STAGE = "train_model"
CHECKPOINTS = "checkpoints"
INPUTS = {"sequences": "sequences", "logits": "logits", "initial": CHECKPOINTS, "from": CHECKPOINTS}
"""input of train_model -> dataset: as in READS there, which would import torch"""


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """A run of train_model."""

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
        from pipelines.checkpoints.loaded import training_inputs  # imports torch
        from training.make_job import make_job
        from training.setup import Setup

        config: Any = configs.from_dict(load_stage(STAGE).config, self.config, self.directory)
        return make_job(
            config.training,
            training_inputs(self.inputs),
            checkpoints_uri=self.checkpoints_uri,
            setup=Setup(),
            mixture=config.mixture,
            order_seed=config.order_seed,
        )


def open_run(reference: str, root: str) -> TrainedRun:
    """Raises UserError where the reference names no run of train_model."""
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
    advice = f"it is the {CONFIG_NAME} that a run writes: run the same line again, or copy it from elsewhere"
    try:
        document = parse_object(storage.read_bytes(config_uri), config_uri, advice)
    except FileNotFoundError:
        raise UserError(
            f"no run {reference!r} under {root}: {directory} has no {CONFIG_NAME}; `python -m pipelines list --runs` "
            "shows the runs there are"
        ) from None
    if not all(isinstance(document.get(name), dict) for name in ("config", "inputs")):
        raise UserError(f"{config_uri} has no 'config' and 'inputs'; {advice}")
    if document.get("stage") != STAGE:
        raise UserError(
            f"{reference!r} is a run of {document.get('stage')}; give one of {STAGE}, or a checkpoint of it"
        )
    own_root = directory.rstrip("/").rsplit("/", 2)[0]
    if unknown := [name for name in document["inputs"] if name not in INPUTS]:
        raise UserError(f"{config_uri}: {configs.no_such('input', unknown[0], INPUTS)}; {advice}")
    if not document["inputs"].get("sequences"):
        raise UserError(f"{config_uri} names no 'sequences' among its inputs; {advice}")
    inputs = {
        name: tuple(
            resolve(text, Read(help=name, dataset=INPUTS[name]), own_root)
            for text in configs.texts(given, f"{config_uri}: input {name!r}")
        )
        for name, given in document["inputs"].items()
    }
    return TrainedRun(directory=directory, config=document["config"], inputs=inputs, step=step)
