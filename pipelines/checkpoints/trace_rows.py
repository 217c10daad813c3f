"""`python -m pipelines trace`: what a checkpoint has seen of a document, and what documents a step or row was made of.

    trace --checkpoint REF --document ID     seen? in which steps? how often
    trace --checkpoint REF --step N          the rows of a step and their documents
    trace --checkpoint REF --row SOURCE/SHARD/ROW

Answers come from the run's own lineage and the packed rows that it read; Ray is not started. A run that was carried on
or began from another one's weights answers for that one too.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tyro

from data.lineage import Place, documents_of_rows, find_document
from pipelines.checkpoints.trained_run import CHECKPOINTS, TrainedRun, has_steps, open_run
from pipelines.engine.errors import UserError
from pipelines.engine.inputs import DEFAULT_ROOT, Input
from training.checkpoints.records import checkpoint_uri, read_rows

SHOWN_STEPS = 12
SHOWN_DOCUMENTS = 8


@dataclass(frozen=True, kw_only=True)
class Question:
    """What has this checkpoint seen?"""

    checkpoint: str
    """train_model/fingerprint@step, or the path of a run or a checkpoint"""
    document: str | None = None
    """id of a document: 32 hex digits"""
    step: int | None = None
    """a step, from 1: its rows and their documents"""
    row: str | None = None
    """a packed row, as source/shard/row"""
    root: str = DEFAULT_ROOT
    """where runs lie"""

    def __post_init__(self) -> None:
        if sum(choice is not None for choice in (self.document, self.step, self.row)) != 1:
            raise UserError("trace takes one of --document ID, --step N and --row SOURCE/SHARD/ROW")


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A document in the rows of one source, as far as a run has come."""

    run: str
    source: str
    places: list[Place]
    steps: list[list[int]]
    """for each place the steps that took its row"""

    @property
    def times(self) -> int:
        """How often one of its rows was trained on."""
        return sum(map(len, self.steps))


def trace(words: list[str]) -> int:
    """Answers one question; returns the exit code. Raises UserError for a run, step or row that is not there."""
    question = tyro.cli(Question, args=words, prog="python -m pipelines trace", description=__doc__.strip())
    run = open_run(question.checkpoint, question.root)
    if question.document is not None:
        lines = _document_lines(question.document, run)
    elif question.step is not None:
        lines = step_lines(run, question.step)
    else:
        assert question.row is not None
        lines = row_lines(run, question.row)
    for line in lines:
        print(line)
    return 0


def seen(run: TrainedRun, document: str) -> Iterator[Seen]:
    """Where and when the run, and those that it carried on or began from, saw a document."""
    lineage = _lineage(run)
    for sequences in run.inputs["sequences"]:
        source = sequences.data.facts["source"]
        places = find_document(sequences.uris(), document)
        yield Seen(run=_name(run), source=source, places=places, steps=_steps_of(lineage, source, places))
    for before in _runs_before(run):
        yield from seen(before, document)


def _document_lines(document: str, run: TrainedRun) -> Iterator[str]:
    sightings = list(seen(run, document))
    times = sum(sighting.times for sighting in sightings)
    rows = sum(bool(steps) for sighting in sightings for steps in sighting.steps)
    if not any(sighting.places for sighting in sightings):
        sources = ", ".join(sorted({sighting.source for sighting in sightings}))
        yield f"document {document}: not seen; it is in no row of {sources}"
        return
    yield f"document {document}: {'seen' if times else 'not seen'}, {times} times, in {rows} rows, by {_name(run)}"
    for sighting in sightings:
        for place, steps in zip(sighting.places, sighting.steps, strict=True):
            when = f"steps {_some(steps, SHOWN_STEPS)}" if steps else "not yet"
            row = f"{sighting.source}/{place.shard}/{place.row}"
            yield f"  {sighting.run}: {row} tokens {place.start} to {place.end}: {when}"


