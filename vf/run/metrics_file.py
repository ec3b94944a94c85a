"""`metrics.jsonl` of a run: what its lines say, and how they are read back.

A line is one of

    {"step", "time", "train/loss": 0.03, ...}                                               scalars
    {"step", "time", "score", "value", "protocol", "protocol_hash", "reference"?, "target"?, "details"?}  one score
    {"step", "time", "text", "value"}                                                       a remark

JSON has no NaN and no infinity: they are written as the strings "nan", "inf" and "-inf", and read back as
floats.

In an object store, where nothing can be appended, the lines are parts `metrics/<start>-<n>.jsonl` (see `vf.files`).
"""

import json
from typing import Any

from vf import files

METRICS = "metrics.jsonl"
NOT_FINITE = ("nan", "inf", "-inf")


def read_metrics(workdir: str | files.AnyPath) -> list[dict[str, Any]]:
    """Reads metrics.jsonl and its parts, by steps: all scalars of a step in one dict, then its scores and remarks.

    Where a run went back to an earlier step, the later value of the same step and name wins; two protocols
    make two scores. A torn line is left out, and a run without the file has no lines."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for line in _lines(files.path(workdir) / METRICS):
        if "text" in line:
            rows[line["step"], 2, line["text"]] = line
            continue
        line = {key: float(x) if x in NOT_FINITE and key != "score" else x for key, x in line.items()}
        if "score" in line:
            rows[line["step"], 1, line["score"], line.get("protocol_hash")] = line
        else:
            rows.setdefault((line["step"], 0), {}).update(line)
    return [rows[key] for key in sorted(rows, key=lambda key: key[:2])]


def _lines(path: files.AnyPath) -> list[dict[str, Any]]:
    """All lines, in the order in which they were reported."""
    texts, more = files.read_lines(path)
    lines = []
    for text in [*texts, *more]:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    if more:  # jobs that ran beside each other wrote parts of their own
        lines.sort(key=lambda line: at if isinstance(at := line.get("time"), int | float) else 0)
    return lines
