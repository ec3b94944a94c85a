"""Schedules against their formulas, and the time grid's laws."""

import jax.numpy as jnp
import numpy as np
import pytest

from vf.diffusion import schedule


def test_linear_is_ho_et_al():
    table = schedule.linear().alpha_bar
    assert table.dtype == np.float64
    np.testing.assert_allclose(table[0], 1 - 1e-4, rtol=1e-12)
    product = 1.0
    for beta in np.linspace(1e-4, 0.02, 1000):
        product *= 1 - beta
    np.testing.assert_allclose(table[-1], product, rtol=1e-10)


def test_cosine_is_nichol_and_dhariwal():
    """alpha_bar_t = f(t) / f(0) wherever the cap on beta does not bind, and beta = 0.999 at the very end."""
    table = schedule.cosine().alpha_bar
    f = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(table[:999], f[1:1000] / f[0], rtol=1e-9)
    np.testing.assert_allclose(table[-1] / table[-2], 0.001, rtol=1e-9)


@pytest.mark.parametrize("name", list(schedule.SCHEDULES))
def test_signal_and_noise_make_one(name):
    made = schedule.SCHEDULES[name](1000)
    t = jnp.arange(-1, 1000)
    np.testing.assert_allclose(made.alpha(t) ** 2 + made.sigma(t) ** 2, 1, atol=1e-6)
    assert made.alpha(jnp.asarray(-1)) == 1
    assert made.sigma(jnp.asarray(-1)) == 0
    np.testing.assert_array_equal(made.alpha(t[1:]), np.sqrt(made.alpha_bar).astype(np.float32))


def test_a_schedule_of_too_few_steps_is_refused():
    """The linear one would have a beta of 1 at T = 20."""
    assert schedule.linear(21).steps == 21
    with pytest.raises(ValueError, match="more than 20 steps, got 20"):
        schedule.linear(20)
    assert schedule.cosine(1).steps == 1
    with pytest.raises(ValueError, match="at least one step, got 0"):
        schedule.cosine(0)


def test_fewer_steps_end_as_noisy():
    assert schedule.linear(100).alpha_bar[-1] < 1e-3
    assert schedule.cosine(100).alpha_bar[-1] < 1e-3


def test_zero_terminal_snr_is_lin_et_al():
    """Algorithm 1, by the authors' code as diffusers has it."""
    scheduling = pytest.importorskip("diffusers.schedulers.scheduling_ddim")
    torch = pytest.importorskip("torch")
    given = schedule.linear()
    betas = torch.from_numpy(1 - given.alpha_bar / np.append(1, given.alpha_bar[:-1]))
    theirs = torch.cumprod(1 - scheduling.rescale_zero_terminal_snr(betas), 0)
    made = schedule.zero_terminal_snr(given)
    np.testing.assert_allclose(made.alpha_bar, theirs, atol=1e-12)
    assert (made.ends_in_noise, given.ends_in_noise) == (True, False)
    assert (made.alpha(jnp.array(999)), made.sigma(jnp.array(999))) == (0, 1)
    for spacing in schedule.SPACINGS:
        times = schedule.spaced_times(spacing, 10, made)
        assert times[0] == 999
        assert np.all(np.diff(times) < 0)


def test_a_table_that_is_no_schedule_is_refused():
    for table in (np.array([0.5, 0.6]), np.array([1.0, 0.5]), np.array([0.5, 0.0, -0.1])):
        with pytest.raises(ValueError, match="decrease strictly"):
            schedule.Schedule(table)
    with pytest.raises(ValueError, match="float64"):
        schedule.Schedule(np.array([0.5, 0.4], np.float32))


@pytest.mark.parametrize("steps", [1, 2, 7, 50, 999, 1000])
def test_time_grid(steps):
    grid = schedule.time_grid(steps, 1000)
    assert len(grid) == steps + 1
    assert grid[0] == 999
    assert grid[-1] == -1
    assert steps == 1 or grid[-2] == 0
    assert np.all(np.diff(grid) < 0)


@pytest.mark.parametrize("name", ["cosine", "linear"])
@pytest.mark.parametrize("spacing", schedule.SPACINGS)
def test_spaced_times_are_as_their_spacing_says(spacing, name):
    """To the rounding of times, where steps are few; and a grid for any number of steps."""
    made = schedule.SCHEDULES[name]()
    sigma = np.sqrt(1 / made.alpha_bar - 1)
    of = {"uniform": lambda t: t, "trailing": lambda t: t, "quadratic": np.sqrt, "log_snr": lambda t: np.log(sigma[t]),
          "karras": lambda t: sigma[t] ** (1 / 7)}[spacing]  # fmt: skip
    grid = schedule.spaced_times(spacing, 8, made)
    assert grid[-2] == (124 if spacing == "trailing" else 0)
    steps = np.diff(of(grid[:-1].astype(int)))
    if name == "linear" or spacing not in ("log_snr", "karras"):  # cosine's last times are too coarse for these
        np.testing.assert_allclose(steps, steps.mean(), rtol=0.08)
    for count in (1, 2, 50, 700, 1000):
        grid = schedule.spaced_times(spacing, count, made)
        assert (len(grid), grid[0], grid[-1], grid.dtype) == (count + 1, 999, -1, np.int32)
        assert np.all(np.diff(grid) < 0)


def test_times_may_be_given():
    made = schedule.cosine()
    np.testing.assert_array_equal(schedule.given_times((900, 20, 0), made), [900, 20, 0, -1])
    for times in ((), (1000, 5), (5, 5), (5, 9), (7, -1), (0.5, 0.2)):
        with pytest.raises(ValueError, match="whole numbers that fall strictly, from at most 999"):
            schedule.given_times(times, made)
    with pytest.raises(ValueError, match="one of uniform, trailing"):
        schedule.spaced_times("even", 5, made)


@pytest.mark.parametrize("steps", [0, 1001])
def test_time_grid_out_of_range(steps):
    with pytest.raises(ValueError, match="between 1 and 1000"):
        schedule.time_grid(steps, 1000)
