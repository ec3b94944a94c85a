"""A prior as a model: embeddings in units of their statistics; on Gaussian embeddings samples have their moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.small_models import SCHEDULE, Stub
from vf.diffusion import noise, solvers
from vf.diffusion.guidance import Guidance
from vf.diffusion.schedule import time_grid
from vf.models import sampler
from vf.models.prior import Prior
from vf.training import programs, sharding, step

MEAN, STD = np.array([1.0, -2.0, 0.5], np.float32), np.array([0.5, 2.0, 1.0], np.float32)
PARAMS = {"prior": {"mean": MEAN, "std": STD}}
# The embeddings of class k are normal: in units of the statistics with mean CENTRE[k] and deviation SPREAD.
CENTRE, SPREAD = np.array([[0.5, 0.0, -1.0], [-0.5, 1.0, 0.0], [0.0, 0.5, -0.5]], np.float32), 0.6


def posterior(z, t, *, label=None, **kwargs):
    """E[x given z] of those embeddings: the perfect network."""
    alpha, sigma = (x[:, None, None, None, None] for x in (SCHEDULE.alpha(t), SCHEDULE.sigma(t)))
    centre = jnp.asarray(CENTRE)[label][:, None, None, None]
    gain = alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2)
    return centre + gain * (z - alpha * centre)


def prior(function=posterior, **changes):
    fields = {
        "schedule": SCHEDULE, "shape": (1, 1, 1, 3), "base_frame": 0, "net": Stub(function), "null_label": 2,
        "prior": noise.Independent(), "prediction": "x_0", "loss": "x_0",
    }  # fmt: skip
    return Prior(**fields | changes)


def batch(rows):
    rng, label = np.random.default_rng(0), np.arange(rows, dtype=np.int32) % 2
    e = MEAN + STD * (CENTRE[label] + SPREAD * rng.normal(size=(rows, 3)))
    return {"embedding": e.astype(np.float32), "label": label, "index": np.arange(rows, dtype=np.uint32)}


def test_the_perfect_network_finds_all_that_can_be_found():
    """Its error at time t is the variance of the posterior, in units of the statistics."""
    rows = batch(4000)
    for t in map(jnp.asarray, (100, 600)):
        found = jax.jit(lambda t: step.validation_step(PARAMS, rows, t, model=prior(), seed=0))(t)
        assert found.keys() == {"prior", "prior_eps"}
        alpha, sigma = float(SCHEDULE.alpha(t)), float(SCHEDULE.sigma(t))
        variance = SPREAD**2 * sigma**2 / (alpha**2 * SPREAD**2 + sigma**2)
        np.testing.assert_allclose(found["prior"].mean(), variance, rtol=0.04)
        np.testing.assert_allclose(found["prior_eps"].mean(), variance * alpha**2 / sigma**2, rtol=0.04)


def test_an_oracle_has_no_loss():
    rows = batch(16)
    true = (rows["embedding"] - MEAN) / STD
    model = prior(lambda z, t, **kwargs: jnp.asarray(true)[:, None, None, None])
    loss, numbers = step.batch_loss(PARAMS, rows, model=model, seed=0)
    assert float(loss) < 1e-10
    assert numbers.keys() == {"loss"}


@pytest.fixture(scope="module")
def sample():
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    options = sampler.SampleOptions(time_grid(200, 1000), solvers.DDIM(eta=1.0), clip_x_0=5.0)
    program = programs.embeddings(prior(), mesh, options)

    def draw(index, label, seed=0):
        rows = {"index": np.asarray(index, np.uint32), "label": np.asarray(label, np.int32)}
        return programs.in_batches(lambda part: program(PARAMS, part, np.uint32(seed)), rows, 500, mesh)

    return draw


def test_samples_have_the_moments_of_the_embeddings(sample):
    label = np.arange(4000) % 2
    drawn = sample(np.arange(4000), label)
    for k in (0, 1):
        mine = drawn[label == k]
        np.testing.assert_allclose(mine.mean(0), MEAN + STD * CENTRE[k], atol=4 * 2 * SPREAD / 2000**0.5)
        np.testing.assert_allclose(mine.std(0), STD * SPREAD, rtol=0.06)
        assert abs(np.corrcoef(mine.T)[~np.eye(3, dtype=bool)]).max() < 0.1


def test_a_sample_depends_on_its_number_seed_and_class_alone(sample):
    all_drawn = sample(np.arange(20), np.zeros(20))
    np.testing.assert_allclose(sample([7, 3], [0, 0]), all_drawn[[7, 3]], atol=1e-6)
    assert np.abs(sample([7], [1]) - all_drawn[7]).min() > 1e-3
    assert np.abs(sample([7], [0], seed=1) - all_drawn[7]).min() > 1e-3


def test_guidance_goes_from_no_class():
    rows = 3
    options = sampler.SampleOptions(time_grid(2, 1000), guidance=Guidance(3.0), clip_x_0=None)
    model = prior(lambda z, t, *, label, **kwargs: jnp.asarray(CENTRE)[label][:, None, None, None])
    keys, label = jax.random.split(jax.random.key(0), rows), np.array([0, 1, 0])
    z = sampler.sample(model, PARAMS, keys, {"label": label}, options)
    true = CENTRE[2] + 3 * (CENTRE[label] - CENTRE[2])  # no class is label 2
    np.testing.assert_allclose(z[:, 0, 0, 0], true, atol=1e-5)
    np.testing.assert_allclose(model.embeddings(PARAMS, z), MEAN + STD * true, atol=1e-4)
