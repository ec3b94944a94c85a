"""Super-resolution: what the network sees, and that with one noise for all frames equal frames stay equal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.test_videofusion import clips
from tests.small_models import BASE, FRAMES, SCHEDULE, SHAPE, Stub, awake, keys, unet
from vf import video
from vf.diffusion import decompose, noise, solvers
from vf.diffusion.schedule import time_grid
from vf.diffusion.tiles import Tiles
from vf.models.sampler import SampleOptions, sample
from vf.models.superres import SuperResolution


def superres(lam=1.0, **changes):
    prior = noise.Decomposed(decompose.make_lambda(lam, FRAMES, BASE))
    fields = {
        "schedule": SCHEDULE, "shape": SHAPE, "base_frame": BASE, "net": unet(), "prior": prior, "low_size": 4
    }  # fmt: skip
    return SuperResolution(**fields | changes)


def test_reducing_and_enlarging_keep_what_is_flat_and_straight():
    model = superres()
    flat = jnp.full((2, *SHAPE), 0.3)
    np.testing.assert_allclose(model.enlarged(model.reduced(flat)), flat, atol=1e-6)
    ramp = jnp.broadcast_to(jnp.arange(32.0)[:, None, None], (1, FRAMES, 32, 32, 3))
    wide = superres(shape=(FRAMES, 32, 32, 3), low_size=8)
    low = wide.reduced(ramp)
    np.testing.assert_allclose(low[0, 0, 3:5, 0, 0], [13.5, 17.5], atol=1e-4)  # means of four rows, away from the edges
    rows = slice(14, 18)  # between those
    np.testing.assert_allclose(wide.enlarged(low)[0, 0, rows, 0, 0], np.arange(14.0, 18), atol=0.1)


def test_the_network_sees_the_low_clip_beside_the_noised_one():
    """And an oracle of the noise has loss 0, whatever prior; the low clip of a batch is its clip, reduced, or given."""
    x = clips()
    eps = []
    seen = []

    def network(z, t, **inputs):
        seen.append(z)
        assert inputs == {"dropout_keys": None}
        return eps[0]

    model = superres(0.5, net=Stub(network))
    eps.append(jax.vmap(model.draw_noise)(jax.vmap(jax.random.fold_in, (0, None))(keys(3), 1)))
    errors = model.errors({"base": {}}, x, {"low": model.reduced(x)}, keys(3), jnp.array([5, 500, 900]))
    np.testing.assert_allclose(errors.loss, 0, atol=1e-10)
    np.testing.assert_allclose(seen[0][..., 3:], model.enlarged(model.reduced(x)), atol=1e-6)
    pixels = video.to_uint8(x)
    low = model.condition({"video": pixels})["low"]
    np.testing.assert_allclose(low, model.reduced(video.from_uint8(pixels)), atol=1e-6)
    np.testing.assert_array_equal(model.condition({"video": pixels, "low": low + 1})["low"], low + 1)
    with pytest.raises(ValueError, match=r"clips of 4 frames of 4 x 4 are taken up, and these have .*\[4, 2, 4, 3\]"):
        model.condition({"low": low[:, :, :2]})


def test_in_training_low_clips_are_noised_as_the_network_is_told():
    seen = []
    model = superres(low_noise=0.4, net=Stub(lambda z, t, amplitude, **_: seen.append((z, amplitude)) or z[..., :3]))
    x = jnp.zeros((64, *SHAPE))
    for train in (True, False):
        model.errors({"base": {}}, x, {"low": model.reduced(x)}, keys(64), train=train)
    (noised, told), (clean, none) = seen
    np.testing.assert_array_equal(none, np.zeros(64))
    np.testing.assert_array_equal(clean[..., 3:], np.zeros((64, *SHAPE)))
    assert told.min() >= 0
    assert 0.35 < told.max() <= 0.4
    # Enlarged, noise of independent pixels has a variance that the weights of the grid give.
    eye = np.asarray(model.enlarged(jnp.eye(16).reshape(16, 1, 4, 4, 1)))
    std = np.sqrt((eye**2).sum(0).mean())
    np.testing.assert_allclose(noised[..., 3:].std((1, 2, 3, 4)), std * told, rtol=0.35, atol=1e-3)
    # When sampling, of the amplitude that is asked for. A prediction of x_0 is of the difference from what it sees.
    echo = Stub(lambda z, t, amplitude, **_: jnp.zeros_like(z[..., 3:]) + 2 * amplitude[:, None, None, None, None])
    model = superres(low_noise=0.4, net=echo, prediction="x_0", loss="x_0")
    options = SampleOptions(time_grid(2, 1000), clip_x_0=None, low_noise=0.25)
    made = sample(model, {"base": {}}, keys(64), {"low": model.reduced(x)}, options)
    np.testing.assert_allclose(made.mean(), 0.5, atol=0.01)
    np.testing.assert_allclose(made.std(), std * 0.25, rtol=0.05)


def test_with_one_noise_for_all_frames_a_still_clip_stays_still():
    """Exactly, while no layer mixes frames; with noises of their own frames differ."""
    low = jnp.broadcast_to(jax.random.normal(jax.random.key(0), (2, 1, 4, 4, 3)), (2, FRAMES, 4, 4, 3))
    options = SampleOptions(time_grid(5, 1000), solvers.DDIM(1.0))
    params = awake(superres())
    for lam, equal in ((1.0, True), (0.5, False)):
        model = superres(lam)
        made = np.asarray(jax.jit(lambda p, model=model: sample(model, p, keys(2), {"low": low}, options))(params))
        assert (made == made[:, :1]).all() == equal
        assert np.abs(made[0] - made[1]).max() > 0.01  # of other keys


def test_tiles_of_a_network_of_single_pixels_make_the_whole_clip():
    """With stochastic steps, too: all tiles are cut from one noise, and of one enlarged clip."""
    low = jax.random.uniform(jax.random.key(1), (2, FRAMES, 4, 4, 3), minval=-1)
    net = Stub(lambda z, t, **_: jnp.tanh(z[..., :3] + 2 * z[..., 3:]))
    options = SampleOptions(time_grid(4, 1000), solvers.DDIM(1.0))
    made = [
        sample(superres(0.5, net=net, tiles=tiles), {"base": {}}, keys(2), {"low": low}, options)
        for tiles in (None, Tiles(5, 2, 3, 1), Tiles(frames=1))
    ]
    for tiled in made[1:]:
        np.testing.assert_allclose(tiled, made[0], atol=2e-5)
    assert net.seen[-1] == (2, 1, 8, 8, 6)
    with pytest.raises(ValueError, match="tiles of 4 must overlap by less than their size, got 6"):
        superres(tiles=Tiles(4, 6))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"low_size": 3}, "clips of 3 x 3 cannot be taken up to 8 x 8"),
        ({"low_size": 8}, "must be a whole part of the high one"),
        ({"low_noise": -0.1}, "must be 0 or more, got -0.1"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        superres(**changes)
