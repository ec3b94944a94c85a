"""Curves over the steps of a run, as inline SVG; colours and line widths are the page's (`page.css`)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

Points = Sequence[tuple[float, float]]
LEFT, RIGHT, TOP, BOTTOM = 70, 30, 12, 38  # Room for the tick labels of a chart, in its own units.


@dataclass(frozen=True)
class Axis:
    """Numbers low..high -> pixels start..stop, linear or logarithmic."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, x: float) -> float:
        low, high, x = (math.log(v) if self.log else v for v in (self.low, self.high, x))
        return self.start + (self.stop - self.start) * ((x - low) / (high - low) if high > low else 0.5)

    def ticks(self) -> list[float]:
        """Round numbers within the axis: 1, 2 and 5 times powers of ten, few enough to be read."""
        if self.low == self.high:
            return [self.low]
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            digits = (1, 3) if len(powers) < 5 else (1,)
            ticks = [digit * 10.0**power for power in powers for digit in digits]
        else:
            span = self.high - self.low
            power = 10.0 ** math.floor(math.log10(span / 4))
            pace = next(digit * power for digit in (1, 2, 5, 10) if digit * power >= span / 5)
            ticks = [pace * n for n in range(math.ceil(self.low / pace), math.floor(self.high / pace) + 1)]
        return [tick for tick in ticks if self.low <= tick <= self.high]


def chart(series: Mapping[str, Points], *, width: int = 430, height: int = 220) -> str:
    """An inline SVG of series of (step, value), with a legend that gives the last values.

    The value axis is logarithmic where all values are positive and span a factor above 30. From 40 points on
    a running mean is drawn over the faint points. What is not finite is left out, and the legend says so."""
    finite = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in series.items()}
    shown = [point for points in finite.values() for point in points] or [(0.0, 0.0)]
    xs, ys = [x for x, _ in shown], [y for _, y in shown]
    across = Axis(min(xs), max(xs), LEFT, width - RIGHT)
    up = Axis(min(ys), max(ys), height - BOTTOM, TOP, log=min(ys) > 0 and max(ys) > 30 * min(ys))
    parts = []
    for y, text in ((up(tick), number(tick)) for tick in up.ticks()):
        parts.append(f'<line x1="{LEFT}" x2="{width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    texts = [(across(tick), height - 20, f"{tick:,.10g}") for tick in across.ticks()]
    for x, y, text in [*texts, ((LEFT + width - RIGHT) / 2, height - 4, "step")]:
        parts.append(f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{text}</text>')
    turned = f"translate(12 {(TOP + height - BOTTOM) / 2:.0f}) rotate(-90)"
    name = "value, log scale" if up.log else "value"
    parts.append(f'<text transform="{turned}" text-anchor="middle">{name}</text>')
    legend = []
    for index, (name, points) in enumerate(finite.items()):
        colour = f"c{index % 6}"
        for style, line in (("thin", points), ("", smooth(points))) if len(points) >= 40 else (("", points),):
            stride = math.ceil(len(line) / width)  # More points than pixels would only make the page heavy.
            dots = " ".join(f"{across(x):.2f},{up(y):.2f}" for x, y in line[:: max(stride, 1)])
            parts.append(f'<polyline class="{colour} {style}" points="{dots}"/>')
        if len(points) == 1:  # A line of one point has no length to be seen by.
            x, y = across(points[0][0]), up(points[0][1])
            parts.append(f'<circle class="{colour}" cx="{x:.2f}" cy="{y:.2f}" r="3"/>')
        lost = f", {n} not finite" if (n := len(series[name]) - len(points)) else ""
        last = number(points[-1][1] if points else None)
        legend.append(f'<span><i class="{colour}"></i>{escape(name)} <b>{last}</b>{lost}</span>')
    head = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(", ".join(series))}">'
    caption = f"<figcaption>{''.join(legend)}</figcaption>"
    return f"<figure>{head}{''.join(parts)}</svg>{caption}</figure>"


def smooth(points: Points) -> list[tuple[float, float]]:
    """Mean of each value with its neighbours, a thirtieth of all on either side: centred, without lag."""
    # Sums of the values themselves: differences of running sums would lose all digits after one huge loss.
    window = np.ones(2 * (len(points) // 30) + 1)
    total = np.convolve([y for _, y in points], window, "same")
    count = np.convolve(np.ones(len(points)), window, "same")
    return [(x, float(y)) for (x, _), y in zip(points, total / count, strict=True)]


def number(value: Any) -> str:
    """Four digits for a number, a hyphen for none."""
    return f"{value:.4g}".replace("e-0", "e-") if isinstance(value, int | float) else "-"
