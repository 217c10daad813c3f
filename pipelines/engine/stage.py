"""A stage, and the context that it runs in.

A stage is one file `pipelines/stages/<verb>_<noun>.py`: `READS`, `WRITES`, `VERSION`, one frozen keyword-only
`Config` and one `run(context, config) -> Outcome`. The folder is the registry: a new file is a new stage. Its
`DECLARES` (`pipelines/engine/declaration.py`) holds what other modules need to know about the stage. Two functions are
optional: `plan_notes(config, inputs)` returns lines for `plan`, and `job_of(context, config, setup)` returns the job
that `replay` repeats.
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

from data.changes import Changes
from data.manifest import Dataset
from pipelines.engine.config import no_such
from pipelines.engine.declaration import Declaration
from pipelines.engine.errors import UserError
from pipelines.engine.inputs import Read
from pipelines.engine.printed import one_line, unwrapped
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
    """The negative answer of a stage that did its work: the run is done and kept."""

    exit_code = 1


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of `run`, from which the runner makes the manifest."""

    datasets: Mapping[str, Dataset]
    """name in WRITES -> dataset, for every name; a fact FAILURE that is not empty is the reason of a negative answer"""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """reason -> number of rows dropped"""
    tokenizer_sha256: str | None = None
    """sha256 of the tokenizer whose ids the datasets hold"""
    setup: Mapping[str, Any] | None = None
    """device and workers, if the bytes depend on them"""
    log: Mapping[str, Any] = field(default_factory=dict)
    """values for _RUN.json: speeds, seconds of the parts of the work"""
    said: str = ""
    """result in a few words, for the line of a finished run"""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A loaded stage file."""

    name: str
    module: ModuleType
    version: int
    reads: Mapping[str, Read]
    writes: tuple[str, ...]
    config: type
    run: Callable[["Context", Any], Outcome]
    declares: Declaration = field(default_factory=Declaration)
    """declaration of the stage for other modules"""
    plan_notes: Callable[[Any, Mapping[str, "Sequence[Input]"]], Iterable[str]] | None = None
    """(config, inputs) -> lines that `plan` prints; None: no lines"""
    job_of: 'Callable[["Context", Any, Setup], TrainJob] | None' = None
    """(context, config, setup) -> job that `trace` and `replay` use; None: runs of the stage have no steps"""

    @property
    def summary(self) -> str:
        """The first line of the file's docstring."""
        return (self.module.__doc__ or "").strip().splitlines()[0]


@dataclass(frozen=True, kw_only=True)
class Context:
    """The directory, inputs, resources and session that a running stage may use."""

    stage: str
    directory: str
    """URI of the run's own directory"""
    fingerprint: str
    inputs: Mapping[str, "list[Input]"]
    resources: Resources
    attempt: str
    """name of this attempt's staging folder"""
    session: "RaySession"
    """Ray session, which the first stage that needs it starts"""
    quiet: bool
    """whether progress is printed as lines for a log instead of a bar"""
    lease: "Lease | None" = None
    """lease that the driver holds; None for a stage that takes no lease"""
    shards_by_node: Counter[str] = field(default_factory=Counter)
    """Ray node -> number of shards that it made, for `_RUN.json`"""
    chip_seconds: dict[str, float] = field(default_factory=dict)
    """kind of chip -> seconds that workers held a chip of that kind (training/log/chips.py), for `_RUN.json`"""

    @property
    def changes(self) -> Changes:
        """This attempt's way to change the run's directory."""
        return self.lease.changes if self.lease else Changes(directory=self.directory, name=self.attempt)

    def input(self, name: str) -> "Input":
        """The one input of that name."""
        (only,) = self.inputs[name]
        return only

    @contextmanager
    def progress(
        self, total: int, unit: str, title: str | None = None, before: int = 0
    ) -> "Iterator[Callable[..., Any]]":
        """A bar with rate and ETA on a terminal; without a terminal, or with CI=true, a line every 15 seconds.

        `before`: units that an earlier attempt did. Yields `advance(n, note="")`; the note follows the rate.
        """
        title = title or self.stage
        if self.quiet:
            yield Lines(
                total, unit, title, lambda text: print(one_line(text), file=sys.stderr, flush=True), before
            ).advance
            return
        from tqdm import tqdm

        stderr = unwrapped(sys.stderr)
        with tqdm(total=total, initial=before, unit=unit, desc=one_line(title), file=stderr, leave=False) as bar:

            def advance(units: int, note: str = "") -> None:
                if note:
                    bar.set_postfix_str(one_line(note), refresh=False)
                bar.update(units)

            yield advance


@cache
def load_stage(name: str) -> Stage:
    """The stage of that name. Raises UserError if there is no such stage."""
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
    """All stages, sorted by name."""
    return [load_stage(name) for name in stage_names()]


def declared(name: str) -> Declaration:
    """The declaration of the stage that a manifest names; the defaults if that stage no longer exists."""
    return load_stage(name).declares if name in stage_names() else Declaration()
