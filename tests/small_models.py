"""Small models for tests: with small U-Nets, or with functions for networks."""

import jax
import jax.numpy as jnp
import numpy as np

from vf import rng
from vf.diffusion import decompose, noise
from vf.diffusion.schedule import cosine
from vf.models.one_network import OneNetwork
from vf.models.videofusion import VideoFusion
from vf.nets.unet import UNet

SCHEDULE = cosine()
FRAMES, BASE = 4, 1
SHAPE = (FRAMES, 8, 8, 3)


class Stub:
    """A network that is a function (z, t, **kwargs) -> prediction; counts its passes and the frames they saw."""

    def __init__(self, function):
        self.function, self.seen = function, []

    def apply(self, variables, z, t, **kwargs):
        self.seen.append(z.shape)
        return self.function(z, t, **kwargs)


def unet(**changes):
    return UNet(**{"width": 8, "width_mult": (1,), "num_res_blocks": 1, "attention": (), "head_dim": 8,
                   "norm_groups": 4} | changes)  # fmt: skip


def fusion(value=0.5, shape=SHAPE, **changes):
    fields = {
        "schedule": SCHEDULE, "shape": shape, "base_frame": BASE, "base": unet(),
        "residual": unet(temporal=("conv", "attention"), frame_embed=True),
        "lam": decompose.make_lambda(value, shape[0], BASE),
    }  # fmt: skip
    return VideoFusion(**fields | changes)


def one_network(prior=None, **changes):
    net = unet(temporal=("conv", "attention"), frame_embed=True)
    fields = {
        "schedule": SCHEDULE,
        "shape": SHAPE,
        "base_frame": BASE,
        "net": net,
        "prior": prior or noise.Independent(),
    }
    return OneNetwork(**fields | changes)


def awake(model, seed=1):
    """Parameters of which none is zero: at initialisation the networks' output is zero."""
    random = np.random.default_rng(seed)
    shapes = model.shapes()
    return jax.tree.map(lambda p: jnp.float32(0.1 * random.normal(size=p.shape)), shapes)


def keys(n, seed=0):
    return rng.example_keys(seed, rng.Purpose.TRAIN, jnp.arange(n, dtype=jnp.uint32))
