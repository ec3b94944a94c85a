"""Scores as a table for a terminal."""

from collections.abc import Mapping, Sequence

from vf.files import AnyPath
from vf.metrics.protocol import Score, protocol_hash
from vf.run.glossary import score_facts
from vf.run.metrics_file import read_metrics

HEADS = ("score", "value", "95 %", "better", "real clips", "n real", "n generated", "protocol")


def table(scores: Sequence[Score]) -> str:
    """One row for each score, with its reference and the hash of its protocol, and then each warning once.

    A reference that is a distance is of real clips from other real clips. A column that no score fills is left out.
    """
    rows: list[tuple[str, ...]] = [HEADS]
    for score in scores:
        d, facts = score.details, score_facts(score.name)
        spread = f"{d['low']:.4g} ... {d['high']:.4g}" if "low" in d else f"+- {d['std']:.4g}" if d.get("std") else "-"
        reference = "-" if score.reference is None else _number(score.reference)
        if score.reference is not None and (facts is None or facts.distance):
            reference += f" real to real (n = {d['reference_n']})" if "reference_n" in d else " real to real"
        counts = (str(d.get(name, "-")) for name in ("n_real", "n_generated"))
        better = facts.better if facts else "-"
        rows.append(
            (score.name, _number(score.value), spread, better, reference, *counts, protocol_hash(score.protocol))
        )
    columns = [column for column in zip(*rows, strict=True) if set(column[1:]) != {"-"}]
    widths = [max(map(len, column)) for column in columns]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in zip(*columns, strict=True)
    ]
    lines.insert(1, "-" * len(lines[0]))
    warnings = dict.fromkeys(text for score in scores for text in score.details.get("warnings", ()))
    return "\n".join([*lines, *(f"warning: {text}" for text in warnings)])


def recorded(workdir: str | AnyPath, step: int, values: Mapping[str, object]) -> list[Score]:
    """The scores of one step of a run that have these `values`, {name: value}, read back from its metrics."""
    return [
        Score(line["score"], line["value"], line.get("reference"), line["protocol"], line.get("details", {}))
        for line in read_metrics(workdir)
        if line["step"] == step and "score" in line and str(values.get(line["score"])) == str(line["value"])
    ]


def _number(x: float) -> str:
    return f"{x:.4f}" if abs(x) >= 0.1 else f"{x:.4g}"
