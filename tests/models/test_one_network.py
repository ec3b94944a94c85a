"""One network over all frames, under any prior."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.test_videofusion import clips
from tests.small_models import BASE, FRAMES, SHAPE, Stub, keys, one_network
from vf.diffusion import decompose
from vf.diffusion import noise as priors


@pytest.mark.parametrize("name", ["independent", "mixed", "progressive", "decomposed"])
def test_one_network_under_every_prior(name):
    """Loss 0 for the oracle, and a loss of the prior's own making for a network that says nothing."""
    lam = decompose.make_lambda(0.5, FRAMES, BASE)
    prior = {"independent": priors.Independent(), "mixed": priors.Mixed(), "progressive": priors.Progressive(),
             "decomposed": priors.Decomposed(lam)}[name]  # fmt: skip
    eps = jax.vmap(lambda k: prior.draw(jax.random.fold_in(k, 1), SHAPE))(keys(3))
    model = one_network(prior, net=Stub(lambda z, t, **_: eps))
    errors = model.errors({"base": {}}, clips(), {}, keys(3), jnp.array([5, 500, 900]))
    np.testing.assert_allclose(errors.loss, 0, atol=1e-10)
    silent = one_network(prior, net=Stub(lambda z, t, **_: jnp.zeros_like(z)))
    loss = silent.errors({"base": {}}, clips(), {}, keys(3)).loss
    np.testing.assert_allclose(loss.mean(), 1, atol=0.15)
