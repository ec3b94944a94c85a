"""Programs of runs that differ in numbers alone are the same: a cache of compiled programs serves all of them."""

import jax
import pytest

from configs import demo
from vf import rng
from vf.config import build
from vf.plan import lower


def training(**changes):
    """The lowered training step of the demo with small networks."""
    config = demo.get_config()
    for net in (config.base.net, config.residual.net):
        net.update({"width": 8, "head_dim": 8, "norm_groups": 4, "temporal": ()})
    config.train.update(changes.pop("train", {}))
    config.update(changes)
    return lower.lower_training(
        lambda mesh, blocks: build.plan_subject(config, mesh, blocks), (1, 1, 1, 1), None, jax.devices()[:1]
    ).as_text()


def test_numbers_of_the_optimizer_are_no_part_of_the_training_step():
    one = training()
    numbers = {"lr_base": 1e-5, "lr_residual": 2e-5, "warmup_steps": 7, "steps": 123, "weight_decay": 0.3}
    assert training(seed=5, train={**numbers, "clip_norm": 0.25, "ema_decay": 0.5}) == one
    assert training(train={"schedule": "constant"}) != one


@pytest.mark.parametrize("seed", [0, 2**31, 2**33 + 5, -1])
def test_a_seed_draws_the_same_as_an_argument(seed):
    keys = jax.jit(rng.key, static_argnums=1)(rng.as_argument(seed), rng.Purpose.TRAIN)
    assert keys == rng.key(seed, rng.Purpose.TRAIN)
