"""The sentences and tables of the report, for the terminal and the page.

Every figure has its unit, in the cell or in the header of its column.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from pipelines.report.figures import EQUAL_NATS, Figures, ModelFigures
from pipelines.report.words import duration, size

NO_FIGURE = "-"
OBJECTIVES = {"next_token": "the text", "distill": "the teacher's cached distribution"}


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of words."""

    title: str
    columns: tuple[str, ...]
    """names of the columns; a name that starts with > marks a column of numbers"""
    rows: tuple[tuple[str, ...], ...]
    shares: tuple[float, ...] = ()
    """length of the bar of each row, from 0 to 1; empty: no bars"""
    shares_of: str = ""
    """name of the column beside which the bars are drawn"""
    note: str = ""


def headline(figures: Figures) -> list[str]:
    """The result in a sentence or two."""
    evaluated = [model for model in figures.models if model.evaluation is not None]
    pairs = students(figures.models)
    if not evaluated:
        seconds = sum(step.seconds or 0.0 for step in figures.steps)
        return [f"{len(figures.steps)} stages finished in {duration(seconds)}; none of them evaluates a model."]
    shown = pairs[0][0] if pairs else min(evaluated, key=_loss)
    evaluation = shown.evaluation
    assert evaluation is not None
    clauses = []
    if "loss_per_token" in evaluation.unigram:
        unigram = evaluation.unigram["loss_per_token"]
        below = "below" if unigram >= evaluation.loss else "above"
        clauses.append(f"{abs(unigram - evaluation.loss):.3f} {below} the unigram baseline ({unigram:.3f})")
    clauses += [_comparison(shown, scratch) for distilled, scratch in pairs if distilled is shown]
    first = (
        f"After {shown.step:,} steps, {shown.name} predicts held-out text at {evaluation.loss:.3f} nats/token"
        f"{': ' if clauses else ''}{', and '.join(clauses)}."
    )
    comparisons = [
        f"{distilled.name} ({_loss(distilled):.3f} nats/token) is {_comparison(distilled, scratch)}."
        for distilled, scratch in pairs
        if distilled is not shown
    ]
    return [first, *comparisons]


def students(models: Sequence[ModelFigures]) -> list[tuple[ModelFigures, ModelFigures]]:
    """Pairs of models that differ only in the objective and were evaluated on the same rows: (distilled, plain)."""
    return [
        (distilled, plain)
        for distilled, plain in product(models, models)
        if distilled.objective == "distill"
        and plain.objective == "next_token"
        and distilled.setting == plain.setting
        and distilled.evaluation is not None
        and plain.evaluation is not None
        and distilled.evaluation.heldout == plain.evaluation.heldout
    ]


def _comparison(distilled: ModelFigures, scratch: ModelFigures) -> str:
    gain = _loss(scratch) - _loss(distilled)
    verdict = f"{abs(gain):.3f} {'better' if gain > 0 else 'worse'} than"
    if abs(gain) < EQUAL_NATS:
        verdict = "to three decimals equal to"
    return f"{verdict} {scratch.name} ({_loss(scratch):.3f}), the same model that learned from the text alone"


def _loss(model: ModelFigures) -> float:
    assert model.evaluation is not None
    return model.evaluation.loss


def models_table(figures: Figures) -> Table:
    """The table of the models and of the unigram baseline of each set of held-out rows."""
    rows: list[tuple[str, ...]] = []
    losses: list[float] = []
    baselines: dict[tuple[str, float], tuple[str, ...]] = {}
    for model in figures.models:
        result = model.evaluation
        figures_of = (
            (NO_FIGURE,) * 3 if result is None else _held_out(result.loss, result.perplexity, result.bits_per_byte)
        )
        parameters = NO_FIGURE if model.parameters is None else f"{model.parameters:,}"
        learns_from = OBJECTIVES.get(model.objective, model.objective or NO_FIGURE)
        rows.append((model.name, *figures_of, f"{model.step:,}", parameters, learns_from))
        losses.append(result.loss if result else 0.0)
        if result is not None and result.unigram:
            loss, perplexity, bits = (result.unigram[f] for f in ("loss_per_token", "perplexity", "bits_per_byte"))
            baselines[result.heldout, loss] = _held_out(loss, perplexity, bits)
    for (_, loss), cells in baselines.items():
        rows.append(("unigram", *cells, NO_FIGURE, NO_FIGURE, "how often each token occurs"))
        losses.append(loss)
    targets = {model.evaluation.heldout: model.evaluation.targets for model in figures.models if model.evaluation}
    return Table(
        title="Models on held-out text",
        columns=("model", ">loss, nats/token", ">perplexity", ">bits/byte", ">steps", ">parameters", "learns from"),
        rows=tuple(rows),
        shares=shares(losses),
        shares_of=">loss, nats/token",
        note=f"Held-out documents (2 %) are chosen by a hash of their id, and no model was trained on them: "
        f"{' and '.join(f'{count:,}' for count in targets.values())} target tokens. Lower is better; bits/byte does "
        "not depend on the tokenizer. The unigram baseline knows how often each token occurs in the training rows. "
        "Each model was trained once, with one seed: another seed changes its loss a little."
        if targets
        else "",
    )


