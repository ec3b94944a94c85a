"""Meshes that a plan tries."""

import math

from vf.plan import rank


def test_every_mesh_is_a_mesh():
    found = set(rank.meshes(16, 2, batch=16, accumulate=1, frames=8))
    assert (2, 8, 1, 1) in found
    assert (2, 4, 2, 1) not in found  # two clips a part: nothing to split
    assert (16, 1, 1, 1) in found
    assert all(math.prod(sizes) == 16 and sizes[0] % 2 == 0 for sizes in found)
    assert (1, 2, 8, 1) in set(rank.meshes(16, 1, batch=2, accumulate=1, frames=8))
