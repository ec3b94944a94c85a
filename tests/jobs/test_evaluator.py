"""Validation losses: one number for each network and noise level, of the same clips under the same noise each time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vf import rng
from vf.diffusion import decompose, noise
from vf.diffusion.schedule import cosine
from vf.jobs import evaluator
from vf.models.one_network import OneNetwork
from vf.models.videofusion import VideoFusion
from vf.training import programs, sharding

FRAMES, BASE = 4, 1
SHAPE = (FRAMES, 8, 8, 3)
CLIPS, LEVELS = 32, np.array([100, 500, 900], np.int32)


class Stub:
    """A network that is a function (z, t) -> prediction."""

    def __init__(self, function):
        self.function = function

    def apply(self, variables, z, t, **_):
        return jnp.broadcast_to(self.function(z, t), z.shape)


def constant(value):
    """A network that answers with `value` times t / 1000, whatever it sees."""
    return Stub(lambda z, t: value * t[:, None, None, None, None] / 1000)


def fusion(lam, base, residual):
    lam = decompose.make_lambda(lam, FRAMES, BASE)
    return VideoFusion(schedule=cosine(), shape=SHAPE, base_frame=BASE, base=base, residual=residual, lam=lam)


def losses(model, batch_size=16, seed=0, levels=LEVELS):
    random = np.random.default_rng(0)
    clips = {
        "video": random.integers(0, 256, (CLIPS, *SHAPE), dtype=np.uint8),
        "label": np.zeros(CLIPS, np.int32), "index": np.arange(CLIPS, dtype=np.uint32),
    }  # fmt: skip
    mesh = sharding.make_mesh(devices=jax.devices()[:2])
    no_params = {"base": {}, "residual": {}}
    compiled = programs.validation(model, mesh)

    def program(params, batch, t):
        return compiled(params, batch, t, rng.as_argument(seed))

    return evaluator.validation_losses(program, no_params, clips, levels, batch_size, mesh)


def test_each_network_s_error_at_each_level():
    """Noise is of variance 1: a base that answers k t / 1000 is off by 1 + (k t / 1000)^2, and in the other frames both
    answers add up as equation (6) says."""
    lam = 0.5
    found = losses(fusion(lam, base=constant(2.0), residual=constant(3.0)))
    names = {f"{net}{kind}/t{t}" for net in ("base", "residual") for kind in ("", "_eps") for t in LEVELS}
    assert set(found) == names
    for t in LEVELS:
        base, residual = (value * t / 1000 for value in (2.0, 3.0))
        assert found[f"base/t{t}"] == pytest.approx(1 + base**2, rel=0.08)
        off = np.sqrt(lam) * base + np.sqrt(1 - lam) * residual
        assert found[f"residual/t{t}"] == pytest.approx(1 + off**2, rel=0.08)
    prior = noise.Independent()
    one = losses(OneNetwork(schedule=cosine(), shape=SHAPE, base_frame=BASE, net=constant(2.0), prior=prior))
    assert set(one) == {f"base{kind}/t{t}" for kind in ("", "_eps") for t in LEVELS}
    assert one["base/t500"] == pytest.approx(2, rel=0.08)


def test_the_noise_is_the_same_each_time():
    """Bit for bit in another evaluation, whatever levels and batches it has; other noise for another seed."""
    model = fusion(0.5, base=constant(0.0), residual=constant(0.0))
    first = losses(model)
    assert losses(model) == first
    for other in (losses(model, batch_size=10), losses(model, levels=LEVELS[::-1])):
        assert other == pytest.approx(first, rel=1e-6)
    values = [first[f"{net}/t{t}"] for net in ("base", "residual") for t in LEVELS]
    assert len(set(values)) == len(values)  # each level has noise of its own
    assert losses(model, seed=1)["base/t500"] != first["base/t500"]


def test_frames_go_to_the_network_that_answers_for_them():
    """The residual generator's error is the mean over the frames off the base frame, and of nothing else."""
    frame = jnp.arange(FRAMES)[None, :, None, None, None]
    model = fusion(0.0, base=constant(0.0), residual=Stub(lambda z, t: 2.0 * frame))
    others = [k for k in range(FRAMES) if k != BASE]
    found = losses(model)
    assert found["base/t500"] == pytest.approx(1, rel=0.08)
    assert found["residual/t500"] == pytest.approx(1 + np.mean([4 * k**2 for k in others]), rel=0.08)
