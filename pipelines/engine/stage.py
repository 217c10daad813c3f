"""What a stage is, and what it is given to work with.

A stage is one file `pipelines/stages/<verb>_<noun>.py`: `READS`, `WRITES`, `VERSION`, one frozen keyword-only
`Config` and one `run(context, config) -> Outcome`. The folder is the registry: a new file is a new stage.
"""

import importlib
import pkgutil
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from data.manifest import Dataset
from pipelines.engine.config import no_such
from pipelines.engine.progress import Lines

if TYPE_CHECKING:
    from collections.abc import Iterator

    from infra.ray_session import RaySession
    from pipelines.engine.inputs import Input
    from pipelines.engine.lease import Lease


FAILURE = "failure"


class VerdictError(Exception):
    """A stage did its work, and its answer is no: exit code 1, and a run that is done and kept."""


class StoppedError(Exception):
    """The work stopped before its end, and one line says why and what to do: exit code 1, and a run that goes on."""


@dataclass(frozen=True, kw_only=True)
class Read:
    """One named input of a stage."""

    help: str
    """what it is, in a few words"""
    dataset: str | None = None
    """name of the dataset it takes from the run it refers to; None for files from outside"""
    file_allowed: bool = False
    """whether a plain file from outside may stand in for the dataset (a tokenizer's .model)"""
    many: bool = False
    """whether it takes several"""
    optional: bool = False
    """whether the stage does without"""
    select: Callable[[Any, str], bool] | None = None
    """(config, relative name) -> whether a file from outside belongs to the input"""

    @property
    def external(self) -> bool:
        return self.dataset is None


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Where and with how much to run: recorded, never hashed."""

    device: Literal["auto", "xla", "cuda", "cpu"] = "auto"
    """what computes; auto takes a TPU, then CUDA, then XLA on the CPU, then the CPU"""
    workers: int = 1
    """Ray Train workers"""
    min_workers: int | None = None
    """as few a run of train_model goes on with where nodes are missing, and grows again as they come; None: all"""
    topology: str = ""
    """slice that train_model runs on, as in v5e:4x4, a worker on each of its hosts; empty: one host"""
    slices: int = 1
    """how many of them, as data replicas"""
    min_slices: int | None = None
    """as few of them a run of train_model goes on with, as with min_workers; None: all"""
    mesh: str = ""
    """how a model is divided over the chips on xla, as in data=2,model=2; empty: one chip, with a topology all of its
    chips along data (generate_text always takes one chip). For train_model on cpu and cuda its workers are the chips:
    data=N divides the model over them, the default on cuda, and replica=N repeats it, the default on cpu"""
    microbatch_rows: int | None = None
    """rows of the global batch that one worker computes at a time; None: all of its rows"""
    remat: Literal["none", "projections", "full"] | None = None
    """what the backward pass computes again on xla; None: full on a TPU, none elsewhere"""
    feed: Literal["direct", "ray"] = "direct"
    """who reads the training rows: the worker itself, or a Ray Data pipeline"""
    on_bad_step: Literal["stop", "skip"] = "stop"
    """where a training step's loss or gradient is not finite, or its loss a spike: stop, or go on without its update"""
    max_failures: int = 3
    """how often the training workers are started again after one died"""
    max_preemptions: int = -1
    """the same after a machine was taken away, which is counted apart; -1: always"""
    tensorboard: bool = False
    """whether a training run writes event files for TensorBoard beside its logs (local roots only)"""
    cpus: int | None = None
    """CPUs that the embedded Ray may use; None: all"""

    def __post_init__(self) -> None:
        for name in ("workers", "min_workers", "slices", "min_slices", "microbatch_rows", "cpus"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for fewest, all_of in (("min_workers", "workers"), ("min_slices", "slices")):
            if (value := getattr(self, fewest)) is not None and value > getattr(self, all_of):
                raise ValueError(
                    f"{fewest} is {value}, more than {all_of}, {getattr(self, all_of)}; give it at most that"
                )
        if self.mesh:
            from model.sharding import MeshShape  # imports torch

            MeshShape.parse(self.mesh)
        for name in ("max_failures", "max_preemptions"):
            if getattr(self, name) < -1:
                raise ValueError(f"{name} must be 0 or more, or -1 for always, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What `run` hands back; the runner makes the manifest of it."""

    datasets: Mapping[str, Dataset]
    """one entry for each name in WRITES; a fact named FAILURE, where it is not empty, says why the answer is no"""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """rows dropped, by reason"""
    tokenizer_sha256: str | None = None
    """of the tokenizer whose ids the datasets hold"""
    setup: Mapping[str, Any] | None = None
    """device and workers, where the bytes depend on them"""
    log: Mapping[str, Any] = field(default_factory=dict)
    """what goes to _RUN.json: speeds, seconds of parts"""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage file, loaded."""

    name: str
    module: ModuleType
    version: int
    reads: Mapping[str, Read]
    writes: tuple[str, ...]
    config: type
    run: Callable[["Context", Any], Outcome]

    @property
    def summary(self) -> str:
        """The first line of the file's docstring."""
        return (self.module.__doc__ or "").strip().splitlines()[0]


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a running stage may touch."""

    stage: str
    directory: str
    """URI of the run's own directory"""
    fingerprint: str
    inputs: Mapping[str, "list[Input]"]
    resources: Resources
    attempt: str
    """names this attempt's staging folder"""
    session: "RaySession"
    """started by the first stage that needs it"""
    quiet: bool
    """whether bars would only clutter a log"""
    lease: "Lease | None" = None
    """held by the stages that need one"""
    shards_by_node: Counter[str] = field(default_factory=Counter)
    """how many shards each Ray node made, for `_RUN.json`"""
    chip_seconds: dict[str, float] = field(default_factory=dict)
    """kind of chip -> seconds that workers held one (training/log/chips.py), for `_RUN.json`"""

    def input(self, name: str) -> "Input":
        """The one input of that name."""
        (only,) = self.inputs[name]
        return only

    @contextmanager
    def progress(
        self, total: int, unit: str, title: str | None = None, before: int = 0
    ) -> "Iterator[Callable[..., Any]]":
        """A bar with rate and ETA on a terminal; where there is none, or with CI=true, a line now and then.

        `before`: units that an earlier attempt did. Yields `advance(n, note="")`; the note stands behind the rate.
        """
        title = title or self.stage
        if self.quiet:
            yield Lines(total, unit, title, lambda text: print(text, file=sys.stderr, flush=True), before).advance
            return
        from tqdm import tqdm

        with tqdm(total=total, initial=before, unit=unit, desc=title, file=sys.stderr, leave=False) as bar:

            def advance(units: int, note: str = "") -> None:
                if note:
                    bar.set_postfix_str(note, refresh=False)
                bar.update(units)

            yield advance


def stage_names() -> list[str]:
    """Every stage there is, in the order of the names."""
    package = importlib.import_module("pipelines.stages")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


@cache
def load_stage(name: str) -> Stage:
    """Raises ValueError for a name that is no stage."""
    if name not in stage_names():
        raise ValueError(no_such("stage", name, stage_names()))
    module = importlib.import_module(f"pipelines.stages.{name}")
    return Stage(
        name=name,
        module=module,
        version=module.VERSION,
        reads=module.READS,
        writes=module.WRITES,
        config=module.Config,
        run=module.run,
    )
