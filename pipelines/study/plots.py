"""The study's plots as self-contained SVG files."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.report.charts import Chart, Series, spread, svg, tick_label, ticks
from pipelines.study.intervals import Difference

WIDTH, HEIGHT = 720, 400
COLOURS = ("#0b6e99", "#d9730d", "#448361", "#9065b0", "#c14c8a", "#787774")
STYLE = (
    "<style>svg{background:#fff}text{font:12.5px system-ui,sans-serif;fill:#37352f}.tick{fill:#6b6a66}"
    ".label{fill:#6b6a66}.end{font-weight:500;font-size:11.5px}.grid{stroke:#e9e9e7;fill:none}.axis{stroke:#9b9a97;fill:none}"
    ".line{fill:none;stroke:currentColor;stroke-width:2}.dots{fill:none;stroke:currentColor;stroke-width:5;"
    "stroke-linecap:round}.end{fill:currentColor}.baseline{stroke:#787774;stroke-dasharray:6 5;fill:none}"
    ".end.baseline{stroke:none;fill:#787774}.whisker{stroke:currentColor;stroke-width:2;fill:none}"
    ".zero{stroke:#37352f;fill:none}.title{font-weight:600}"
    + "".join(f".s{number}{{color:{colour}}}" for number, colour in enumerate(COLOURS))
    + "</style>"
)


def curves(
    title: str, x_label: str, y_label: str, lines: dict[str, tuple[np.ndarray, np.ndarray]],
    baselines: tuple[tuple[str, float], ...] = (),
) -> str:  # fmt: skip
    """A plot of named (x, y) as lines with a dot at each point."""
    series = tuple(Series(name=name, x=x, raw=y, smoothed=y) for name, (x, y) in lines.items())
    chart = Chart(title=title, description=title, x_label=x_label, y_label=y_label, series=series, baselines=baselines)
    return _alone(svg(chart, WIDTH, HEIGHT, "plot"), WIDTH, HEIGHT)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a plot of differences."""

    name: str
    differences: tuple[Difference, ...]
    """a difference of each kind, drawn below each other"""


def differences(title: str, x_label: str, kinds: Sequence[str], lines: Sequence[Line]) -> str:
    """A plot of means as points with their intervals, a line for each arm; `kinds` names the colours."""
    gap, top, left = 18, 56, 130
    block = gap * len(kinds) + 10
    height = top + block * len(lines) + 50
    bottom, right = height - 44, WIDTH - 24
    ends = [0.0]
    for line in lines:
        for difference in line.differences:
            ends += [difference.mean - difference.half_width, difference.mean + difference.half_width]
    ends = [end for end in ends if np.isfinite(end)]
    marks = ticks(min(ends), max(ends), 6)

    def x(value: float) -> float:
        return left + (right - left) * (value - marks[0]) / (marks[-1] - marks[0])

    parts = [f'<text class="title" x="12" y="20">{html.escape(title)}</text>']
    for number, kind in enumerate(kinds):
        place = left + 240 * number
        parts.append(f'<path class="dots s{number}" d="M{place} 38h0"/>')
        parts.append(f'<text x="{place + 10}" y="42">{html.escape(kind)}</text>')
    for mark in marks:
        parts.append(f'<path class="{"zero" if mark == 0 else "grid"}" d="M{x(mark):.1f} {top}V{bottom}"/>')
        label = tick_label(mark, marks)
        parts.append(f'<text class="tick" x="{x(mark):.1f}" y="{bottom + 18}" text-anchor="middle">{label}</text>')
    middle = (left + right) / 2
    parts.append(
        f'<text class="label" x="{middle}" y="{height - 6}" text-anchor="middle">{html.escape(x_label)}</text>'
    )
    for row, line in enumerate(lines):
        start = top + row * block + 14
        centre = start + gap * (len(kinds) - 1) / 2 + 4
        parts.append(f'<text x="{left - 12}" y="{centre}" text-anchor="end">{html.escape(line.name)}</text>')
        for number, difference in enumerate(line.differences):
            y = start + gap * number
            width = difference.half_width if np.isfinite(difference.half_width) else 0.0
            whisker = f"M{x(difference.mean - width):.1f} {y}H{x(difference.mean + width):.1f}"
            parts.append(f'<path class="whisker s{number}" d="{whisker}"/>')
            parts.append(f'<path class="dots s{number}" d="M{x(difference.mean):.1f} {y}h0"/>')
    body = "\n".join(parts)
    return _alone(f'<svg viewBox="0 0 {WIDTH} {height}" role="img">\n{body}\n</svg>', WIDTH, height)


def scatter(title: str, x_label: str, y_label: str, points: dict[str, tuple[float, float]]) -> str:
    """A plot of named points, both axes from 0 or from round numbers."""
    left, top, right, bottom = 60, 40, WIDTH - 150, HEIGHT - 46
    x_marks = ticks(0.0, max(x for x, _ in points.values()), 6)
    y_marks = ticks(min(y for _, y in points.values()), max(y for _, y in points.values()), 6)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_marks[0]) / (x_marks[-1] - x_marks[0])
        up = (y - y_marks[0]) / (y_marks[-1] - y_marks[0])
        return left + (right - left) * across, bottom - (bottom - top) * up

    parts = [f'<text class="label" x="12" y="20">{html.escape(y_label)}</text>']
    for mark in y_marks:
        _, y = place(0.0, mark)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{right}"/>')
        parts.append(
            f'<text class="tick" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick_label(mark, y_marks)}</text>'
        )
    for mark in x_marks:
        x, _ = place(mark, 0.0)
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{tick_label(mark, x_marks)}</text>'
        )
    parts.append(f'<path class="axis" d="M{left} {bottom}H{right}"/>')
    middle = (left + right) / 2
    parts.append(
        f'<text class="label" x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{html.escape(x_label)}</text>'
    )
    ordered = sorted(points.items(), key=lambda item: place(*item[1])[1])
    labels = spread([place(*point)[1] for _, point in ordered], top, bottom)
    for number, ((name, point), label) in enumerate(zip(ordered, labels, strict=True)):
        x, y = place(*point)
        colour = f"s{number % len(COLOURS)}"
        parts.append(f'<path class="dots {colour}" d="M{x:.1f} {y:.1f}h0"/>')
        parts.append(f'<path class="grid" d="M{x + 4:.1f} {y:.1f}L{x + 14:.1f} {label:.1f}"/>')
        parts.append(f'<text class="end {colour}" x="{x + 17:.1f}" y="{label + 4:.1f}">{html.escape(name)}</text>')
    body = "\n".join(parts)
    opening = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{html.escape(title)}</title>'
    return _alone(f"{opening}\n{body}\n</svg>", WIDTH, HEIGHT)


def _alone(picture: str, width: int, height: int) -> str:
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
    tag, bracket, rest = picture.partition(">")
    return tag.replace("<svg ", opening, 1) + bracket + STYLE + rest + "\n"
