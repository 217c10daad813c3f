"""The report page: one self-contained file, for light and dark, wide and narrow screens. No script, no request.

All text of a run is escaped, and the page's own policy also forbids scripts.
"""

import html
import json
from collections.abc import Sequence
from itertools import groupby

from pipelines.engine.printed import visible
from pipelines.report import charts
from pipelines.report.figures import Completion, Curve, Figures, read_curve
from pipelines.report.tables import (
    OBJECTIVES,
    Table,
    cache_table,
    headline,
    models_table,
    rejects_table,
    stages_table,
    times_table,
)
from pipelines.report.words import duration

WIDE, NARROW = (860, 420), (400, 340)
"""width and height of the chart in pixels; a phone gets a chart of its own, so that the letters stay readable"""

_STYLE = """
:root { color-scheme: light dark;
  --page: #fdfdfc; --ink: #1c1c1e; --soft: #5c5f66; --rule: #dcdcd8; --bar: #c9d3e3; --well: #f4f4f1;
  --s0: #6b6f78; --s1: #c2410c; --s2: #1d5fc4; --s3: #15803d; --s4: #86309e; --s5: #8a6100; }
@media (prefers-color-scheme: dark) { :root {
  --page: #16171a; --ink: #e7e7e4; --soft: #a2a6ae; --rule: #34363c; --bar: #3a4963; --well: #1f2125;
  --s0: #a4a8b1; --s1: #fb8f4e; --s2: #6aa5ff; --s3: #5cc483; --s4: #cc8be0; --s5: #d9ae4a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Helvetica Neue", sans-serif; }
main { max-width: 58rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1rem; font-weight: 600; color: var(--soft); margin: 0 0 .75rem; }
h2 { font-size: 1.15rem; line-height: 1.3; font-weight: 650; margin: 3rem 0 .6rem; }
h3 { font-size: .95rem; font-weight: 600; margin: 1.4rem 0 .3rem; }
p { margin: .5rem 0; max-width: 44rem; }
.lead { font-size: 1.4rem; line-height: 1.4; font-weight: 550; letter-spacing: -.008em; text-wrap: pretty; }
.note { color: var(--soft); font-size: .88rem; }
.scroll { overflow-x: auto; margin: .9rem 0 .6rem; }
.scroll:focus-visible { outline: 2px solid var(--s2); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
th, td { text-align: left; padding: .38rem .9rem .38rem 0; border-bottom: 1px solid var(--rule);
  vertical-align: baseline; }
thead th { color: var(--soft); font-weight: 500; font-size: .82rem; vertical-align: bottom; }
tbody th { font-weight: 550; white-space: nowrap; position: sticky; left: 0; background: var(--page); }
tr > :last-child { padding-right: 0; }
.number { text-align: right; }
td.number { white-space: nowrap; }
td.bar { width: 8rem; min-width: 6rem; padding-right: 1.4rem; }
td.bar span { display: block; height: .6rem; background: var(--bar); border-radius: 1px; min-width: 1px; }
figure { margin: .9rem 0 0; }
figcaption p { max-width: 44rem; }
svg.chart { display: block; width: 100%; height: auto; overflow: visible; }
svg.narrow { display: none; }
.chart text { font: 12.5px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: var(--soft);
  font-variant-numeric: tabular-nums; }
.chart .end { font-weight: 600; fill: currentColor; }
.chart .end.baseline { fill: var(--soft); font-weight: 500; }
.grid { stroke: var(--rule); stroke-width: 1; fill: none; }
.axis { stroke: var(--soft); stroke-width: 1; fill: none; }
.line { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.dots { fill: none; stroke: currentColor; stroke-width: 2.6; stroke-linecap: round; opacity: .32; }
path.baseline, .key .baseline { stroke: var(--soft); stroke-width: 1.5; stroke-dasharray: 6 5; fill: none; }
.s0 { color: var(--s0); } .s1 { color: var(--s1); } .s2 { color: var(--s2); }
.s3 { color: var(--s3); } .s4 { color: var(--s4); } .s5 { color: var(--s5); }
.key { list-style: none; display: flex; flex-wrap: wrap; gap: .15rem 1.6rem; margin: .2rem 0 .6rem; padding: 0;
  font-size: .88rem; }
.key li { display: flex; align-items: baseline; gap: .45rem; }
.key svg { flex: none; width: 26px; height: 10px; }
pre { margin: 0 0 .7rem; padding: .7rem .9rem; background: var(--well); border-radius: 6px; overflow-x: auto;
  font: .82rem/1.5 ui-monospace, "SFMono-Regular", Menlo, Consolas, monospace; color: var(--soft); tab-size: 4;
  white-space: pre-wrap; overflow-wrap: anywhere; }
pre b { color: var(--ink); font-weight: 650; }
summary { cursor: pointer; color: var(--soft); }
code { font: .92em ui-monospace, "SFMono-Regular", Menlo, Consolas, monospace; }
details { margin-top: 3rem; }
@media (max-width: 34rem) {
  main { padding: 1.5rem 1rem 3rem; }
  .lead { font-size: 1.18rem; }
  svg.wide { display: none; } svg.narrow { display: block; }
  td.bar { display: none; }
  th, td { padding-right: .7rem; }
  td { white-space: nowrap; }
}
@media print { .scroll { overflow: visible; } }
"""


