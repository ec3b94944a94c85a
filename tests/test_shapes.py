"""Shapes that annotations promise are checked while tests run."""

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from vf.diffusion import decompose


@pytest.mark.parametrize("library", [jnp, np])
def test_a_shape_that_would_spread_unseen_is_refused(library):
    """One base frame for all clips of a batch: arithmetic repeats it silently, the annotation does not."""
    residual, lam = library.ones((3, 5, 4, 4, 2)), np.full(5, 0.5, np.float32)
    assert decompose.combine(library.ones((3, 4, 4, 2)), residual, lam).shape == residual.shape
    with pytest.raises(TypeCheckError, match="parameter 'residual'"):
        decompose.combine(library.ones((1, 4, 4, 2)), residual, lam)
