"""The mixture of a run's sources: weights from a step on, as text, and after a checkpoint that is carried on."""

import re
from collections.abc import Iterator, Sequence

from data.order import MixturePhase, Order, SequenceDataset
from training.checkpoints.records import entry_of, read_state
from training.errors import UserError
from training.inputs import InputDataset


def parse_phase(text: str) -> MixturePhase:
    """A phase from text such as "0:web=0.7,code=0.3". Raises UserError for anything else."""
    if not re.fullmatch(r"\d+:[^=,:]+=[0-9.eE+-]+(,[^=,:]+=[0-9.eE+-]+)*", text):
        raise UserError(f"mixture phase {text!r} is not STEP:source=weight,...; write it as in '0:web=0.7,code=0.3'")
    step, _, weights = text.partition(":")
    pairs = [pair.partition("=") for pair in weights.split(",")]
    try:
        return MixturePhase(start_step=int(step), weights=tuple((name, float(weight)) for name, _, weight in pairs))
    except ValueError as error:
        raise UserError(
            f"mixture phase {text!r} has a step or weight that is no number ({error}); write it as in '0:web=0.7'"
        ) from error


def source_of(sequences: InputDataset) -> SequenceDataset:
    """The dataset in the form that the order of rows takes."""
    return SequenceDataset(
        name=sequences.facts["source"],
        shard_rows=sequences.shard_rows,
        row_group_rows=sequences.facts["row_group_rows"],
    )


def phases_of(
    mixture: Sequence[str], sources: Sequence[SequenceDataset], carried_uri: str | None = None
) -> tuple[MixturePhase, ...]:
    """The phases of a run: the phases of the checkpoint that is carried on, then the phases of `mixture`.

    Without either, each source has the number of its rows as its weight. Raises UserError if two sources have the same
    name, or if a phase starts before the checkpoint's step.
    """
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        raise UserError(
            f"got two sequences of the same source ({', '.join(names)}); collect them with different --source names"
        )
    given = tuple(parse_phase(text) for text in mixture)
    if carried_uri is not None:
        return _carried_phases(carried_uri, given)
    if given:
        return given
    weights = tuple((source.name, float(sum(source.shard_rows))) for source in sources)
    return (MixturePhase(start_step=0, weights=weights),)


def _carried_phases(uri: str, given: tuple[MixturePhase, ...]) -> tuple[MixturePhase, ...]:
    """The phases of the run that is carried on, up to its step, and then the given phases."""
    state = read_state(uri)
    step = entry_of(state, uri, "step")
    before = tuple(
        MixturePhase(start_step=phase["start_step"], weights=tuple((name, weight) for name, weight in phase["weights"]))
        for phase in entry_of(state, uri, "identity", "phases")
    )
    if not given:
        return before
    if early := [phase.start_step for phase in given if phase.start_step < step]:
        raise UserError(
            f"mixture phases start at {early}, but the run that is carried on has done {step} steps, counted from the "
            f"start of that run; start new phases at {step} or later"
        )
    return (*(phase for phase in before if phase.start_step < step), *given)


def epochs_by_phase(
    phases: Sequence[MixturePhase],
    sources: Sequence[SequenceDataset],
    *,
    steps: int,
    global_batch: int,
    order_seed: int,
) -> Iterator[str]:
    """A line for each phase: how often it goes through each source."""
    order = Order(sources, phases, global_batch, order_seed)
    starts = [phase.start_step for phase in phases if phase.start_step < steps]
    for start, end in zip(starts, [*starts[1:], steps], strict=True):
        used = zip(sources, order.rows_used(start), order.rows_used(end), strict=True)
        shares = (
            f"{source.name} {after - before:,} rows, {after / source.rows:.2f} epochs so far"
            if source.rows
            else f"{source.name} empty"
            for source, before, after in used
        )
        yield f"steps {start:,} to {end:,}: {'; '.join(shares)}"
