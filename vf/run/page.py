"""One page to look at a run: `index.html` in its folder, static, with relative links only.

It shows whatever is there of

    config.json  run.json  best.json  metrics.jsonl, or its parts    (`vf.run.recorder`)
    samples/                                                         (`vf.run.media`)

and asks for nothing else: no network, no server, no script but a few lines (`page.js`) that move the step slider.
Without them the last step is shown. `page.html` is its template, `page.css` its style. First comes what run this is and
how far, then pictures, then numbers.
"""

import re
from collections.abc import Sequence
from html import escape
from importlib import resources
from string import Template
from typing import Any

from vf import files
from vf.activity import ACTIVITY
from vf.files import AnyPath
from vf.run import glossary
from vf.run.charts import Points, chart, number
from vf.run.gallery import gallery
from vf.run.html import details, inline, load, pre
from vf.run.metrics_file import read_metrics
from vf.run.provenance import parts_of
from vf.types import UserError

OPEN = ("train/loss", "validation/", "seen/")  # begin the names of numbers whose charts are not folded


@ACTIVITY.doing("writing the page")
def write(workdir: str | AnyPath) -> AnyPath:
    """Writes `index.html` from what the run's folder holds so far; returns its path.

    Raises UserError when `workdir` is no folder."""
    workdir = files.path(workdir)
    if not workdir.is_dir():
        raise UserError(f"expected the folder of a run and found none at {workdir}")
    lines = read_metrics(workdir)
    scalars = [line for line in lines if "score" not in line and "text" not in line]
    scores = [line for line in lines if "score" in line]
    starts = [start for start in load(workdir / "run.json").get("starts") or [] if isinstance(start, dict)]
    resolved = load(workdir / "config.json")
    sections = [
        _section("Clips", gallery(workdir)),
        _section("Scores", _scores(scores, load(workdir / "best.json"))),
        _section("Training" if any("train/loss" in line for line in scalars) else "Losses", _training(scalars)),
        _section("Remarks", _remarks([line for line in lines if "text" in line])),
        _section("Run", _run(workdir, starts, resolved)),
    ]
    text = Template(_resource("page.html")).substitute(
        title=escape(f"VideoFusion: {workdir.resolve().name}"),
        style=_resource("page.css"),
        about=_about(scalars, starts, resolved),
        sections="".join(sections),
        script=_resource("page.js"),
    )
    files.write_whole(workdir / "index.html", text)
    return workdir / "index.html"


def _resource(name: str) -> str:
    """The text of a file of this package."""
    return resources.files("vf.run").joinpath(name).read_text(encoding="utf-8")


# Parts: each gives HTML, or nothing where there is nothing to show.


def _section(title: str, inside: str) -> str:
    return f"<section><h2>{title}</h2>{inside}</section>\n" if inside else ""


