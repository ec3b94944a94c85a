"""One page to look at a run: `index.html` in its folder, static, with relative links only.

It shows whatever is there of

    config.json  run.json  metrics.jsonl, or its parts                      (vf.record)
    samples/real/            clips.npz  wall.gif  wall.mp4  strip.png  meta.json
    samples/step_00001000/   the same, of clips drawn at that step          (write_samples)
    samples/base_step_00001000/   clips.npz  wall.png  meta.json, of images of the base generator

and asks for nothing else: no network, no server, no script but a few lines that move the step slider. Without
them the last step is shown.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any
from urllib.parse import quote

import numpy as np

from vf import files, record, video
from vf.files import AnyPath
from vf.types import UserError

Points = Sequence[tuple[float, float]]
WIDTH = 640  # Walls and film strips are enlarged to about this many pixels, as far as whole factors reach.
STRIP_ROWS, STRIP_PAD = 8, 3
LEFT, RIGHT, TOP, BOTTOM = 70, 30, 12, 38  # Room for the tick labels of a chart, in its own units.
ABOUT = """VideoFusion draws a clip with two diffusion models that share its noise. The base generator works
on one frame, the centre, and draws what all frames have in common; the residual generator adds to each frame
what sets it apart. Below: real clips beside drawn ones, the course of training, and every score with the
protocol it was measured by. Pictures here are for the eye; <code>clips.npz</code> holds the exact pixels."""


def step_folder(workdir: str | AnyPath, step: int, images: bool = False) -> AnyPath:
    """Where the samples drawn at `step` lie: clips, or images of the base generator."""
    return files.path(workdir) / "samples" / f"{'base_' if images else ''}step_{step:08d}"


def real_folder(workdir: str | AnyPath) -> AnyPath:
    """Where the real clips lie that the samples are shown beside."""
    return files.path(workdir) / "samples" / "real"


def write_samples(
    folder: str | AnyPath,
    clips: np.ndarray,
    *,
    centre: int,
    fps: float = 8,
    scale: int | None = None,
    columns: int = 8,
    labels: Sequence[Any] | None = None,
    class_names: Sequence[str] = (),
    meta: Mapping[str, Any] | None = None,
) -> AnyPath:
    """Writes clips u8 [n t h w 3] as clips.npz (lossless), wall.gif, wall.mp4, strip.png and meta.json; those of one
    frame are images, with wall.png in place of all that moves.

    `centre` is the index of the base frame, marked in the strip of the first eight clips; `scale` enlarges
    every pixel (by default to fill a column of the page); `labels` has one entry for each clip, told by name
    where there are `class_names`; `meta` is any further fact, such as seed and sampler. Returns the folder.
    Raises ValueError on clips, labels or a centre that do not fit."""
    folder, clips = files.path(folder), np.asarray(clips)
    video.save_npz(folder / "clips.npz", clips, **({} if labels is None else {"label": np.asarray(labels)}))
    count, frames, height, width, _ = clips.shape
    wall = video.grid(clips, columns)
    large = scale or max(1, WIDTH // wall.shape[2])
    facts = {"count": count, "frames": frames, "height": height, "width": width}
    if frames == 1:
        video.write_png(folder / "wall.png", video.enlarge(wall[0], large))
    else:
        video.write_gif(folder / "wall.gif", wall, fps, large)
        video.write_mp4(folder / "wall.mp4", wall, fps, large)
        large = scale or max(1, (WIDTH // frames - 2 * STRIP_PAD) // width)
        video.write_png(folder / "strip.png", video.film_strip(clips[:STRIP_ROWS], centre, STRIP_PAD, large))
        facts |= {"centre": centre, "fps": fps}
    facts |= dict(meta or {})
    if labels is not None:
        facts["labels"] = [class_names[label] if class_names else str(label) for label in labels]
    files.write_whole(folder / "meta.json", json.dumps(record.plain(facts), indent=2, allow_nan=False) + "\n")
    return folder


def write(workdir: str | AnyPath) -> AnyPath:
    """Writes `index.html` from what the run's folder holds so far; returns its path.

    Raises UserError when `workdir` is no folder."""
    workdir = files.path(workdir)
    if not workdir.is_dir():
        raise UserError(f"expected the folder of a run and found none at {workdir}")
    lines = record.read_metrics(workdir)
    scalars = [line for line in lines if "score" not in line and "text" not in line]
    scores = [line for line in lines if "score" in line]
    starts = [start for start in _load(workdir / "run.json").get("starts") or [] if isinstance(start, dict)]
    title = escape(f"VideoFusion: {workdir.resolve().name}")
    cards = _cards(scalars, scores, starts, _load(workdir / "best.json"))
    body = [
        f"<header><h1>{title}</h1><p>{ABOUT}</p>{cards}</header>",
        _section("Clips", _clips(workdir)),
        _section("Training", _training(scalars)),
        _section("Scores", _scores(scores)),
        _section("Remarks", _remarks([line for line in lines if "text" in line])),
        _section("Run", _run(workdir, starts)),
    ]
    page = PAGE.format(title=title, style=STYLE, script=SCRIPT, body="\n".join(filter(None, body)))
    files.write_whole(workdir / "index.html", page)
    return workdir / "index.html"


# Sections: each gives HTML, or nothing where there is nothing to show.


def _section(title: str, inside: str) -> str:
    return f"<section><h2>{title}</h2>{inside}</section>" if inside else ""


def _details(summary: str, inside: str, opened: bool = False) -> str:
    return f"<details{' open' if opened else ''}><summary>{summary}</summary>{inside}</details>"


def _cards(scalars: list[dict], scores: list[dict], starts: list[dict], best: dict[str, Any]) -> str:
    """The few numbers that one wants first."""
    cards = {"steps": f"{scalars[-1]['step']:,}"} if scalars else {}
    if losses := [line["train/loss"] for line in scalars if "train/loss" in line]:
        cards["training loss"] = number(losses[-1])
    protocols = {(line["score"], line.get("protocol_hash")) for line in scores}
    several = {name for name, _ in protocols if sum(name == other for other, _ in protocols) > 1}
    for line in scores:  # numbers under two protocols do not share a place
        name = f"{line['score']} ({line.get('protocol_hash')})" if line["score"] in several else str(line["score"])
        cards[name] = number(line.get("value"))
    if isinstance(best.get("step"), int):
        cards["best checkpoint"] = f"step {best['step']:,}: {best.get('score')} {number(best.get('value'))}"
    if starts and isinstance(devices := starts[-1].get("devices"), dict):
        cards["devices"] = f"{devices.get('count')} x {devices.get('kind')}"
    cells = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in cards.items())
    return f'<dl class="cards">{cells}</dl>' if cells else ""


def _clips(workdir: AnyPath) -> str:
    known = files.children(workdir / "samples")
    found: list[tuple[int, AnyPath, str]] = []
    for kind, heading in (("step_", "Drawn at step"), ("base_step_", "Images of the base generator at step")):
        for folder in known:
            digits = folder.name.removeprefix(kind)
            if folder.name.startswith(kind) and digits.isdecimal():
                found.append((int(digits), folder, f"{heading} {int(digits):,}"))
    drawn: dict[int, str] = {}
    shown = files.together(lambda one: _pictures(workdir, *one[1:]) if one[1].is_dir() else "", found)
    for (step, _, _), pictures in zip(found, shown, strict=True):
        if pictures:
            drawn[step] = drawn.get(step, "") + pictures
    blocks = [
        f'<div class="step" data-step="{step:,}"{"" if step == max(drawn) else " hidden"}>{drawn[step]}</div>'
        for step in sorted(drawn)
    ]
    columns = []
    if (real := real_folder(workdir)).is_dir():
        columns.append(f"<div>{_pictures(workdir, real, 'Real clips')}</div>")
    if blocks:
        columns.append(f"<div>{''.join(blocks)}</div>")
    if not columns:
        return ""
    note = "<p>In a film strip rows are clips and time runs to the right; the orange frame is the centre.</p>"
    slider = SLIDER.format(last=len(blocks) - 1) if len(blocks) > 1 else ""
    return f'{note}{slider}<div class="pair">{"".join(columns)}</div>'


def _pictures(workdir: AnyPath, folder: AnyPath, heading: str) -> str:
    """Wall, film strip, links and facts of one set of clips, as far as its files are there."""
    links = {path.name: quote(path.relative_to(workdir).as_posix()) for path in files.children(folder)}
    parts = [f"<h3>{heading}</h3>"]
    for name, text in (
        ("wall.gif", "a wall of clips"), ("wall.png", "a wall of images"),
        ("strip.png", "film strip, the centre frame marked"),
    ):  # fmt: skip
        if link := links.get(name):
            image = f'<img src="{link}" alt="{heading}: {text}" loading="lazy">'
            parts.append(f'<a href="{link}">{image}</a>')
    meta = _load(folder / "meta.json")
    labels = meta.pop("labels", [])
    small = [f'<a href="{links[name]}">{name}</a>' for name in ("clips.npz", "wall.mp4") if name in links]
    small += [f"{escape(key)} {_inline(value)}" for key, value in meta.items()]
    parts.append(f'<p class="small">{" · ".join(small)}</p>')
    if labels:
        parts.append(_details("Labels, row by row", f'<p class="small">{_inline(labels)}</p>'))
    return "".join(parts)


def _training(scalars: list[dict]) -> str:
    """All training losses in one chart; each error of a network, at all noise levels, in a small one, and every other
    number in one of its own."""
    series: dict[str, list[tuple[float, float]]] = {}
    for line in scalars:
        for key, value in line.items():
            if key.startswith(("train/", "validation/", "seen/")) and isinstance(value, int | float):
                series.setdefault(key, []).append((line["step"], value))
    losses = {key: points for key, points in series.items() if key.startswith("train/") and "loss" in key}
    charts = [f'<div class="wide">{chart(losses, width=1280, height=340)}</div>'] if losses else []
    groups: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for key, points in series.items():
        if key not in losses:
            groups.setdefault(re.sub(r"/t\d+$", "", key), {})[key] = points
    charts += [chart(group) for group in groups.values()]
    return f'<div class="charts">{"".join(charts)}</div>' if charts else ""


def _scores(scores: list[dict]) -> str:
    """The latest value of every score and protocol, and its course where there is one."""
    courses: dict[tuple[str, str], list[dict]] = {}
    for line in scores:
        courses.setdefault((str(line["score"]), str(line.get("protocol_hash"))), []).append(line)
    rows, charts = [], []
    for (name, digest), lines in courses.items():
        line = lines[-1]
        cells = [escape(name), f"{line['step']:,}"]
        details: dict[str, Any] = line.get("details") or {}
        cells += [
            number(line.get("value")) + _spread(details),
            number(line.get("reference")),
            number(line.get("target")),
        ]
        cells += [_details(f"<code>{escape(digest)}</code>", _pre(line.get("protocol")) + _remarks_on(details))]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
        points = [(x["step"], x["value"]) for x in lines if isinstance(x.get("value"), int | float)]
        charts += [chart({f"{name} ({digest})": points})] if len(points) > 1 else []
    heads = ("Score", "Step", "Value", "Real clips", "Target", "Protocol")
    head = "".join(f"<th>{text}</th>" for text in heads)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    note = "<p>Two values can be compared where their protocols, and so the hashes of these, are equal.</p>"
    return f'{note}<div class="scroll">{table}</div><div class="charts">{"".join(charts)}</div>' if rows else ""


def _spread(details: dict[str, Any]) -> str:
    """How sure a value is, where that is known."""
    if "low" in details and "high" in details:
        return f' <span class="small">95 %: {number(details["low"])} ... {number(details["high"])}</span>'
    return f' <span class="small">± {number(details["std"])}</span>' if "std" in details else ""


def _remarks_on(details: dict[str, Any]) -> str:
    return "".join(f'<p class="small">Warning: {_inline(text)}</p>' for text in details.get("warnings") or ())


def _remarks(lines: list[dict]) -> str:
    texts = (f"Step {line['step']:,}, {_inline(line['text'])}: {_inline(line.get('value'))}" for line in lines)
    items = "".join(f"<li>{text}</li>" for text in texts)
    return f"<ul>{items}</ul>" if items else ""


def _run(workdir: AnyPath, starts: list[dict]) -> str:
    parts: list[str] = []
    for index, start in enumerate(starts, 1):
        rows = "".join(f"<tr><th>{escape(key)}</th><td>{_inline(x)}</td></tr>" for key, x in start.items())
        table = f'<div class="scroll"><table class="facts"><tbody>{rows}</tbody></table></div>'
        summary = f"Start {index} of {len(starts)}, {_inline(start.get('time'))}"
        parts.insert(0, _details(summary, table, opened=index == len(starts)))
    if config := _load(workdir / "config.json"):
        parts.append(_details("Resolved config", _pre(config)))
    names = [name for name in ("config.json", "run.json", "metrics.jsonl") if (workdir / name).exists()]
    links = " · ".join(f'<a href="{name}">{name}</a>' for name in names)
    return "".join(parts) + (f'<p class="small">{links}</p>' if links else "")


def _pre(value: Any) -> str:
    return f"<pre>{escape(json.dumps(value, indent=2, ensure_ascii=False))}</pre>"


def _inline(value: Any) -> str:
    """Any JSON value on one line, escaped."""
    if isinstance(value, dict):
        return " · ".join(f"{escape(key)} {_inline(item)}" for key, item in value.items())
    return escape(", ".join(map(str, value)) if isinstance(value, list) else str(value))


def _load(path: AnyPath) -> dict[str, Any]:
    """A JSON object, or an empty one where the file is missing or damaged: the page shows what there is."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


