"""Rows of sampling: the decomposed model, bare and base first, beside one network over all frames.

The one network is the VDM* of the paper's table of efficiency: the base network inflated over frames by the temporal
layers that the residual network has too, under independent noise. All sample by `vf.training.programs.sampling`, as
users do.
"""

import functools
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks import measure
from benchmarks.measure import Report, Sizes
from benchmarks.training import MIXING, config_of
from vf import rng
from vf.config import build
from vf.plan import count, lower
from vf.training import programs, sharding

ONE_NETWORK = "one network (VDM*)"
MODELS: dict[str, dict[str, Any]] = {
    ONE_NETWORK: {
        "model.predictor": "one_network", "noise.prior": "independent", "base.net.temporal": MIXING,
    },
    "decomposed": {},
    "decomposed, base first": {"model.context": "base_frame"},
}  # fmt: skip
SEED = rng.as_argument(0)
GUIDED = {"model.condition": "label", "plan.classes": 101, "sample.guidance_scale": 2.0}


def frames_of(sizes: Sizes, share: float) -> int:
    """Frames of the clips of a row, `share` times those of the sizes."""
    return max(2, round(share * sizes.frames))


def config(sizes: Sizes, model: str, frames: int, *, guided: bool, precision: str) -> ConfigDict:
    """The config of a model of `MODELS`."""
    made = config_of(sizes, sizes.blocks, MIXING, precision)
    made.data.frames, made.sample.steps = frames, sizes.steps
    made.update_from_flattened_dict(MODELS[model] | (GUIDED if guided else {}))
    return made


def traced(config: ConfigDict) -> tuple[Any, Any, Any]:
    """(the traced sampling of a batch on this machine, shapes of the parameters, shapes of the batch)."""
    mesh = build.mesh(config)
    subject = build.plan_subject(config, mesh, None)
    params = lower.on_mesh(subject.model.shapes(), mesh)
    batch = lower.batch_shapes(subject, subject.sample_batch_size, mesh, sharding.EVERY)
    del batch["video"]
    sample = programs.sampling(subject.model, mesh, subject.sample_options)
    return sample.trace(params, batch, SEED), params, batch


def counted(config: ConfigDict, tracing: Any, params: Any) -> dict[str, float]:
    """Parameters, and GFLOP of one step of denoising of one clip: products and convolutions, and all by the compiler.

    The compiler's are of the program before it is optimised, in which it counts the body of a loop once.
    """
    clips, steps = config.sample.batch_size, config.sample.steps
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "gflop": count.flops(tracing.jaxpr.jaxpr) / clips / steps / 1e9,
        "compiler_gflop": measure.scaled(measure.costs(tracing.lower()).get("flops"), 1e-9 / clips),
    }


def random_like(shapes: Any) -> Any:
    """Arrays of these shapes where their shardings say, all cut from one row of random numbers."""
    leaves = jax.tree.leaves(shapes)
    values = 0.02 * np.random.default_rng(0).standard_normal(max(leaf.size for leaf in leaves), np.float32)

    def one(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return jax.device_put(values[: leaf.size].reshape(leaf.shape).astype(leaf.dtype), leaf.sharding)

    return jax.tree.map(one, shapes)


def row(sizes: Sizes, report: Report, *, share: float = 1.0, guided: bool = False) -> None:
    """Row: latency, FLOPs and memory of each model of `MODELS`, all in one process, in turn.

    share: frames relative to those of the sizes. guided: with classifier-free guidance, two passes at each step.
    """
    frames, works = frames_of(sizes, share), {}
    models: dict[str, dict[str, Any]] = {}
    report(**measure.machine(), frames=frames, guided=guided, steps=sizes.steps, clips=sizes.batch)
    for name in MODELS:
        made = config(sizes, name, frames, guided=guided, precision=measure.precision())
        with measure.Stopwatch() as tracing_time:
            tracing, params, batch = traced(made)
            figures = counted(made, tracing, params)
        with measure.Stopwatch() as compile_time:
            compiled = tracing.lower().compile()
        conditions = jax.tree.map(lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding), batch)
        sample = functools.partial(compiled, random_like(params), conditions, SEED)
        works[name] = lambda sample=sample: jax.block_until_ready(sample())
        works[name]()
        models[name] = figures | {
            "trace_s": tracing_time.seconds, "compile_s": compile_time.seconds,
            "program_gib": measure.program_gib(compiled),
        }  # fmt: skip
        models[name]["sampling_s"] = measure.seconds({name: works[name]}, 1)[name]
        report(models=models)
    for name, least in measure.seconds(works, sizes.repeats).items():
        models[name]["sampling_s"] = min(least, models[name]["sampling_s"])
    report(models=models, peak_gib=measure.peak_gib())
