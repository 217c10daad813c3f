"""The declaration of a stage beside READS, WRITES, VERSION, Config and run: `DECLARES = Declaration(...)` in its file.

Engine, account, report, model card, cluster and fit read the declaration, so none of them knows a stage by its name.
Every field has a default: a stage over documents may leave DECLARES out. Values that several stages share are in
`pipelines/account/costs.py`, `pipelines/report/kinds.py`, `pipelines/checkpoints/card_sections.py` and
`pipelines/fit/programs.py`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pipelines.engine.cost import Cost
from pipelines.engine.inputs import Input
from pipelines.engine.reported import Report

DRIVER_GIGABYTES = 16
"""memory of an ordinary driver, in gigabytes"""
WHOLE_MODEL_GIGABYTES = 160
"""memory of a driver that holds a whole model, in gigabytes: twice the 27B in bfloat16, and a reserve"""


@dataclass(frozen=True, kw_only=True)
class Places:
    """The machines on which a stage runs a model."""

    several_hosts: bool = False
    """whether the stage takes whole slices (--topology, --slices), one worker on each host; False: one process on one
    host"""
    mesh: bool = True
    """whether the stage divides the model over its chips (--mesh); False: the model runs on one chip"""


Card = Callable[[Input, int, Mapping[str, Input]], Iterable[str]]
"""(checkpoint, its step, runs that it was made from by reference) -> lines of the model card on the origin of its
weights"""


def nothing_to_add(checkpoint: Input, step: int, runs: Mapping[str, Input]) -> Iterable[str]:
    """The lines of the model card for a stage that declares nothing about its weights: none."""
    return ()


@dataclass(frozen=True, kw_only=True)
class OwnText:
    """An input from outside that `--input` of a recipe fills."""

    input: str
    """name of the input"""
    config: Callable[[Any], Any]
    """the recipe's Config -> the Config for text that the user gives"""
    note: str = "Your files become text."
    """purpose of the step for text that the user gives, in a sentence"""


@dataclass(frozen=True, kw_only=True)
class Program:
    """A compiled program of a stage, which `fit` gives to the TPU's compiler."""

    name: str
    """name of the program, for printing and for cached answers"""
    tracer: str
    """module that traces the program: `python -m TRACER request.json folder` writes hlo.pb and trace.json to the
    folder"""
    sources: tuple[str, ...]
    """files of the repository that the program's numbers depend on, besides the request"""
    keeps: Literal["gradients", "draws", "losses"] = "gradients"
    """results of the program: `gradients` of a training step, `draws` or `losses` of a forward pass"""
    rows_field: str = "batch"
    """field of the stage's Config or Resources, and of `fit`, that is the number of rows"""


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """Everything that other modules need to know about a stage."""

    lease: bool = False
    """whether only one driver at a time may run the stage: its bytes depend on the device, or it costs too much to
    run twice"""
    places: Places | None = None
    """machines on which the stage runs a model; None: it runs no model on chips"""
    driver_gigabytes: int = DRIVER_GIGABYTES
    """memory that the machine of the driver needs, in gigabytes"""
    cost: Cost = field(default_factory=Cost)
    """cost of a run"""
    report: Report = field(default_factory=Report)
    """part of a run that the report shows"""
    card: Card = nothing_to_add
    """lines of the model card on a checkpoint that the stage made"""
    own_text: OwnText | None = None
    """input that `--input` of a recipe fills; None: the stage's inputs from outside have flags of their own"""
    programs: tuple[Program, ...] = ()
    """compiled programs that `fit` can check"""
