"""The tables of RESULTS.md, from the JSON file of `benchmarks.accelerator`."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks import kernels, sampling
from benchmarks.fvd import WITHOUT_NETWORK

PHASES = ("start", "model", "first state", "lowering", "compiling", "first step")
Record = Mapping[str, Any]


def number(value: Any, form: str = ",.4g", scale: float = 1.0) -> str:
    """`value` times `scale`, formatted; "" where there is none."""
    return "" if value is None else format(scale * value, form)


def line(name: str, record: Record) -> str:
    """One line about a row that is done."""
    said = f"{name}: {record['status']}, {record['seconds']:.0f} s"
    if record["note"]:
        said += f" ({record['note']})"
    return f"{said}: {', '.join(_flat(record['figures']))}" if record["figures"] else said


def _flat(figures: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    for key, value in figures.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key} {f'{value:.4g}' if isinstance(value, float) else value}"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; "" where there are no rows."""
    body = [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join([f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}", *body]) if body else ""


def markdown(results: Mapping[str, Any]) -> str:
    """All tables; rows without figures are named at the end, with the reason."""
    rows = results["rows"]
    # TFLOP/s of the product by precision; {} where it was not measured.
    peak = rows.get("product", {}).get("figures", {}).get("products", {})
    trained = {name: row["figures"] for name, row in rows.items() if name.startswith("training") and row["figures"]}
    sampled = {name: row["figures"] for name, row in rows.items() if name.startswith("sampling") and row["figures"]}
    scored = {name: row["figures"] for name, row in rows.items() if name.startswith("fvd") and row["figures"]}
    places = sorted({f"{row['figures']['device']}, {row['figures']['cores']} cores, "
                     + ", ".join(f"{lib} {row['figures'][lib]}" for lib in ("jax", "torch") if lib in row["figures"])
                     for row in rows.values() if "device" in row["figures"]})  # fmt: skip
    sizes = ", ".join(f"{name} {value}" for name, value in results["sizes"].items())
    parts = [
        f"{'; '.join(places)}. Sizes: {sizes}.",
        f"Product of two matrices, TFLOP/s: {', '.join(f'{name} {number(value)}' for name, value in peak.items())}."
        if peak else "",
        table(("seconds to the first step", *PHASES, "together"), _start_up(trained)),
        table(
            ("a step", "M parameters", "useful GFLOP", "of XLA", "ms", "clips/s", "TFLOP/s", "of the product's",
             "time over `training`'s", "GiB of the program", "peak", "GB moved, of XLA"),
            _steps(trained, peak),
        ),
        table(("kernels of a step, ms", "number", *kernels.KINDS), _kernels(trained)),
        table(
            ("frames", "model", "M parameters", "GFLOP a step and clip", "of XLA", "fewer", "s to compile",
             "a sampling, s", "a step, ms", "lower", "GiB of the program"),
            _samplings(sampled),
        ),
        table(("clips to features", "clips/s", "TFLOP/s", "of the product's"), _features(scored, peak)),
        table(("an FVD beside the network", "seconds"), _distance(scored)),
        "\n".join(f"- {name}: {row['status']}, {row['note']}" for name, row in rows.items() if row["status"] != "done"),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part)


def _start_up(rows: Mapping[str, Record]) -> Iterable[list[str]]:
    for name, figures in rows.items():
        phases = figures.get("phases", {})
        cells = [number(phases.get(phase), ".1f") for phase in PHASES]
        yield [name, *cells, number(sum(phases.values()), ".1f")]


def _steps(rows: Mapping[str, Record], peak: Record) -> Iterable[list[str]]:
    plain = rows.get("training", {})
    for name, figures in rows.items():
        if "step_s" not in figures:
            continue
        # PyTorch's networks have the parameters of `training`'s, and are credited with its FLOPs.
        useful = figures.get("useful_gflop", plain.get("useful_gflop") if "torch" in figures else None)
        rate = None if useful is None else useful / figures["step_s"] / 1e3
        floor = peak.get(figures["precision"])
        over = figures["step_s"] / plain["step_s"] if "step_s" in plain else None
        yield [
            name, number(figures["parameters"], ",.1f", 1e-6), number(useful, ",.1f"),
            number(figures.get("compiler_gflop"), ",.1f"), number(figures["step_s"], ",.1f", 1e3),
            number(figures["clips"] / figures["step_s"], ",.2f"), number(rate),
            number(rate / floor if rate and floor else None, ".1%"), number(over, ".2f"),
            number(figures.get("program_gib"), ".2f"), number(figures.get("peak_gib"), ".2f"),
            number(figures.get("compiler_gb"), ",.2f"),
        ]  # fmt: skip


def _kernels(rows: Mapping[str, Record]) -> Iterable[list[str]]:
    for name, figures in rows.items():
        if times := figures.get("kernel_ms"):
            cells = [number(times.get(kind, 0.0), ",.2f") for kind in kernels.KINDS]
            yield [name, str(figures["kernels"]), *cells]


def _samplings(rows: Mapping[str, Record]) -> Iterable[list[str]]:
    for figures in rows.values():
        models = figures.get("models", {})
        for name, model in models.items():
            whole = models[sampling.ONE_NETWORK] if name != sampling.ONE_NETWORK else None
            yield [
                f"{figures['frames']}{', guided' if figures['guided'] else ''}", name,
                number(model["parameters"], ",.1f", 1e-6), number(model["gflop"], ",.1f"),
                number(model["compiler_gflop"], ",.1f"), number(whole and 1 - model["gflop"] / whole["gflop"], ".1%"),
                number(model["compile_s"], ".1f"), number(model["sampling_s"], ".3f"),
                number(model["sampling_s"] / figures["steps"], ",.2f", 1e3),
                number(whole and 1 - model["sampling_s"] / whole["sampling_s"], ".1%"),
                number(model["program_gib"], ".2f"),
            ]  # fmt: skip


def _features(rows: Mapping[str, Record], peak: Record) -> Iterable[list[str]]:
    gflop, floor = rows.get("fvd", {}).get("clip_gflop"), peak.get("strict float32")
    for figures in rows.values():
        for name, rate in figures.get("rates", {}).items():
            speed = gflop * rate / 1e3 if gflop and name not in WITHOUT_NETWORK else None
            share = speed / floor if speed and floor and "TF32" not in name else None
            library = "PyTorch" if "torch" in figures else "ours"
            yield [f"{library}: {name}", number(rate, ",.2f"), number(speed), number(share, ".1%")]


def _distance(rows: Mapping[str, Record]) -> Iterable[list[str]]:
    for figures in rows.values():
        for name, value in figures.get("costs_s", {}).items():
            yield [f"{figures['set']:,} against as many clips: {name}", number(value, ".2f")]