def _about(scalars: list[dict], starts: list[dict], resolved: dict[str, Any]) -> str:
    """What run this is, how far, and where its weights come from."""
    start = starts[-1] if starts else {}
    flags = _flags(start.get("command"))
    recipe = flags.get("config", "").rpartition("/")[2]
    done = max((line["step"] for line in scalars if "train/loss" in line), default=0)
    steps = _mapping(resolved.get("train")).get("steps")
    mode = "train" if done else flags.get("mode", "train" if steps else "")
    origin, data = _mapping(start.get("start")), _mapping(start.get("data"))
    texts = []
    if mode == "train":
        texts.append(f"Training: <b>{done:,} of {steps:,} steps</b>." if isinstance(steps, int) else "Training.")
    elif mode:
        job = {"sample": "Sampling", "evaluate": "Evaluation"}.get(mode, mode)
        texts.append(f"{escape(job)} only: no step is trained here.")
    if recipe and not (origin and recipe == "config.py"):  # that of an exported model says nothing by its name
        texts.append(f"Recipe <code>{escape(recipe)}</code>.")
    if note := resolved.get("note"):
        texts.append(f"<b>{inline(note)}</b>")
    if origin:
        of = f", exported of the run {inline(origin['run'])}" if "run" in origin else ""
        at = f" at step {inline(origin['step'])}" if "step" in origin else ""
        family = f" ({inline(origin['family'])}, the base generator alone)" if "family" in origin else ""
        first = "first " if mode == "train" else ""
        texts.append(f"The {first}weights come from <code>{inline(origin.get('from'))}</code>{of}{at}{family}.")
    if data.get("source") not in (None, "none"):
        root = str(data.get("root", "")).rstrip("/").rpartition("/")[2]
        count = f", {data['videos']:,} videos" if isinstance(data.get("videos"), int) else ""
        texts.append(f"Data: {inline(' '.join(filter(None, (str(data['source']), root))))}{count}.")
    if isinstance(devices := start.get("devices"), dict):
        texts.append(f"Devices: {inline(devices.get('count'))} x {inline(devices.get('kind'))}.")
    return f'<p class="about">{" ".join(texts)}</p>' if texts else ""


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _flags(command: Any) -> dict[str, str]:
    """The flags of a command line, {name: value}, "" for one without a value."""
    try:
        _, flags = parts_of(command) if isinstance(command, str) else ([], {})
    except ValueError:
        return {}
    return {name: value or "" for name, value in flags.items()}


def _training(scalars: list[dict]) -> str:
    """All training losses in one chart, each error of a network at all noise levels in a small one; other numbers, and
    what is known at one step only, are folded."""
    series: dict[str, list[tuple[float, float]]] = {}
    for line in scalars:
        for key, value in line.items():
            if key.startswith(("train/", "validation/", "seen/")) and isinstance(value, int | float):
                series.setdefault(key, []).append((line["step"], value))
    groups: dict[str, dict[str, Points]] = {}
    for key, points in series.items():
        name = "train/loss" if key.startswith("train/loss") else glossary.group(key)
        groups.setdefault(name, {})[key.removeprefix(name).strip("/_") or key.rpartition("/")[2]] = points
    opened: list[str] = []
    folded: list[str] = []
    single: list[tuple[str, ...]] = []
    for name, group in groups.items():
        note = glossary.NUMBERS.get(name, "")
        if max(map(len, group.values())) < 2:
            values = " · ".join(f"{escape(key)} <b>{number(points[0][1])}</b>" for key, points in group.items())
            step = max(points[0][0] for points in group.values())
            single.append((escape(name), f"{step:,}", values, escape(note)))
            continue
        if name == "train/loss":
            wide = chart(group, title=name, note=note, width=1280, height=340)
            opened.insert(0, f'<div class="wide">{wide}</div>')
        else:
            (opened if name.startswith(OPEN) else folded).append(chart(group, title=name, note=note))
    return (
        _charts(opened)
        + details("Learning rates, gradients and speed", _charts(folded))
        + details("Numbers known at one step only", _table(("Number", "Step", "Value", "What it is"), single))
    )


