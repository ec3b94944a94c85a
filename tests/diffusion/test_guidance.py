"""Guidance is linear between the unconditional and the conditional prediction, in one doubled pass."""

import jax.numpy as jnp
import numpy as np
import pytest

from vf.diffusion.guidance import guided

GIVEN, WITHOUT = 3.0, 1.0


@pytest.mark.parametrize(("scale", "expected"), [(0.0, WITHOUT), (1.0, GIVEN), (2.5, WITHOUT + 2.5 * 2)])
def test_scale(scale, expected):
    calls = []

    def predict(z, null):
        calls.append(len(z))
        return jnp.where(null, WITHOUT, GIVEN)[:, None] * jnp.ones_like(z)

    result = guided(predict, scale)(jnp.zeros((4, 2)))
    np.testing.assert_allclose(result, expected)
    assert calls == [4 if scale == 1 else 8]