# Curves.


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


STYLE = """
:root { color-scheme: light dark; --ink: #1d2129; --soft: #5f6978; --page: #f6f7f9; --card: #fff;
  --line: #e1e4ea; --mark: #ff8c00; --c0: #2f6fde; --c1: #d9480f; --c2: #2b8a3e; --c3: #9c36b5; --c4: #0b8599;
  --c5: #a67c00 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #98a2b3; --page: #14171c;
  --card: #1c2027; --line: #2d333d; --c0: #74a9ff; --c1: #ff9466; --c2: #6bcf7f; --c3: #d98cf0; --c4: #4fc9dc;
  --c5: #e0b84a } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1400px; padding: 2rem clamp(1rem, 3vw, 2.5rem); background: var(--page);
  color: var(--ink); font: 16px/1.55 system-ui, sans-serif }
h1 { font-size: 1.7rem; margin: 0 0 .5rem } h2 { font-size: 1.2rem; margin: 0 0 .6rem }
h3 { font-size: 1rem; margin: 0 0 .6rem } p { margin: .3rem 0 .8rem } header p { max-width: 80ch }
a { color: var(--c0) } .small, figcaption, dt { font-size: .83rem; color: var(--soft) }
section, .cards div { background: var(--card); border: 1px solid var(--line); border-radius: 12px }
section { padding: 1.2rem 1.4rem; margin: 1.2rem 0 }
.cards { display: flex; flex-wrap: wrap; gap: .8rem }
.cards div { border-left: 4px solid var(--mark); padding: .4rem 1rem }
dd { margin: 0; font-size: 1.25rem; font-weight: 600 }
.pair, .charts { display: grid; gap: 1rem 1.5rem }
.pair { grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)) }
.charts { grid-template-columns: repeat(auto-fill, minmax(min(100%, 360px), 1fr)) }
.wide { grid-column: 1/-1; overflow-x: auto } .wide svg { min-width: 760px }
img { display: block; max-width: 100%; height: auto; image-rendering: pixelated; margin: 0 0 .8rem }
.slider:not([hidden]) { display: flex; gap: .8rem } output { font-weight: 600 }
input { flex: 1; max-width: 640px; accent-color: var(--mark) }
figure { margin: 0 } svg { display: block; width: 100%; height: auto }
svg text { font-size: 12px; fill: var(--soft) } svg line { stroke: var(--line) }
polyline { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round }
.thin { opacity: .3; stroke-width: 1 } circle { fill: currentColor }
figcaption span { margin-right: 1.2em; display: inline-block }
i { display: inline-block; width: 1.1em; height: 3px; background: currentColor; margin: 0 .4em .25em 0 }
.c0 { color: var(--c0) } .c1 { color: var(--c1) } .c2 { color: var(--c2) } .c3 { color: var(--c3) }
.c4 { color: var(--c4) } .c5 { color: var(--c5) } .scroll { overflow-x: auto; margin-bottom: 1rem }
table { border-collapse: collapse; min-width: 60% } summary { cursor: pointer }
th, td { text-align: left; vertical-align: top; padding: .4rem 1rem .4rem 0 }
tr { border-bottom: 1px solid var(--line) } .facts td { overflow-wrap: anywhere }
th { color: var(--soft); font-weight: 500; font-size: .9rem }
pre { overflow: auto; max-height: 32rem; background: var(--page); padding: .8rem; font-size: .83rem }
"""

SLIDER = (
    '<p class="slider" hidden><label for="step">Step</label>'
    '<input id="step" type="range" min="0" max="{last}" value="{last}"><output for="step"></output></p>'
)

SCRIPT = """
const slider = document.getElementById("step");
if (slider) {
  const blocks = [...document.querySelectorAll(".step")];
  const show = () => {
    blocks.forEach((block, index) => { block.hidden = index != slider.value; });
    slider.nextElementSibling.value = blocks[slider.value].dataset.step;
  };
  slider.parentElement.hidden = false;
  slider.addEventListener("input", show);
  show();
}
"""

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head>
<body>
{body}
<script>{script}</script>
</body></html>
"""