def step_lines(run: TrainedRun, step: int) -> Iterator[str]:
    """The rows of a step in slot order, and their documents."""
    lineage = _lineage(run)
    rows = lineage.filter(pc.field("step") == step).to_pylist()
    if not rows:
        for before in _runs_before(run):
            if before.step is None or step <= before.step:
                yield from step_lines(before, step)
                return
        last = lineage["step"][-1].as_py() if lineage.num_rows else 0
        raise UserError(f"{_name(run)} records no step {step}; its last is {last}")
    yield f"step {step} of {_name(run)}: {len(rows)} rows"
    by_source = {sequences.data.facts["source"]: sequences for sequences in run.inputs["sequences"]}
    documents = {
        source: documents_of_rows(sequences.uris(), [(r["shard"], r["row"]) for r in rows if r["dataset"] == source])
        for source, sequences in by_source.items()
    }
    for row in rows:
        of_row = documents[row["dataset"]][row["shard"], row["row"]]
        spans = [f"{document['id']}[{document['start']}:{document['end']}]" for document in of_row]
        named = _some(spans, SHOWN_DOCUMENTS)
        yield f"  slot {row['slot']}: {row['dataset']}/{row['shard']}/{row['row']}: {named}"


def row_lines(run: TrainedRun, text: str) -> Iterator[str]:
    """The documents of a row, and the steps that took it."""
    inputs = {sequences.data.facts["source"]: sequences for sequences in run.inputs["sequences"]}
    source, *place = text.rsplit("/", 2)
    if source not in inputs or len(place) != 2 or not all(re.fullmatch("[0-9]{1,18}", part) for part in place):
        raise UserError(f"--row {text!r} is not SOURCE/SHARD/ROW with a source of this run: {', '.join(inputs)}")
    shard, row = map(int, place)
    documents = documents_of_rows(inputs[source].uris(), [(shard, row)])[shard, row]
    steps = _steps_of(_lineage(run), source, [Place(shard, row, 0, 0)])[0]
    yield f"row {text}: steps {_some(steps, SHOWN_STEPS) if steps else 'none'} of {_name(run)}"
    for document in documents:
        yield f"  document {document['id']} tokens {document['start']} to {document['end']}"


def _lineage(run: TrainedRun) -> pa.Table:
    """The run's own rows up to the step that is asked for."""
    table = read_rows(run.checkpoints_uri, "lineage")
    if table is None:
        raise UserError(f"{run.directory} has no checkpoint yet, so no record of its rows; wait for the first one")
    return table if run.step is None else table.filter(pc.field("step") <= run.step)


def _steps_of(lineage: pa.Table, source: str, places: list[Place]) -> list[list[int]]:
    """For each place the steps of the lineage that took its row, ascending."""
    if not places:
        return []
    rows = lineage.filter(pc.field("dataset") == source)
    keys = _keys(rows["shard"].to_numpy(), rows["row"].to_numpy())
    wanted = _keys(*(np.array([getattr(place, name) for place in places]) for name in ("shard", "row")))
    hits = np.flatnonzero(np.isin(keys, wanted))
    steps: dict[int, list[int]] = {}
    for key, step in zip(keys[hits].tolist(), rows["step"].to_numpy()[hits].tolist(), strict=True):
        steps.setdefault(key, []).append(step)
    return [steps.get(key, []) for key in wanted.tolist()]


def _keys(shards: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return shards.astype(np.int64) << 32 | rows.astype(np.int64)


def _runs_before(run: TrainedRun) -> Iterator[TrainedRun]:
    """The runs that this one carried on or began from; imported weights have no rows."""
    for name in ("from", "initial"):
        for earlier in run.inputs.get(name, ()):
            if has_steps(earlier.manifest.stage):
                yield _open(earlier, run)


def _open(earlier: Input, run: TrainedRun) -> TrainedRun:
    step = earlier.step if earlier.step is not None else earlier.data.facts["steps"][-1]
    return open_run(checkpoint_uri(f"{earlier.directory}/{CHECKPOINTS}", step), run.root)


def _name(run: TrainedRun) -> str:
    return run.name if run.step is None else f"{run.name}@{run.step}"


def _some(values: list[Any], most: int) -> str:
    return ", ".join(map(str, values[:most])) + (f" and {len(values) - most} more" if len(values) > most else "")
