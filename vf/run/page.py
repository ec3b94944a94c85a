"""One page to look at a run: `index.html` in its folder, static, with relative links only.

It shows whatever is there of

    config.json  run.json  best.json  metrics.jsonl, or its parts    (`vf.run.recorder`)
    samples/                                                         (`vf.run.media`)

and asks for nothing else: no network, no server, no script but a few lines (`page.js`) that move the step slider.
Without them the last step is shown. `page.html` is its template, `page.css` its style.
"""

import json
import re
from html import escape
from importlib import resources
from string import Template
from typing import Any
from urllib.parse import quote

from vf import files
from vf.files import AnyPath
from vf.run.charts import chart, number
from vf.run.media import Drawing, drawings, real_folder
from vf.run.metrics_file import read_metrics
from vf.types import UserError


def write(workdir: str | AnyPath) -> AnyPath:
    """Writes `index.html` from what the run's folder holds so far; returns its path.

    Raises UserError when `workdir` is no folder."""
    workdir = files.path(workdir)
    if not workdir.is_dir():
        raise UserError(f"expected the folder of a run and found none at {workdir}")
    lines = read_metrics(workdir)
    scalars = [line for line in lines if "score" not in line and "text" not in line]
    scores = [line for line in lines if "score" in line]
    starts = [start for start in _load(workdir / "run.json").get("starts") or [] if isinstance(start, dict)]
    title = escape(f"VideoFusion: {workdir.resolve().name}")
    sections = [
        _section("Clips", _clips(workdir)),
        _section("Training", _training(scalars)),
        _section("Scores", _scores(scores)),
        _section("Remarks", _remarks([line for line in lines if "text" in line])),
        _section("Run", _run(workdir, starts)),
    ]
    text = Template(_resource("page.html")).substitute(
        title=title,
        style=_resource("page.css"),
        cards=_cards(scalars, scores, starts, _load(workdir / "best.json")),
        sections="".join(sections),
        script=_resource("page.js"),
    )
    files.write_whole(workdir / "index.html", text)
    return workdir / "index.html"


def _resource(name: str) -> str:
    """The text of a file of this package."""
    return resources.files("vf.run").joinpath(name).read_text(encoding="utf-8")


# Sections: each gives HTML, or nothing where there is nothing to show.


def _section(title: str, inside: str) -> str:
    return f"<section><h2>{title}</h2>{inside}</section>\n" if inside else ""


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
    def show(one: Drawing) -> str:
        heading = "Images of the base generator at step" if one.images else "Drawn at step"
        return _pictures(workdir, one.folder, f"{heading} {one.step:,}{one.facts}") if one.folder.is_dir() else ""

    drawn: dict[int, str] = {}
    folders = drawings(workdir)
    for one, pictures in zip(folders, files.map_concurrently(show, folders), strict=True):
        if pictures:
            drawn[one.step] = drawn.get(one.step, "") + pictures
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
    note = "<p>In a film strip rows are clips and time runs to the right; the orange frame is the base frame.</p>"
    last = len(blocks) - 1
    slider = (
        '<p class="slider" hidden><label for="step">Step</label>'
        f'<input id="step" type="range" min="0" max="{last}" value="{last}"><output for="step"></output></p>'
    )
    return f'{note}{slider if last > 0 else ""}<div class="pair">{"".join(columns)}</div>'


def _pictures(workdir: AnyPath, folder: AnyPath, heading: str) -> str:
    """Wall, film strip, links and facts of one set of clips, as far as its files are there."""
    links = {path.name: quote(path.relative_to(workdir).as_posix()) for path in files.children(folder)}
    parts = [f"<h3>{heading}</h3>"]
    for name, text in (
        ("wall.gif", "a wall of clips"), ("wall.png", "a wall of images"),
        ("strip.png", "film strip, the base frame marked"),
    ):  # fmt: skip
        if link := links.get(name):
            image = f'<img src="{link}" alt="{heading}: {text}" loading="lazy">'
            parts.append(f'<a href="{link}">{image}</a>')
    meta = _load(folder / "meta.json")
    labels = meta.pop("labels", [])
    small = [f'<a href="{links[name]}">{name}</a>' for name in ("clips.npz", "wall.mp4") if name in links]
    if "centre" in meta:  # samples of earlier versions
        meta = {"base_frame" if key == "centre" else key: value for key, value in meta.items()}
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
        facts = {key: x for key, x in start.items() if key != "config"}
        rows = "".join(f"<tr><th>{escape(key)}</th><td>{_inline(x)}</td></tr>" for key, x in facts.items())
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
