"""Windows that are denoised together, through what draws a shard: against a longer model, closed forms, and a kill."""

import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.small_models import BASE, SCHEDULE, Stub, fusion, one_network
from vf import rng, video
from vf.config.specs import SampleSpec
from vf.diffusion import decompose, solvers, windows
from vf.diffusion.schedule import time_grid
from vf.jobs import drawing, meter, together
from vf.models.sampler import Control, SampleOptions, sample
from vf.training import sharding

FRAMES, SIDE, BATCH, SEED = 4, 6, 5, 3
# Windows from 0, 2, 4 and 6, of which the last is cut.
EXTENSION = windows.Extension(length=9, frames=FRAMES, overlap=2)
SHAPE = (FRAMES, SIDE, SIDE, 3)
ROWS = {"index": np.array([0, 4], np.uint32)}
NO_PARAMS = {"base": {}, "residual": {}}
GRID = time_grid(6, SCHEDULE.steps)


def drawn(model, tmp_path, *, extension=EXTENSION, options=None, rows=ROWS, noise="new", done=lambda n: None, **fields):
    """Clips f32 in [-1, 1], to the nearest pixel."""
    options = options or SampleOptions(GRID, clip_x_0=None)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    made = SampleSpec(
        options, len(rows["index"]), BATCH, SEED, "ema", -1, 8.0, extension=extension, windows="together",
        window_noise=noise, **fields,
    )  # fmt: skip
    spec = types.SimpleNamespace(model=model, mesh=mesh, sample=made)
    parts = drawing.Parts(tmp_path / "parts", is_writer=True)
    clips = together.Together(spec, meter.Phases(), NO_PARAMS).draw(rows, "clips", done, parts=parts)
    return np.asarray(video.from_uint8(clips))


def pointwise(scale, shift):
    """A network that sees each frame by itself."""
    return Stub(lambda z, t, **kwargs: scale * jnp.tanh(z) + shift * jnp.cos(t[:, None, None, None, None] / 300.0))


def frames_alone(frames=FRAMES, lam=0.4):
    return fusion(
        shape=(frames, *SHAPE[1:]), lam=decompose.make_lambda(lam, frames, BASE), base=pointwise(0.9, 0.3),
        residual=pointwise(1.0, 0.4), base_prediction="x_0", residual_prediction="x_0",
    )  # fmt: skip


def noises(model, number):
    """Base noise of sample `number`, and residual noise of the frames of all its windows."""
    own = jax.random.fold_in(rng.key(SEED, rng.Purpose.SAMPLE), number)
    parts = [model.prior.parts(rng.streams(key[None], 2)[0][0], SHAPE) for key in
             (own, *(jax.random.fold_in(own, window) for window in range(1, EXTENSION.further + 1)))]  # fmt: skip
    new = [residual[0 if k == 0 else EXTENSION.overlap :] for k, (_, residual) in enumerate(parts)]
    return parts[0][0], jnp.concatenate(new)


@pytest.mark.parametrize("solver", [solvers.DPMSolver(), solvers.Heun()])
def test_where_windows_agree_they_are_one_large_window(tmp_path, solver):
    """A longer model of the same networks, which see each frame by itself, samples the same from the same noise.

    Their estimates leave the bound now and then.
    """
    model, options = frames_alone(), SampleOptions(GRID, solver)
    clips = drawn(model, tmp_path, options=options)
    b, r = (jnp.stack(part) for part in zip(*(noises(model, int(k)) for k in ROWS["index"]), strict=True))
    longer = frames_alone(EXTENSION.covered)
    keys = rng.example_keys(0, rng.Purpose.SAMPLE, ROWS["index"])
    expected = sample(longer, NO_PARAMS, keys, {}, options, Control(base_noise=b, residual_noise=r))
    np.testing.assert_allclose(clips, expected[:, : EXTENSION.length], atol=1.01 / 255)
    assert clips.shape == (2, EXTENSION.length, *SHAPE[1:])


def test_only_windows_reach_the_networks(tmp_path):
    model = frames_alone()
    drawn(model, tmp_path)
    assert set(model.residual.seen) == {(BATCH, *SHAPE)}
    assert set(model.base.seen) == {(BATCH, 1, *SHAPE[1:])}


