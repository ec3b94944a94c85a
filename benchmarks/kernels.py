"""What a device does during one call: the time of its kernels by kind, from jax's profiler.

Kernels carry the names of instructions of the compiled program, or of a library's kernels; what an instruction is for
is known from the path of the jax operation that it comes from, which the program's text has.
"""

import collections
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from benchmarks.measure import Work

KINDS = (
    "convolution", "product", "attention", "norm", "random numbers", "reduction", "elementwise", "copy", "update",
)  # fmt: skip
"""Attention is all of its blocks but their norms: projections, fused kernels, products and softmax. Copies include
changes of layout. Update is everything outside the differentiated loss: optimizer, clipping, average, slices."""

_OF_KERNELS = {  # first match counts
    "attention": r"sdpa|flash|fmha",
    "copy": r"memcpy|memset|copy|transpose|nchwtonhwc|nhwctonchw",
    "convolution": r"conv(?!ert)|fprop|dgrad|wgrad|winograd",
    "product": r"gemm|gemv|cublas|nvjet|cutlass|xmma|dot|matmul",
}
_OF_OPERATIONS = {"convolution": r"conv_general_dilated$", "product": r"dot_general$"}
_PLAIN_LOOP = re.compile(r"loop_|input_|wrapped_")  # fusions that XLA generates, which have no product
_OF_PATHS = {"random numbers": r"threefry|_normal|_uniform|bernoulli", "norm": r"/norm", "attention": r"attention"}
_CONTROL = re.compile(r"^(while|call|conditional)\b")  # their events span those of what they run


def kind(kernel: str, path: str = "") -> str:
    """The kind, one of `KINDS`, of a kernel of a training step.

    Args:
        kernel: names of the kernel, of its instruction and of the library's function that it calls, as far as known.
        path: path of the jax operation, as `jit(step)/jvp(UNet)/up_0_0/res/norm_in/mul`; "" where it is unknown.
    """
    kernel = kernel.lower()
    if path.startswith("jit(") and "jvp(" not in path:  # what is not differentiated is no part of the loss
        return "update"
    by_kernel = _first(_OF_KERNELS, kernel)
    if by_kernel == "copy":
        return by_kernel
    if by_path := _first(_OF_PATHS, path):
        return by_path
    by_operation = "" if _PLAIN_LOOP.match(kernel) else _first(_OF_OPERATIONS, path)
    return by_kernel or by_operation or ("reduction" if "reduce" in kernel else "elementwise")


def _first(patterns: Mapping[str, str], text: str) -> str:
    return next((name for name, pattern in patterns.items() if re.search(pattern, text)), "")


def instructions(text: str) -> dict[str, tuple[str, str]]:
    """{instruction of a compiled program: (the library's function that it calls, the path of its jax operation)}.

    Names are as kernels have them, with `_` for every other sign.
    """
    found = {}
    for line in text.splitlines():
        if name := re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = ", line):
            target, path = (re.search(rf'{field}="([^"]*)"', line) for field in ("custom_call_target", "op_name"))
            found[_plain(name[1])] = (target[1] if target else "", path[1] if path else "")
    return found


def _plain(name: str) -> str:
    return re.sub(r"\W", "_", name)


def by_kind(events: Iterable[tuple[str, str, float]], program: Mapping[str, tuple[str, str]]) -> dict[str, float]:
    """Milliseconds by kind, most first, of `events`: (kernel, its instruction or "", nanoseconds)."""
    total: collections.Counter[str] = collections.Counter()
    for kernel, instruction, duration in events:
        target, path = program.get(_plain(instruction or kernel), ("", ""))
        total[kind(f"{kernel} {instruction} {target}", path)] += duration / 1e6
    return dict(total.most_common())


def events_of(profile: Any) -> list[tuple[str, str, float]]:
    """(kernel, its instruction or "", nanoseconds) of a `jax.profiler.ProfileData`.

    Of accelerators, what their streams run; of a CPU, the instructions that its threads run, whose times add up to more
    than the clock's where several do.
    """
    devices = [plane for plane in profile.planes if plane.name.startswith("/device:")]
    found = []
    for plane in devices or [plane for plane in profile.planes if plane.name == "/host:CPU"]:
        lines = list(plane.lines)
        # A TPU has a line of instructions beside lines of steps and modules, a GPU one for each of its streams.
        lines = [line for line in lines if line.name == "XLA Ops"] or [
            line for line in lines if not devices or line.name.startswith("Stream")
        ]
        for event in (event for line in lines for event in line.events):
            instruction = str(dict(event.stats).get("hlo_op", ""))
            if (devices or instruction) and not _CONTROL.match(instruction or event.name):
                found.append((event.name, instruction, event.duration_ns))
    return found


def profiled(work: Work, text: str) -> dict[str, Any]:
    """Figures of one call of `work`, which runs the compiled program of this text: kernels, and milliseconds by kind.

    No milliseconds, and a note, where this jax cannot read profiles or the profiler saw no kernel.
    """
    if not hasattr(jax.profiler, "ProfileData"):
        return {"kernel_note": f"jax {jax.__version__} has no jax.profiler.ProfileData"}
    with tempfile.TemporaryDirectory(prefix="vf-") as folder:
        with jax.profiler.trace(folder):
            work()
        files = Path(folder).rglob("*.xplane.pb")
        events = [event for file in files for event in events_of(jax.profiler.ProfileData.from_file(str(file)))]
    if not events:
        return {"kernel_note": "the profile has no kernel"}
    return {"kernels": len(events), "kernel_ms": by_kind(events, instructions(text))}