def _held_out(loss: float, perplexity: float, bits_per_byte: float) -> tuple[str, str, str]:
    return f"{loss:.3f}", f"{perplexity:,.1f}", f"{bits_per_byte:.3f}"


def stages_table(figures: Figures) -> Table:
    """The table of tokens and bytes of every step."""
    sizes = [step.stored_bytes for step in figures.steps]
    return Table(
        title="Tokens and bytes",
        columns=("step", ">text", ">tokens", ">stored", "made"),
        rows=tuple(
            (
                step.name,
                NO_FIGURE if step.text_bytes is None else size(step.text_bytes),
                NO_FIGURE if step.tokens is None else f"{step.tokens:,}",
                size(step.stored_bytes),
                step.made,
            )
            for step in figures.steps
        ),
        shares=shares(sizes),
        shares_of=">stored",
        note="text: UTF-8, before compression. tokens: for steps that run a model, the tokens that it predicted (in "
        "training: over all its steps). stored: every file of the step, compressed; checkpoints hold the optimizer's "
        "state too.",
    )


def times_table(figures: Figures) -> Table:
    """The table of wall time and speed of every step."""
    seconds = [step.seconds or 0.0 for step in figures.steps]
    rows = [
        (
            step.name,
            NO_FIGURE if step.seconds is None else f"{step.seconds:.1f} s",
            step.speed or NO_FIGURE,
            step.stage,
            step.device or NO_FIGURE,
        )
        for step in figures.steps
    ]
    rows.append(("all", f"{sum(seconds):.1f} s", "", "", ""))
    return Table(
        title="Wall time and speed",
        columns=("step", ">wall time", ">speed", "stage", "device"),
        rows=tuple(rows),
        shares=(*shares(seconds), 0.0),
        shares_of=">wall time",
        note="Wall time is that of the finished attempt, with start-up (the first step starts Ray) and compilation. "
        "The speed of a training leaves both out: it counts tokens of packed rows over the steps after the first two. "
        "Other speeds are over the wall time.",
    )


def rejects_table(figures: Figures) -> Table:
    """The table of dropped rows by step and reason."""
    rows = [(step.name, reason, count) for step in figures.steps for reason, count in step.dropped.items() if count]
    return Table(
        title="What was left out, and why",
        columns=("step", "reason", ">rows"),
        rows=tuple((name, reason, f"{count:,}") for name, reason, count in rows),
        note="Rows are documents, or packed rows if the reason names them. Rejected documents are kept with their "
        "reason in the step's rejects; its clusters name the document that was kept for each duplicate.",
    )


def cache_table(figures: Figures) -> Table:
    """The table of bytes of cached logits."""
    return Table(
        title="The teacher's cached logits",
        columns=(
            "step",
            ">draws",
            ">tokens",
            ">ids/token",
            ">bytes/token",
            ">bytes/id",
            ">stored",
            ">of float32 logits",
        ),
        rows=tuple(
            (
                cache.name,
                f"{cache.draws:,}" if cache.draws else f"top {cache.max_unique:,}",
                f"{cache.targets:,}",
                f"{cache.stored_ids / max(1, cache.targets):.1f} (at most {cache.max_unique:,})",
                f"{cache.bytes / max(1, cache.targets):.1f} B",
                f"{cache.bytes / max(1, cache.stored_ids):.2f} B",
                size(cache.bytes),
                f"{100 * cache.bytes / max(1, cache.targets * cache.vocab_size * 4):.2f} %",
            )
            for cache in figures.caches
        ),
        note="At each target token the teacher's distribution is sampled as many times as the column draws states. The "
        "drawn ids are stored with their counts, an unbiased estimate (top K: the most likely ids, with their "
        "probabilities). Bytes are those of the files, with compression and row hashes; the last column compares them "
        "with the distribution over the whole vocabulary.",
    )


def shares(numbers: Sequence[float]) -> tuple[float, ...]:
    """Each number as a share of the largest, from 0 to 1."""
    largest = max(numbers, default=0)
    return tuple(number / largest if largest > 0 else 0.0 for number in numbers)
