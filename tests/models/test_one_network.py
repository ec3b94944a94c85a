"""One network over all frames, under any prior."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.test_videofusion import clips
from tests.small_models import BASE, FRAMES, SHAPE, Stub, keys, one_network
from vf.diffusion import decompose, noise


@pytest.mark.parametrize("name", ["independent", "mixed", "progressive", "decomposed"])
def test_one_network_under_every_prior(name):
    """The loss is 0 for the oracle, and the variance of the prior's noise for a network that predicts zero."""
    lam = decompose.make_lambda(0.5, FRAMES, BASE)
    prior = {"independent": noise.Independent(), "mixed": noise.Mixed(), "progressive": noise.Progressive(),
             "decomposed": noise.Decomposed(lam)}[name]  # fmt: skip
    eps = jax.vmap(lambda k: prior.draw(jax.random.fold_in(k, 1), SHAPE))(keys(3))
    model = one_network(prior, net=Stub(lambda z, t, **_: eps))
    errors = model.errors({"base": {}}, clips(), {}, keys(3), jnp.array([5, 500, 900]))
    np.testing.assert_allclose(errors.loss, 0, atol=1e-10)
    zero = one_network(prior, net=Stub(lambda z, t, **_: jnp.zeros_like(z)))
    loss = zero.errors({"base": {}}, clips(), {}, keys(3)).loss
    np.testing.assert_allclose(loss.mean(), 1, atol=0.15)