@pytest.mark.parametrize("decomposed", [False, True])
def test_windows_that_disagree_are_averaged(tmp_path, decomposed):
    """Networks that answer with a frame's place in the window; nothing is known of the base frame's place."""
    places = jnp.arange(FRAMES).reshape(-1, 1, 1, 1) / 4 - 0.4
    net = Stub(lambda z, t, **kwargs: jnp.broadcast_to(places, z.shape))
    answer = Stub(lambda z, t, **kwargs: jnp.full_like(z, 0.7))
    if decomposed:
        model = fusion(shape=SHAPE, base=answer, residual=net, base_prediction="x_0", residual_prediction="x_0")
    else:
        model = one_network(shape=SHAPE, net=net, prediction="x_0")
    clips = drawn(model, tmp_path)
    weight = np.array([1, 2, 2, 1.0])
    weight[BASE] *= not decomposed
    total, value = np.zeros(10), np.zeros(10)
    for first in range(0, 8, 2):
        for place in range(FRAMES):
            total[first + place] += weight[place]
            value[first + place] += weight[place] * (place / 4 - 0.4)
    expected = value / np.where(total > 0, total, 1)
    if decomposed:
        expected[BASE] = 0.7
    np.testing.assert_allclose(clips.mean((0, 2, 3, 4)), expected[:9], atol=1 / 255)


@pytest.mark.parametrize(
    ("solver", "restart"), [(solvers.DDIM(), solvers.Restart(200, 700)), (solvers.DPMSolver(1.0), None)]
)
def test_injected_noise_is_each_frame_s_own(tmp_path, solver, restart):
    """Independent Gaussian frames: what the perfect network samples of a window, it samples of a long clip."""
    mean, deviation = 0.1, 0.15

    def perfect(z, t, **kwargs):
        alpha, sigma = (value[:, None, None, None, None] for value in (SCHEDULE.alpha(t), SCHEDULE.sigma(t)))
        gain = alpha * deviation**2 / (alpha**2 * deviation**2 + sigma**2)
        return mean + gain * (z - alpha * mean)

    model = one_network(shape=(FRAMES, 40, 40, 3), net=Stub(perfect), prediction="x_0")
    options = SampleOptions(time_grid(20, SCHEDULE.steps), solver, clip_x_0=None, restart=restart)
    window = sample(model, NO_PARAMS, rng.example_keys(0, rng.Purpose.SAMPLE, ROWS["index"]), {}, options)
    variance = np.var(window)
    assert variance > 0.3 * deviation**2
    draws = np.moveaxis(drawn(model, tmp_path, options=options), 1, -1).reshape(-1, EXTENSION.length)
    error = 5 / np.sqrt(len(draws))
    np.testing.assert_allclose(draws.mean(0), mean, atol=error * np.sqrt(variance) + 1e-3)
    covariance = np.cov(draws.T) / variance
    np.testing.assert_allclose(covariance, np.eye(EXTENSION.length), atol=error * np.sqrt(2) + 0.02)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_shuffled_noise_is_that_of_the_first_window_in_another_order(tmp_path, eta):
    """At the start and at each step: frames by themselves are those of the first window again."""
    net = pointwise(0.4, 0.2)
    model = one_network(shape=SHAPE, net=net, prediction="x_0")
    options = SampleOptions(GRID, solvers.DDIM(eta))
    clips = drawn(model, tmp_path, options=options, noise="shuffled")
    order = windows.shuffled(EXTENSION)[: EXTENSION.length]
    np.testing.assert_array_equal(clips, clips[:, :FRAMES][:, order])
    assert len(np.unique(clips[0, :FRAMES, 0, 0, 0])) == FRAMES


def test_a_job_that_was_killed_goes_on_between_two_steps(tmp_path, monkeypatch):
    """To the same clips, with no step repeated."""
    model, options = frames_alone(), SampleOptions(GRID, solvers.DPMSolver(1.0))
    expected = drawn(model, tmp_path / "whole", options=options)
    monkeypatch.setattr(together, "KEEP_SECONDS", 0.0)
    told, rest = [], []

    def stop(done):
        told.append(done)
        if len(told) == 7:  # in the fourth step, each of two batches
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drawn(model, tmp_path, options=options, done=stop)
    clips = drawn(model, tmp_path, options=options, done=rest.append)
    np.testing.assert_array_equal(clips, expected)
    steps = [math.ceil(8 * (step + share) / 6) for step in range(6) for share in (5 / 8, 1)]
    assert told[:6] + rest == steps  # the fourth is taken again
