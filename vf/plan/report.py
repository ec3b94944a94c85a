"""Prints a plan as tables for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any


def report(plan: Mapping[str, Any]) -> str:
    """The plan, as `jobs.plan` makes it, as tables for a terminal."""
    chip = plan["chip"]
    machine = f"{plan['devices']} x {chip['name']}"
    source = "measured here" if "measured" in chip["sources"].values() else "published"
    lines = [
        f"Plan for {plan['target']} ({machine}), train.batch_size {plan['batch_size']}",
        f"Each {chip['name']}, {source}: {chip['flops_bf16'] / 1e12:.4g} TFLOP/s in bfloat16, "
        f"{chip['flops_f32'] / 1e12:.4g} in float32, {chip['hbm_bandwidth'] / 1e9:,.4g} GB/s, "
        f"{chip['hbm_bytes'] / 2**30:.2f} GiB",
        "",
    ]
    total = sum(plan["parameters"].values())
    for name, size in plan["parameters"].items():
        lines.append(f"  {name:<10} {size / 1e6:10,.1f} M parameters")
    lines.append(f"  {'together':<10} {total / 1e6:10,.1f} M;  {plan['flops_per_clip'] / 1e12:.2f} useful TFLOP a clip")
    lines += ["", "Sharding (parameters; moments and average lie alike)"]
    shown = plan["sharding"][:12]
    lines += [
        f"  {r['parameters'] / 1e6:9.1f} M  {r['count']:4d} x [{r['shape']}]  {r['split']:<16} {r['arrays']}"
        for r in shown
    ]
    rest = plan["sharding"][12:]
    if rest:
        lines.append(f"  {sum(r['parameters'] for r in rest) / 1e6:9.1f} M  in {len(rest)} further kinds of arrays")
    lines += ["", "Meshes by arithmetic (data x fsdp x frames x tensor), best first"]
    lines.append("      mesh              GiB   compute   memory  network   serial   MFU, if serial")
    for entry in plan["meshes"][:8]:
        mesh = mesh_text(entry["mesh"].values())
        s = entry["seconds"]
        row = f"      {mesh:<14} {entry['total_bytes'] / 2**30:6.2f}"
        row += "".join(f" {1e3 * s[name]:7.0f}ms" for name in ("compute", "memory", "network", "serial"))
        row += f"  {100 * entry['mfu']['serial']:5.1f} %"
        lines.append(row + ("" if entry["fits"] else "   too large"))
    for result in [*plan["compiled"], *([plan["sampling"]] if "sampling" in plan else [])]:
        lines += ["", *_program_lines(result, plan)]
    best = plan["best"]
    flags = " ".join(f"--config.mesh.{axis}={size}" for axis, size in best["mesh"].items())
    lines += ["", f"Verdict: {best['verdict']}", f"         {flags}"]
    return "\n".join(lines)


def _program_lines(result: Mapping[str, Any], plan: Mapping[str, Any]) -> list[str]:
    title = "Training step" if result["program"] == "train" else "Sampling a batch"
    lines = [f"{title} on mesh {mesh_text(result['mesh'].values())}: {result['how']}"]
    parts = dict(result["state_bytes"])
    if result["program"] == "sample":
        parts = {"average": parts["average"]}
    extra = "temporary (activations among them)"
    if "temporary_bytes" in result:
        parts[extra if result["finished"] else extra + ", estimated"] = result["temporary_bytes"]
    elif "memory" in result:
        parts |= {name: size for name, size in result["memory"].items() if name != "state"}
    lines += [f"  {name:<45} {size / 2**30:8.3f} GiB a device" for name, size in parts.items()]
    if "flops" in result:
        lines.append(
            f"  {result['flops'] / 1e12:.2f} TFLOP, {result['hbm_bytes'] / 1e9:.0f} GB of HBM traffic a device"
        )
        for entry in result["collectives"][:8]:
            lines.append(
                f"  {entry['kind']:<18} over {entry['axes']:<14} {entry['count']:6d} times "
                f"{entry['wire_bytes'] / 1e9:9.3f} GB sent"
            )
        end = "" if result["finished"] else " (ended before code generation)"
        lines.append(f"  compiled in {result['compile_seconds']:.0f} s{end}, at reduced effort where it is a TPU's")
    if result.get("optimal_seconds"):
        lines.append(f"  the compiler's optimal_seconds, an upper bound on speed: {result['optimal_seconds']:.3f} s")
    if "seconds" in result:
        s = result["seconds"]
        times = ", ".join(f"{name} {1e3 * s[name]:.0f} ms" for name in ("compute", "memory", "network"))
        lines.append(f"  roofline: {times}; bound by {result['bound']}")
        lines.append(f"  a step takes {s['least']:.3f} s if all overlaps, {s['serial']:.3f} s if nothing does")
        if result["program"] == "train":
            clips = plan["batch_size"] / plan["devices"]
            lines.append(
                f"  MFU {100 * result['mfu']['serial']:.1f} to {100 * result['mfu']['least']:.1f} %, "
                f"{clips / s['serial']:.2f} to {clips / s['least']:.2f} clips/s a device; network "
                f"{100 * s['network'] / s['serial']:.1f} % of the serial time"
            )
    return [*lines, f"  {result['verdict']}"]


def mesh_text(sizes: Sequence[int]) -> str:
    """Sizes of a mesh as text, such as 1x256x1x1."""
    return "x".join(map(str, sizes))
