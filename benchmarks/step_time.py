"""Measures a training step of VideoFusion and of the one-network baseline: parameters, FLOPs, seconds.

    python -m benchmarks.step_time [CONFIG.py]        (default configs/demo.py)

All rows are measured in the same process, in turn, so that they can be compared; FLOPs are counted by the compiler.
"""

import importlib.util
import itertools
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from vf.config import build, data, models
from vf.data import pipeline
from vf.training import programs, sharding
from vf.training import step as steps

ROUNDS = 10


def load(path: str) -> ConfigDict:
    """The config that the file at `path` describes."""
    spec = importlib.util.spec_from_file_location("config", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def lower(config: ConfigDict) -> tuple[int, Any, Callable[[], Any], Any]:
    """(parameters, one training step before compilation, a function that makes the state, a batch)."""
    source = data.source(config)
    model, mesh = models.model(config, source), build.mesh(config)
    tx = build.optimizer(config)
    create, abstract = programs.first_state(model, tx, mesh, config.seed)
    size = config.train.batch_size
    batch = sharding.put_batch(next(pipeline.batches(source, seed=0, batch_size=size, threads=0)), mesh)

    def update(state: Any, batch: Any) -> Any:
        return steps.train_step(state, batch, model=model, tx=tx, seed=0, ema_decay=0.999)

    parameters = sum(leaf.size for leaf in jax.tree.leaves(abstract.params))
    return parameters, jax.jit(update).lower(abstract, batch), create, batch


def prepare(config: ConfigDict) -> tuple[int, float, Callable[[], Any]]:
    """(parameters, FLOPs, a function without arguments that runs one training step)."""
    parameters, lowered, create, batch = lower(config)
    compiled, state = lowered.compile(), create()
    # The compiler counts the FLOPs of one device's program.
    flops = compiled.cost_analysis()["flops"] * jax.device_count()
    return parameters, flops, lambda: jax.block_until_ready(compiled(state, batch))


def main() -> None:
    """Prints the table."""
    path = sys.argv[1] if len(sys.argv) > 1 else "configs/demo.py"
    build.cpu_devices(load(path))
    rows = {}
    for predictor, context in (
        ("decomposed", "none"), ("decomposed", "embedding"), ("decomposed", "base_frame"), ("one_network", "none")
    ):  # fmt: skip
        config = load(path)
        config.model.predictor, config.model.context = predictor, context
        if predictor == "one_network":
            config.noise.prior = "independent"
            for field in ("temporal", "temporal_attention_at"):
                config.base.net[field] = config.residual.net[field]
        rows[f"{predictor}, context {context}"] = prepare(config)
    seconds = dict.fromkeys(rows, float("inf"))
    for _, name in itertools.product(range(ROUNDS), rows):  # in turn, so that other load affects all rows
        start = time.perf_counter()
        rows[name][2]()
        seconds[name] = min(seconds[name], time.perf_counter() - start)
    print(f"{path}, batch {load(path).train.batch_size}, {jax.device_count()} x {jax.devices()[0].device_kind}")
    for name, (parameters, flops, _) in rows.items():
        print(
            f"{name:32} {parameters / 1e6:7.2f} M parameters {flops / 1e9:8.2f} GFLOP {1e3 * seconds[name]:8.1f} ms"
            f" {flops / seconds[name] / 1e9:7.1f} GFLOP/s"
        )


if __name__ == "__main__":
    main()
