"""The clips of a run's page: for each step, every drawing beside the real clips that belong to it."""

import shlex
from html import escape
from typing import Any
from urllib.parse import quote

from vf import files
from vf.files import AnyPath
from vf.run.html import details, inline, load, origin
from vf.run.media import SHARDS, Drawing, drawings
from vf.run.provenance import parts_of

SETTINGS = {"sampler": "", "steps": "steps", "eta": "eta", "guidance_scale": "guidance", "weights": "weights"}
"""What tells drawings of one step apart, with the words for it."""
LAYOUT = ("columns", "pictured", "strip_size", "strip_rows", "shards")  # of the pictures, which is seen
PICTURES = (("wall.gif", "a wall of clips"), ("wall.png", "a wall of images"), ("strip.png", "film strip"))


def gallery(workdir: AnyPath) -> str:
    """HTML of all drawings of the run in `workdir`, the last step shown; "" where there are no clips at all."""
    # One that was killed holds its parts alone, which have no suffix.
    folders = [one for one in drawings(workdir) if any(path.suffix for path in files.children(one.folder))]
    real = {path.name: path for path in files.children(workdir / "samples") if path.name.startswith("real")}
    real = {name: path for name, path in real.items() if path.is_dir()}
    metas = files.map_concurrently(lambda one: load(one.folder / "meta.json"), folders)
    latest = max(
        (int(path.name) for path in files.children(workdir / "checkpoints") if path.name.isdecimal()), default=0
    )
    # {step: {name of the folder of real clips, "" for none: drawings}}
    steps: dict[int, dict[str, list[tuple[Drawing, dict[str, Any]]]]] = {}
    for one, meta in zip(folders, metas, strict=True):
        beside = meta.pop("real", "" if one.images else "real")  # earlier versions named no folder
        steps.setdefault(one.step, {}).setdefault(beside if beside in real else "", []).append((one, meta))
    shown = {name: _real(workdir, path) for name, path in real.items()}
    blocks = [
        f'<div class="step" data-step="{step:,}"{"" if step == max(steps) else " hidden"}>'
        + "".join(
            _pair(shown.get(name, ""), [_drawn(workdir, *one, latest) for one in some]) for name, some in groups.items()
        )
        + "</div>"
        for step, groups in sorted(steps.items())
    ]
    if not blocks:
        blocks = [_pair(pictures, []) for pictures in shown.values()]
    if not blocks:
        return ""
    last = len(steps) - 1
    slider = (
        '<p class="slider" hidden><label for="step">Step</label>'
        f'<input id="step" type="range" min="0" max="{last}" value="{last}"><output for="step"></output></p>'
    )
    note = "<p>In a film strip rows are clips and time runs to the right; the orange frame is the base frame.</p>"
    html = "".join(blocks)
    return f"{slider if last > 0 else ''}{html}{note if 'strip.png' in html else ''}"


def _pair(real: str, drawn: list[str]) -> str:
    columns = [f"<div>{column}</div>" for column in (real, "".join(drawn)) if column]
    return f'<div class="pair">{"".join(columns)}</div>'


def _drawn(workdir: AnyPath, one: Drawing, meta: dict[str, Any], latest: int) -> str:
    kind = "Images of the base generator" if one.images else "Clips"
    if "superres" in meta:
        kind = f"The same, taken up to {inline(meta.get('width'))} pixels,"
    start = meta.get("start")
    when = f"with the weights of {origin(start)}" if isinstance(start, dict) else f"at step {one.step:,}"
    return _pictures(workdir, one.folder, f"{kind} drawn {when}{one.facts}", meta, _again(one.step, meta, latest))


def _again(step: int, meta: dict[str, Any], latest: int) -> str:
    """The command that draws one of these clips alone, taken out of `meta`, or why there is none; "" where the job is
    not known. It draws with the weights of `latest`, the run's latest step."""
    command, control = meta.pop("command", None), meta.get("control")
    try:
        words, flags = parts_of(command) if isinstance(command, str) else ([], {})
    except ValueError:  # no command line
        return ""
    if "vf.main" not in words:
        return ""
    summary = "One of them again, alone"
    if step < latest:
        these = f"those of step {step:,}" if step else "those with which it begins"
        text = f"None: a command draws with the run's latest weights, of step {latest:,}, and these clips have {these}."
        return details(summary, f'<p class="small">{text}</p>')
    grid = control if isinstance(control, dict) and "grid" in control else None
    first = (meta.get("first") if grid is None else grid.get("cell")) or 0
    last = first + (meta.get("count") or 1) - 1
    flags |= {"mode": "sample"}
    flags |= {"config.sample.count": "1", "config.sample.first": str(first)} if grid is None else {}
    flags |= {"config.sample.cell": str(first)} if grid else {}
    flags |= {"config.sample.each": "0"} if meta.pop("prompts", None) else {}  # so that it is one clip, of its prompt
    again = shlex.join([*words, *(f"--{name}" if x is None else f"--{name}={x}" for name, x in flags.items())])
    others = f", and by the numbers up to {last}{', row by row,' if grid else ''} the others" if last > first else ""
    until = f"step {step:,} is the latest" if step else "the run has trained no step"
    cut = " (the folders of absolute paths are left out, as ...)" if "=.../" in again else ""
    text = f"The first of them{others}, while {until}{cut}:"
    return details(summary, f'<p class="small">{text}</p><pre>{escape(again)}</pre>')