def _charts(charts: list[str]) -> str:
    return f'<div class="charts">{"".join(charts)}</div>' if charts else ""


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{text}</th>" for text in heads)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _scores(scores: list[dict], best: dict[str, Any]) -> str:
    """The latest value of every score and protocol, and its course where there is one; of each family of scores one,
    the others folded."""
    courses: dict[tuple[str, str], list[dict]] = {}
    for line in scores:
        courses.setdefault((str(line["score"]), str(line.get("protocol_hash"))), []).append(line)
    if not courses:
        return ""
    families: dict[str, list[str]] = {}
    for name, _ in courses:
        families.setdefault(re.sub(r"/.*|_\d+$", "", name), []).append(name)
    heads = {f"{family}/valid" if f"{family}/valid" in names else names[0] for family, names in families.items()}
    target = any("target" in line for line in scores)
    titles = ("Score", "Step", "Value", "Better", "Real clips", *(("Target",) if target else ()), "Protocol")

    def shown(chosen: list[tuple[str, str]]) -> str:
        rows = [_score_row(name, courses[name, digest][-1], target) for name, digest in chosen]
        charts = []
        for name, digest in chosen:
            points = [(x["step"], y) for x in courses[name, digest] if isinstance(y := x.get("value"), int | float)]
            charts += [chart({digest: points}, title=name)] if len(points) > 1 else []
        return _table(titles, rows) + _charts(charts)

    parts = [shown([key for key in courses if key[0] in heads])]
    for family, names in families.items():
        if rest := [key for key in courses if key[0] in names and key[0] not in heads]:
            parts.append(details(f"{len(rest)} more of {escape(family)}", shown(rest)))
    parts.append("<p>Two values can be compared where their protocols, and so the hashes of these, are equal.</p>")
    for digest, protocol in {digest: lines[-1].get("protocol") for (_, digest), lines in courses.items()}.items():
        mark = escape(digest)
        parts.append(f'<div id="protocol-{mark}">{details(f"Protocol <code>{mark}</code>", pre(protocol))}</div>')
    if best.get("step") and isinstance(best["step"], int):  # not of the weights with which a run begins
        value = f"{inline(best.get('score'))} {number(best.get('value'))}"
        parts.insert(0, f"<p>Best checkpoint: step {best['step']:,}, by {value}.</p>")
    return "".join(parts)


def _score_row(name: str, line: dict[str, Any], target: bool) -> tuple[str, ...]:
    facts, known = glossary.score_facts(name), line.get("details") or {}
    meaning = f'<p class="small">{escape(facts.meaning)}</p>' if facts else ""
    warnings = "".join(f'<p class="small">Warning: {inline(text)}</p>' for text in known.get("warnings") or ())
    reference = number(line.get("reference"))
    if facts and "reference" in line:
        clips = f", {inline(known['reference_n'])} each" if "reference_n" in known else ""
        kind = f"from real to other real clips{clips}" if facts.distance else "of the real clips themselves"
        reference += f' <span class="small">{kind}</span>'
    digest = escape(str(line.get("protocol_hash")))
    return (
        f"<b>{escape(name)}</b>{meaning}{warnings}",
        f"{line['step']:,}" if line["step"] else "the start",
        f"<b>{number(line.get('value'))}</b>{_spread(known)}",
        facts.better if facts else "-",
        reference,
        *((number(line.get("target")),) if target else ()),
        f'<a href="#protocol-{digest}"><code>{digest}</code></a>',
    )


def _spread(known: dict[str, Any]) -> str:
    """How sure a value is, where that is known."""
    if "low" in known and "high" in known:
        return f' <span class="small">95 %: {number(known["low"])} ... {number(known["high"])}</span>'
    return f' <span class="small">± {number(known["std"])}</span>' if "std" in known else ""


def _remarks(lines: list[dict]) -> str:
    texts = (f"Step {line['step']:,}, {inline(line['text'])}: {inline(line.get('value'))}" for line in lines)
    items = "".join(f"<li>{text}</li>" for text in texts)
    return f"<ul>{items}</ul>" if items else ""


def _run(workdir: AnyPath, starts: list[dict], resolved: dict[str, Any]) -> str:
    parts: list[str] = []
    for index, start in enumerate(starts, 1):
        facts = {key: x for key, x in start.items() if key != "config"}
        rows = "".join(f"<tr><th>{escape(key)}</th><td>{inline(x)}</td></tr>" for key, x in facts.items())
        table = f'<div class="scroll"><table class="facts"><tbody>{rows}</tbody></table></div>'
        summary = f"Start {index} of {len(starts)}, {inline(start.get('time'))}"
        parts.insert(0, details(summary, table, opened=index == len(starts)))
    if resolved:
        parts.append(details("Resolved config", pre(resolved)))
    names = [name for name in ("config.json", "run.json", "metrics.jsonl") if (workdir / name).exists()]
    links = " · ".join(f'<a href="{name}">{name}</a>' for name in names)
    return "".join(parts) + (f'<p class="small">{links}</p>' if links else "")
