"""What a stage declares beside READS, WRITES, VERSION, Config and run: `DECLARES = Declaration(...)` in its file.

Engine, account, report, model card, cluster and fit ask the declaration, so none of them knows a stage by its name. All
of it has a default: a stage over documents may leave DECLARES out. What several stages share is in
`pipelines/account/costs.py`, `pipelines/report/kinds.py`, `pipelines/checkpoints/card_sections.py` and
`pipelines/fit/programs.py`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.engine.cost import Cost
from pipelines.engine.inputs import Input
from pipelines.engine.reported import Report

DRIVER_GIGABYTES = 16
WHOLE_MODEL_GIGABYTES = 160
"""memory of a driver that holds a whole model: twice the 27B in bfloat16, and room"""


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where a stage runs a model."""

    several_hosts: bool = False
    """whether it takes whole slices (--topology, --slices), a worker on each host; False: one process on one host"""
    mesh: bool = True
    """whether it divides the model over its chips (--mesh); False: the model runs on one chip"""


Card = Callable[[Input, int, Mapping[str, Input]], Iterable[str]]
"""(checkpoint, its step, runs behind it by reference) -> lines of the model card on how its weights came about"""


def nothing_to_add(checkpoint: Input, step: int, runs: Mapping[str, Input]) -> Iterable[str]:
    """What the model card says where a stage declares nothing of its weights."""
    return ()


@dataclass(frozen=True, kw_only=True)
class OwnText:
    """An input from outside that `--input` of a recipe fills."""

    input: str
    """name of the input"""
    config: Callable[[Any], Any]
    """the recipe's Config -> the Config for other text than the recipe's own"""
    note: str = "Your files become text."
    """what the step is for, with such text"""


@dataclass(frozen=True, kw_only=True)
class Program:
    """A compiled program of a stage, which `fit` puts to the TPU's compiler."""

    name: str
    """what `fit --program` calls it"""
    tracer: str
    """module that traces it: `python -m TRACER request.json folder` leaves hlo.pb and trace.json in the folder"""
    sources: tuple[str, ...]
    """files of the repository that its numbers follow from, besides the request"""


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """All that others need to know of a stage."""

    lease: bool = False
    """whether one driver at a time may run it: its bytes depend on the device, or it is too dear to do twice"""
    places: Places | None = None
    """where it runs a model; None: it runs none on chips"""
    driver_gigabytes: int = DRIVER_GIGABYTES
    """memory of the machine that its driver needs"""
    cost: Cost = field(default_factory=Cost)
    """what it takes"""
    report: Report = field(default_factory=Report)
    """what the report shows of it"""
    card: Card = nothing_to_add
    """what the model card says of a checkpoint that it made"""
    own_text: OwnText | None = None
    """its input that `--input` of a recipe fills; None: its inputs from outside have flags of their own"""
    programs: tuple[Program, ...] = ()
    """compiled programs that `fit` can judge"""
