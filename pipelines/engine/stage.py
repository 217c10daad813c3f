"""What a stage is, and what it is given to work with.

A stage is one file `pipelines/stages/<verb>_<noun>.py`: `READS`, `WRITES`, `VERSION`, one frozen keyword-only
`Config` and one `run(context, config) -> Outcome`. The folder is the registry: a new file is a new stage. What others
need to know of a stage is in its `DECLARES` (`pipelines/engine/declaration.py`). Two functions are optional:
`plan_notes(config, inputs)` gives lines to `plan`, `job_of(context, config, setup)` the job that `replay` repeats.
"""

import importlib
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

from data.manifest import Dataset
from pipelines.engine.config import no_such
from pipelines.engine.declaration import Declaration
from pipelines.engine.errors import UserError
from pipelines.engine.inputs import Read
from pipelines.engine.progress import Lines
from pipelines.engine.registry import stage_names
from pipelines.engine.resources import Resources

if TYPE_CHECKING:
    from collections.abc import Iterator

    from infra.ray_session import RaySession
    from pipelines.engine.inputs import Input
    from pipelines.engine.lease import Lease
    from training.job import TrainJob
    from training.setup import Setup


FAILURE = "failure"


class VerdictError(Exception):
    """A stage did its work, and its answer is no: the run is done and kept."""

    exit_code = 1


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
    declares: Declaration = field(default_factory=Declaration)
    """what others need to know of it"""
    plan_notes: Callable[[Any, Mapping[str, "Sequence[Input]"]], Iterable[str]] | None = None
    """(config, inputs) -> lines that `plan` prints; None: none"""
    job_of: 'Callable[["Context", Any, Setup], TrainJob] | None' = None
    """the job of a run that can be traced and replayed step by step; None: its runs have no steps"""

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


@cache
def load_stage(name: str) -> Stage:
    """Raises UserError for a name that is no stage."""
    if name not in stage_names():
        raise UserError(no_such("stage", name, stage_names()))
    module = importlib.import_module(f"pipelines.stages.{name}")
    return Stage(
        name=name,
        module=module,
        version=module.VERSION,
        reads=module.READS,
        writes=module.WRITES,
        config=module.Config,
        run=module.run,
        declares=getattr(module, "DECLARES", Declaration()),
        plan_notes=getattr(module, "plan_notes", None),
        job_of=getattr(module, "job_of", None),
    )


def load_stages() -> list[Stage]:
    """Every stage, in the order of the names."""
    return [load_stage(name) for name in stage_names()]


def declared(name: str) -> Declaration:
    """What the stage of a manifest declares; the defaults where no stage has that name any more."""
    return load_stage(name).declares if name in stage_names() else Declaration()