_BAR = '<td class="bar" aria-hidden="true"></td>'


def page(figures: Figures, generated_from: str) -> str:
    """The whole document. `generated_from` is a digest of its sources, which the next run compares."""
    lead = "".join(f'<p class="lead">{_escape(sentence)}</p>' for sentence in headline(figures))
    body = "\n".join(
        [
            f"<h1>Recipe {_escape(figures.recipe)}</h1>",
            lead,
            f'<p class="note">{_escape(_summary(figures))}</p>',
            *(_section(models_table(figures)) if figures.models else []),
            *_curves(figures),
            *_texts(figures.completions),
            *_section(stages_table(figures)),
            *_rejects(figures),
            *(_section(cache_table(figures)) if figures.caches else []),
            *_section(times_table(figures)),
            *_origin(figures),
        ]
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f'<meta name="generated-from" content="{_escape(generated_from)}">\n'
        f"<title>{_escape(figures.recipe)}: report</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _summary(figures: Figures) -> str:
    seconds = sum(step.seconds or 0.0 for step in figures.steps)
    machines = {str(run["machine"]) for run in figures.runs.values() if "machine" in run}
    where = f" on {' and '.join(sorted(machines))}" if machines else ""
    return f"{len(figures.steps)} stages, {duration(seconds)} of wall time{where}."


def _section(table: Table) -> list[str]:
    return [f"<h2>{_escape(table.title)}</h2>", _table(table), _note(table.note)]


def _table(table: Table) -> str:
    header = "".join(
        f'<th scope="col"{" class=number" if name.startswith(">") else ""}>{_escape(name.removeprefix(">"))}</th>'
        f"{_BAR if name == table.shares_of else ''}"
        for name in table.columns
    )
    rows = []
    for index, row in enumerate(table.rows):
        cells = [f'<th scope="row">{_escape(row[0])}</th>']
        for name, cell in zip(table.columns[1:], row[1:], strict=True):
            cells.append(f"<td{' class=number' if name.startswith('>') else ''}>{_escape(cell)}</td>")
            if name == table.shares_of:
                share = table.shares[index]
                bar = f'<span style="width:{100 * share:.1f}%"></span>' if share else ""
                cells.append(_BAR.replace("><", f">{bar}<"))
        rows.append(f"<tr>{''.join(cells)}</tr>")
    title = _escape(table.title)
    return (
        f'<div class="scroll" role="region" aria-label="{title}" tabindex="0"><table><caption>{title}</caption>'
        f"<thead><tr>{header}</tr></thead><tbody>\n" + "\n".join(rows) + "\n</tbody></table></div>"
    )


def _curves(figures: Figures) -> list[str]:
    """One chart of all models that the recipe trained."""
    trained: dict[str, tuple[str, Curve]] = {}
    for model in figures.models:
        curve = read_curve(model.task) if model.task is not None else None
        if curve is not None:
            trained.setdefault(model.name.partition("@")[0], (model.objective, curve))
    if not trained:
        return []
    unigrams = {m.evaluation.unigram["loss_per_token"] for m in figures.models if m.evaluation and m.evaluation.unigram}
    baselines = tuple(("unigram", loss) for loss in sorted(unigrams))
    last = {name: float(curve.smoothed[-1]) for name, (_, curve) in trained.items()}
    chart = charts.Chart(
        title="Training loss by step",
        description="; ".join(
            [
                f"{name} goes from {trained[name][1].losses[0]:.2f} to {loss:.2f} nats/token"
                for name, loss in last.items()
            ]
            + [f"the {name} baseline is {loss:.2f} nats/token" for name, loss in baselines]
        )
        + ".",
        x_label="step",
        y_label="training loss, nats/token",
        series=tuple(
            charts.Series(name=visible(name), x=curve.steps, raw=curve.losses, smoothed=curve.smoothed)
            for name, (_, curve) in trained.items()
        ),
        baselines=baselines,
    )
    keys = [
        _key(f"line s{number % charts.COLOURS}", f"{name} learns from {OBJECTIVES.get(objective, objective)}")
        for number, (name, (objective, _)) in enumerate(trained.items())
    ]
    keys += [_key("baseline", f"{name} baseline on held-out text") for name, _ in baselines]
    pictures = [
        charts.svg(chart, *size, name).replace('class="chart"', f'class="chart {name}"', 1)
        for name, size in (("wide", WIDE), ("narrow", NARROW))
    ]
    note = "Points: the loss of a step. Line: the mean over the 4 % of all steps around it."
    warning = (
        "A distilled student's training loss is the cross-entropy to the teacher's sampled distribution, and it cannot "
        "fall below the entropy of that distribution. The loss of every other model is against the text. So do not "
        "compare curves of different objectives; compare the held-out figures above."
    )
    distilled = any(objective == "distill" for objective, _ in trained.values())
    return [
        "<h2>Learning curves</h2>",
        f'<figure><ul class="key">{"".join(keys)}</ul>',
        *pictures,
        f"<figcaption>{_note(note + (' ' + warning if distilled else ''))}</figcaption></figure>",
    ]


def _key(kind: str, words: str) -> str:
    return (
        f'<li><svg class="{kind}" viewBox="0 0 26 10" aria-hidden="true"><path d="M1 5H25"/></svg>{_escape(words)}</li>'
    )


def _texts(completions: Sequence[Completion]) -> list[str]:
    parts = []
    for (_, model), group in groupby(completions, key=lambda completion: (completion.step, completion.model)):
        parts.append(f"<h2>What {_escape(model)} writes</h2>")
        parts.append(_note("The prompt is in bold, and the model's continuation follows it."))
        for completion in group:
            parts.append(f"<pre><b>{_escape(completion.prompt)}</b>{_escape(completion.continuation)}</pre>")
    return parts


def _rejects(figures: Figures) -> list[str]:
    table = rejects_table(figures)
    if table.rows:
        return _section(table)
    return [f"<h2>{_escape(table.title)}</h2>", _note("Nothing was left out.")]


def _origin(figures: Figures) -> list[str]:
    """The runs that the figures come from."""
    rows = tuple((step.name, step.reference, str(figures.runs[step.name].get("started", ""))) for step in figures.steps)
    versions = {json.dumps(run["packages"], sort_keys=True) for run in figures.runs.values() if "packages" in run}
    packages = [
        ", ".join(f"{name} {version}" for name, version in json.loads(text).items()) for text in sorted(versions)
    ]
    return [
        "<details><summary>Where these figures come from</summary>",
        _table(Table(title="Runs", columns=("step", "run", "started"), rows=rows)),
        *(_note(f"With {listing}.") for listing in packages),
        "</details>",
    ]


def _note(text: str) -> str:
    return f'<p class="note">{_escape(text)}</p>' if text else ""


def _escape(text: str) -> str:
    return html.escape(visible(text))