def _real(workdir: AnyPath, folder: AnyPath) -> str:
    meta = load(folder / "meta.json")
    notes = []
    if absent := meta.pop("absent", []):
        notes.append(f"None of the real clips that were read is of the class {inline(absent)}.")
    if (n := meta.pop("different", meta.get("count"))) != meta.get("count"):
        notes.append(f"Repeated: {n} are different, as many as were read of these classes.")
    if again := meta.pop("again", 0):
        notes.append(
            f"Repeated: the data has too few videos; other windows of the same: {again} of {meta.get('count')}."
        )
    note = "".join(f'<p class="small">{text}</p>' for text in notes)
    heading = "Real clips of the same classes" if meta.get("labels") else "Real clips"
    return _pictures(workdir, folder, heading, meta, note)


def _pictures(workdir: AnyPath, folder: AnyPath, heading: str, meta: dict[str, Any], note: str = "") -> str:
    """Wall, film strip, links and facts of one set of clips, as far as its files are there."""
    links = {path.name: quote(path.relative_to(workdir).as_posix()) for path in files.children(folder)}
    labels = meta.pop("labels", [])
    parts = [f"<h3>{heading}</h3>{note}"]
    for name, text in PICTURES:
        if not (link := links.get(name)):
            continue
        if cells := _cells(name, meta, link, labels):
            parts.append(cells)
        else:
            image = f'<img src="{link}" alt="{heading}: {text}" loading="lazy">'
            parts.append(f'<a href="{link}">{image}</a>')
    if "wall.gif" not in links and (link := links.get("wall.mp4")):  # long clips
        parts.insert(1, f'<video src="{link}" controls loop muted autoplay></video>')
    small = [f'<a href="{links[name]}">{name}</a>' for name in ("clips.npz", "wall.mp4") if name in links]
    if shards := meta.get("shards"):
        small.insert(0, f'<a href="{links[SHARDS]}">{len(shards)} files of clips</a>')
    if "centre" in meta:  # samples of earlier versions
        meta = {"base_frame" if key == "centre" else key: value for key, value in meta.items()}
    count, pictured = meta.get("count"), meta.get("pictured")
    small += [f"pictures of the first {pictured} of {count}"] if pictured != count and "pictured" in meta else []
    small += [f"{meta['fps']:g} frames a second"] if isinstance(meta.get("fps"), int | float) else []
    small += [f"{words} {inline(meta[name])}".strip() for name, words in SETTINGS.items() if name in meta]
    parts.append(f'<p class="small">{" · ".join(small)}</p>')
    facts = inline({key: value for key, value in meta.items() if key not in LAYOUT})
    return "".join(parts) + details("All about them", f'<p class="small">{facts}</p>' if facts else "")


def _cells(name: str, meta: dict[str, Any], link: str, labels: list[Any]) -> str:
    """Each clip of a picture with the name of its class beneath; "" where there are no classes, or no sizes.

    Every cell shows its own part of the one picture, so that all move together and nothing is stored twice."""
    if not labels:
        return ""
    try:
        if name == "strip.png":
            across, (width, height) = 1, meta["strip_size"]
            count = min(len(labels), meta["strip_rows"])
            sides, gap = (width, height / count), 0
        else:
            across, sides, gap = meta["columns"], (meta["width"], meta["height"]), 1  # in pixels of the clips
            count = min(len(labels), meta["pictured"])
        down = -(-count // across)
        sizes = [f"{100 * (n * (side + gap) - gap) / side:.6g}%" for n, side in zip((across, down), sides, strict=True)]
    except (KeyError, TypeError, ValueError, ZeroDivisionError):  # samples of earlier versions
        return ""
    cells = []
    for k, label in enumerate(labels[:count]):
        where = [100 * i / (n - 1) if n > 1 else 0 for i, n in ((k % across, across), (k // across, down))]
        style = (
            f"background-image:url({link});background-size:{' '.join(sizes)};"
            f"background-position:{where[0]:.6g}% {where[1]:.6g}%;aspect-ratio:{sides[0]:g}/{sides[1]:g}"
        )
        text = escape(str(label))
        cells.append(
            f'<figure><a href="{link}" aria-label="{text}" style="{style}"></a><figcaption>{text}</figcaption></figure>'
        )
    return f'<div class="cells" style="--across:{across}">{"".join(cells)}</div>'
