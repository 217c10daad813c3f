"""Line charts as SVG text, without a library: axes, round ticks, raw points under smoothed lines, labelled ends.

Colours are CSS classes (`s0`, `s1`, ...) that the page defines, so one chart serves a light and a dark page. A long
curve is thinned to POINTS means first: the size of a chart does not grow with the run.
"""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

POINTS = 400
"""largest number of points that are drawn of one curve"""
COLOURS = 6
"""number of colour classes (s0, s1, ...) that the page defines"""
LINE_HEIGHT = 16
CHARACTER_WIDTH = 7.2
"""width of a character of 12.5 px, rounded up"""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One curve."""

    name: str
    x: np.ndarray
    raw: np.ndarray
    """values that are drawn as faint points"""
    smoothed: np.ndarray
    """values that are drawn as the line"""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Curves over one pair of axes."""

    title: str
    description: str
    """description of the picture for a screen reader"""
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    baselines: tuple[tuple[str, float], ...] = ()
    """name and height of dashed lines across the chart"""


def svg(chart: Chart, width: int, height: int, name: str) -> str:
    """The chart as an <svg> of that aspect ratio that scales with the page; `name` makes its ids unique on the page."""
    return _Canvas(chart, width, height, name).draw()


class _Canvas:
    def __init__(self, chart: Chart, width: int, height: int, name: str) -> None:
        self.chart, self.width, self.height, self.name = chart, width, height, name
        ends = [curve.name for curve in chart.series] + [label for label, _ in chart.baselines]
        self.right = width - 12 - round(max((len(_short(end)) for end in ends), default=0) * CHARACTER_WIDTH)
        self.left, self.top, self.bottom = 40, 30, height - 42
        heights = [value for curve in chart.series for part in (curve.raw, curve.smoothed) for value in part]
        heights += [value for _, value in chart.baselines]
        self.y_ticks = ticks(min(heights), max(heights), max(3, (self.bottom - self.top) // 50))
        self.low, self.high = min(self.y_ticks[0], min(heights)), max(self.y_ticks[-1], max(heights))
        self.last = max(float(curve.x[-1]) for curve in chart.series)
        self.x_ticks = [
            tick for tick in ticks(0, self.last, max(2, (self.right - self.left) // 90)) if tick <= self.last
        ]

    def x(self, value: float) -> float:
        return self.left + (self.right - self.left) * value / (self.last or 1)

    def y(self, value: float) -> float:
        return self.bottom - (self.bottom - self.top) * (value - self.low) / ((self.high - self.low) or 1)

    def draw(self) -> str:
        title, description = f"{self.name}-title", f"{self.name}-description"
        return "\n".join(
            [
                f'<svg class="chart" viewBox="0 0 {self.width} {self.height}" role="img" '
                f'aria-labelledby="{title} {description}">',
                f'<title id="{title}">{html.escape(self.chart.title)}</title>',
                f'<desc id="{description}">{html.escape(self.chart.description)}</desc>',
                *self._axes(),
                *self._curves(),
                *self._ends(),
                "</svg>",
            ]
        )

    def _axes(self) -> list[str]:
        parts = []
        for tick in self.y_ticks:
            y = self.y(tick)
            parts.append(f'<path class="grid" d="M{self.left} {y:.1f}H{self.right}"/>')
            parts.append(_text(self.left - 8, y + 4, tick_label(tick, self.y_ticks), "tick", "end"))
        parts.append(f'<path class="axis" d="M{self.left} {self.bottom}H{self.right}"/>')
        for tick in self.x_ticks:
            x = self.x(tick)
            parts.append(f'<path class="axis" d="M{x:.1f} {self.bottom}v5"/>')
            parts.append(_text(x, self.bottom + 19, tick_label(tick, self.x_ticks), "tick", "middle"))
        parts.append(_text(4, 14, self.chart.y_label, "label", "start"))
        parts.append(_text((self.left + self.right) / 2, self.height - 6, self.chart.x_label, "label", "middle"))
        return parts

    def _curves(self) -> list[str]:
        parts, lines = [], []
        for number, curve in enumerate(self.chart.series):
            colour = f"s{number % COLOURS}"
            x, raw, smoothed = (thinned(part) for part in (curve.x, curve.raw, curve.smoothed))
            dots = "".join(f"M{self.x(a):.1f} {self.y(b):.1f}h0" for a, b in zip(x, raw, strict=True))
            parts.append(f'<path class="dots {colour}" d="{dots}"/>')
            points = "L".join(f"{self.x(a):.1f} {self.y(b):.1f}" for a, b in zip(x, smoothed, strict=True))
            lines.append(f'<path class="line {colour}" d="M{points}"/>')
        for _, value in self.chart.baselines:
            lines.append(f'<path class="baseline" d="M{self.left} {self.y(value):.1f}H{self.right}"/>')
        return parts + lines

    def _ends(self) -> list[str]:
        """The name of each curve at its end; names of ends that meet are moved apart."""
        ends = [
            (self.y(float(curve.smoothed[-1])), curve.name, f"s{number % COLOURS}")
            for number, curve in enumerate(self.chart.series)
        ]
        ends += [(self.y(value), name, "baseline") for name, value in self.chart.baselines]
        ends.sort()
        places = spread([y for y, _, _ in ends], self.top, self.bottom)
        return [
            _text(self.right + 7, place + 4, _short(name), f"end {colour}", "start")
            for place, (_, name, colour) in zip(places, ends, strict=True)
        ]


def spread(places: Sequence[float], top: float, bottom: float, gap: float = LINE_HEIGHT) -> list[float]:
    """The sorted places with at least `gap` between neighbours, moved by one pass down and one pass up."""
    moved = [max(top, place) for place in places]
    for index in range(1, len(moved)):
        moved[index] = max(moved[index], moved[index - 1] + gap)
    limit = bottom
    for index in reversed(range(len(moved))):
        moved[index] = min(moved[index], limit)
        limit = moved[index] - gap
    return moved


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers around `low` to `high`: steps of 1, 2 or 5 times a power of ten."""
    span = high - low or abs(high) or 1.0
    rough = span / max(1, count)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, max(last, first + 1) + 1)]


def tick_label(tick: float, all_ticks: Sequence[float]) -> str:
    """The tick as text, with as many decimals as the steps between the ticks need."""
    step = all_ticks[1] - all_ticks[0] if len(all_ticks) > 1 else abs(tick) or 1.0
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{tick:,.{decimals}f}"


def thinned(values: np.ndarray) -> np.ndarray:
    """At most POINTS values: the first value, means of equal stretches, and the last value."""
    if len(values) <= POINTS:
        return values
    inner = [part.mean() for part in np.array_split(values[1:-1], POINTS - 2)]
    return np.array([values[0], *inner, values[-1]])


def _text(x: float, y: float, text: str, kind: str, anchor: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _short(name: str) -> str:
    return name if len(name) <= 16 else name[:15] + "…"
