"""`python -m pipelines trace`: the steps that trained on a document, and the documents of a step or row.

    trace --checkpoint REF --document ID             whether, how often and in which steps it was seen
    trace --checkpoint REF --step N                  the rows of a step and their documents
    trace --checkpoint REF --row SOURCE/SHARD/ROW    the documents of a row and the steps that took it

Answers come from the run's own lineage and from the packed rows that it read; Ray is not started. If the run carried on
another run or began from its weights, the answers cover that run too.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.lineage import Place, documents_of_rows, find_document
from pipelines.checkpoints.trained_run import CHECKPOINTS, TrainedRun, has_steps, open_run
from pipelines.engine.errors import UserError
from pipelines.engine.flags import parse, refuse_unknown
from pipelines.engine.inputs import DEFAULT_ROOT, Input
from pipelines.engine.printed import print_line
from training.checkpoints.records import checkpoint_uri, read_rows

SHOWN_STEPS = 12
SHOWN_DOCUMENTS = 8


@dataclass(frozen=True, kw_only=True)
class Question:
    """What has this checkpoint seen?"""

    checkpoint: str
    """checkpoint as train_model/fingerprint@step, or as the path of a run or checkpoint"""
    document: str | None = None
    """id of a document, 32 hex digits"""
    step: int | None = None
    """step whose rows and documents are printed, counted from 1"""
    row: str | None = None
    """packed row as source/shard/row"""
    root: str = DEFAULT_ROOT
    """root of all runs"""

    def __post_init__(self) -> None:
        if (given := sum(choice is not None for choice in (self.document, self.step, self.row))) != 1:
            raise UserError(
                f"got {given} of --document, --step and --row; give one of --document ID, --step N and --row "
                "SOURCE/SHARD/ROW"
            )


@dataclass(frozen=True, kw_only=True)
class Seen:
    """The rows of one source that hold a document, and the steps of a run that took them."""

    run: str
    source: str
    places: list[Place]
    steps: list[list[int]]
    """steps that took the row of each place"""

    @property
    def times(self) -> int:
        """The number of times that a row with the document was trained on."""
        return sum(map(len, self.steps))


def trace(words: list[str]) -> int:
    """Answers one question; returns the exit code. Raises UserError if there is no such run, step or row."""
    refuse_unknown(words, [entry.name for entry in fields(Question)])
    question = parse(Question, words, program="python -m pipelines trace", description=__doc__.strip())
    run = open_run(question.checkpoint, question.root)
    if question.document is not None:
        lines = _document_lines(question.document, run)
    elif question.step is not None:
        lines = step_lines(run, question.step)
    else:
        assert question.row is not None
        lines = row_lines(run, question.row)
    for line in lines:
        print_line(line)
    return 0


def seen(run: TrainedRun, document: str) -> Iterator[Seen]:
    """The rows and steps in which the run, and the runs that it carried on or began from, saw a document."""
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
        raise UserError(f"got step {step}, which {_name(run)} does not record; its last step is {last}")
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
        raise UserError(f"got --row {text!r}; give SOURCE/SHARD/ROW with a source of this run: {', '.join(inputs)}")
    shard, row = map(int, place)
    documents = documents_of_rows(inputs[source].uris(), [(shard, row)])[shard, row]
    steps = _steps_of(_lineage(run), source, [Place(shard, row, 0, 0)])[0]
    yield f"row {text}: steps {_some(steps, SHOWN_STEPS) if steps else 'none'} of {_name(run)}"
    for document in documents:
        yield f"  document {document['id']} tokens {document['start']} to {document['end']}"


def _lineage(run: TrainedRun) -> pa.Table:
    """The lineage of the run itself, up to the step that its reference names."""
    table = read_rows(run.checkpoints_uri, "lineage")
    if table is None:
        raise UserError(
            f"got {run.directory}, which has no checkpoint yet and so no record of its rows; wait for the first "
            "checkpoint"
        )
    return table if run.step is None else table.filter(pc.field("step") <= run.step)


def _steps_of(lineage: pa.Table, source: str, places: list[Place]) -> list[list[int]]:
    """The steps of the lineage that took the row of each place, ascending."""
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
    """The runs that `run` carried on or began from, without imported weights, which have no rows."""
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
