"""Curves over the steps of a run, as inline SVG; colours and line widths are the page's (`page.css`)."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

Points = Sequence[tuple[float, float]]
LEFT, RIGHT, TOP, BOTTOM = 76, 44, 12, 38  # Room for the tick labels of a chart, in its own units.
LETTER, LINE = 7.0, 14.0  # the most that a digit is wide, and a line high, at the page's 12 pixels


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
        """Round numbers within the axis: 1, 2 and 5 times powers of ten, as many as their labels leave room for."""
        if self.low == self.high:
            return [self.low]
        pace = self.high - self.low
        for most in (5, 4, 3, 2, 1):
            ticks = self._powers(most) if self.log else self._multiples(pace / most)
            if not self._collide(ticks):
                break
        return ticks

    def labels(self, ticks: Sequence[float]) -> list[str]:
        """Their texts, with as many digits as it takes to tell them apart."""
        for digits in range(1, 16):
            texts = [short(tick, digits) for tick in ticks]
            values = [float(text.replace(",", "")) for text in texts]
            if len(set(texts)) == len(texts) and np.allclose(values, ticks, rtol=1e-3, atol=0):
                break
        return texts

    def _powers(self, most: int) -> list[float]:
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        digits = (1, 3) if len(powers) < most else (1,)
        ticks = [digit * 10.0**power for power in powers[:: -(-len(powers) // (2 * most))] for digit in digits]
        return [tick for tick in ticks if self.low <= tick <= self.high]

    def _multiples(self, least: float) -> list[float]:
        power = 10.0 ** math.floor(math.log10(least))
        pace = next(digit * power for digit in (1, 2, 5, 10) if digit * power >= least)
        ticks = [pace * n for n in range(math.ceil(self.low / pace), math.floor(self.high / pace) + 1)]
        return [tick for tick in ticks if self.low <= tick <= self.high]

    def _collide(self, ticks: Sequence[float]) -> bool:
        """Whether two labels would touch: of an axis that goes up, lines of text; else, texts beside each other."""
        if self.start > self.stop:
            ends = [(-self(tick) - LINE / 2, -self(tick) + LINE / 2) for tick in ticks]
        else:
            half = [(len(label) + 1) * LETTER / 2 for label in self.labels(ticks)]
            ends = [(self(tick) - width, self(tick) + width) for tick, width in zip(ticks, half, strict=True)]
        return any(stop > start for (_, stop), (start, _) in itertools.pairwise(ends))


def chart(series: Mapping[str, Points], *, title: str = "", note: str = "", width: int = 430, height: int = 220) -> str:
    """An inline SVG of series of (step, value), with a legend that gives the last values.

    `title` says what they have in common, `note` what it means; both stand under the curves.

    The value axis is logarithmic where all values are positive and span a factor above 30. From 40 points on
    a running mean is drawn over the faint points. What is not finite is left out, and the legend says so."""
    finite = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in series.items()}
    shown = [point for points in finite.values() for point in points] or [(0.0, 0.0)]
    xs, ys = [x for x, _ in shown], [y for _, y in shown]
    up = Axis(min(ys), max(ys), height - BOTTOM, TOP, log=min(ys) > 0 and max(ys) > 30 * min(ys))
    labels = up.labels(ticks := up.ticks())
    left = max(LEFT, 24 + LETTER * max(map(len, labels)))
    across = Axis(min(xs), max(xs), left, width - RIGHT)
    parts = []
    for y, text in zip(map(up, ticks), labels, strict=True):
        parts.append(f'<line x1="{left:g}" x2="{width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 6:g}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    ticks = across.ticks()
    texts = [(across(tick), height - 20, text) for tick, text in zip(ticks, across.labels(ticks), strict=True)]
    for x, y, text in [*texts, ((left + width - RIGHT) / 2, height - 4, "step")]:
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
    label = escape(": ".join(filter(None, (title, ", ".join(series)))))
    head = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">'
    heading = f"<b>{escape(title)}</b> " if title else ""
    caption = f"<figcaption>{heading}{''.join(legend)}{f'<p>{escape(note)}</p>' if note else ''}</figcaption>"
    return f"<figure>{head}{''.join(parts)}</svg>{caption}</figure>"


def smooth(points: Points) -> list[tuple[float, float]]:
    """Mean of each value with its neighbours, a thirtieth of all on either side: centred, without lag."""
    # Sums of the values themselves: differences of running sums would lose all digits after one huge loss.
    window = np.ones(2 * (len(points) // 30) + 1)
    total = np.convolve([y for _, y in points], window, "same")
    count = np.convolve(np.ones(len(points)), window, "same")
    return [(x, float(y)) for (x, _), y in zip(points, total / count, strict=True)]


def short(value: float, digits: int) -> str:
    """A number with so many significant digits or, where it is whole and not huge, all of them."""
    text = f"{value:.{digits}g}"
    if "e" in text and 1 <= abs(value) < 1e9 and value == round(value):
        text = f"{value:,.0f}"
    return re.sub(r"e([-+])0+(?=\d)", r"e\1", text).replace("e+", "e")


def number(value: Any) -> str:
    """Four digits for a number, a hyphen for none."""
    return f"{value:.4g}".replace("e-0", "e-") if isinstance(value, int | float) else "-"
