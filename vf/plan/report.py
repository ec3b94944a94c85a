"""Prints a plan as tables for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from vf.plan.units import bytes_text, count_text, flop_text, seconds_text, traffic_text
from vf.types import counted


def report(plan: Mapping[str, Any]) -> str:
    """The plan, as `jobs.plan` makes it, as tables for a terminal."""
    chip = plan["chip"]
    machine = f"{plan['devices']} x {chip['name']}"
    source = "measured here" if "measured" in chip["sources"].values() else "published"
    lines = [
        f"Plan for {plan['target']} ({machine}), train.batch_size {plan['batch_size']}",
        f"Each {chip['name']}, {source}: {flop_text(chip['flops_bf16'])}/s in bfloat16, "
        f"{flop_text(chip['flops_f32'])}/s in float32 (TF32 on NVIDIA's), {traffic_text(chip['hbm_bandwidth'])}/s, "
        f"{bytes_text(chip['hbm_bytes'])}",
        "",
    ]
    total = sum(plan["parameters"].values())
    for name, size in plan["parameters"].items():
        lines.append(f"  {name:<10} {count_text(size):>12} parameters")
    lines.append(f"  {'together':<10} {count_text(total):>12};  useful {flop_text(plan['flops_per_clip'])} a clip")
    lines += ["", "Sharding (parameters; moments and average lie alike)"]
    shown = plan["sharding"][:12]
    lines += [
        f"  {count_text(r['parameters']):>11}  {r['count']:4d} x [{r['shape']}]  {r['split']:<16} {r['arrays']}"
        for r in shown
    ]
    rest = plan["sharding"][12:]
    if rest:
        lines.append(
            f"  {count_text(sum(r['parameters'] for r in rest)):>11}  in {counted(len(rest), 'further kind')} of arrays"
        )
    lines += ["", "Meshes by arithmetic (data x fsdp x frames x tensor), best first"]
    lines.append("      mesh            a device     compute      memory     network      serial   MFU, if serial")
    for entry in plan["meshes"][:8]:
        mesh = mesh_text(entry["mesh"].values())
        s = entry["seconds"]
        row = f"      {mesh:<12} {bytes_text(entry['total_bytes']):>11}"
        row += "".join(f" {seconds_text(s[name]):>11}" for name in ("compute", "memory", "network", "serial"))
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
    lines += [f"  {name:<45} {bytes_text(size):>11} a device" for name, size in parts.items()]
    if "flops" in result:
        memory = "memory" if plan["chip"]["kind"] == "cpu" else "HBM"
        lines.append(
            f"  {flop_text(result['flops'])}, {traffic_text(result['hbm_bytes'])} of {memory} traffic a device"
        )
        for entry in result["collectives"][:8]:
            lines.append(
                f"  {entry['kind']:<18} over {entry['axes']:<14} {entry['count']:6d} times "
                f"{traffic_text(entry['wire_bytes']):>11} sent"
            )
        end = "" if result["finished"] else " (ended before code generation)"
        lines.append(f"  compiled in {result['compile_seconds']:.0f} s{end}, at reduced effort where it is a TPU's")
    if result.get("optimal_seconds"):
        lines.append(
            f"  the compiler's optimal_seconds, an upper bound on speed: {seconds_text(result['optimal_seconds'])}"
        )
    if "seconds" in result:
        s = result["seconds"]
        times = ", ".join(f"{name} {seconds_text(s[name])}" for name in ("compute", "memory", "network"))
        lines.append(f"  roofline: {times}; bound by {result['bound']}")
        lines.append(
            f"  a step takes {seconds_text(s['least'])} if all overlaps, {seconds_text(s['serial'])} if nothing does"
        )
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
