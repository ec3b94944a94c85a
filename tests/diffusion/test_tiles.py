"""Tiles: they cover a clip, and what is the same function of each pixel is that function of the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vf.diffusion import tiles
from vf.diffusion.tiles import Tiles


@pytest.mark.parametrize(("length", "size", "overlap"), [(16, 4, 0), (16, 6, 2), (17, 6, 2), (10, 9, 8), (5, 8, 3)])
def test_tiles_cover_a_length_with_their_overlap(length, size, overlap):
    firsts = tiles.first_places(length, size, overlap)
    size = min(size, length)
    assert firsts[0] == 0
    assert firsts[-1] == length - size
    assert all(size - step >= overlap for step in np.diff(firsts))
    assert len(firsts) == 1 + -(-(length - size) // (size - overlap))  # no more than are needed


def test_an_overlap_of_the_whole_tile_is_refused():
    with pytest.raises(ValueError, match="tiles of 4 must overlap by less than their size, got 4"):
        tiles.first_places(16, 4, 4)


def test_the_mean_of_a_function_of_each_pixel_is_that_function():
    x = jax.random.normal(jax.random.key(0), (2, 5, 7, 9, 3))
    made = tiles.mean(lambda cut: jnp.sin(cut(x)) + cut(x[..., :1]), x, Tiles(4, 2, 3, 1))
    np.testing.assert_allclose(made, jnp.sin(x) + x[..., :1], atol=1e-5)


def test_where_tiles_disagree_the_nearer_middle_counts_more():
    """Two tiles of one row, 0 and 1: from one to the other in straight steps, without a jump."""
    x = jnp.zeros((1, 1, 1, 6, 1))

    def estimate(cut):
        first = cut(jnp.arange(6.0).reshape(1, 1, 1, 6, 1))[0, 0, 0, 0, 0]
        return jnp.full((1, 1, 1, 4, 1), 1.0) * (first > 0)

    made = np.asarray(tiles.mean(estimate, x, Tiles(4, 2)))[0, 0, 0, :, 0]
    np.testing.assert_allclose(made, [0, 0, 1 / 3, 2 / 3, 1, 1], atol=1e-6)
