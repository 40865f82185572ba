"""Finite-K rounds as matrix products: against pairwise sums, one step after another, and under transformations.

For K = 2 the oracle is the sum over pairs that defines H_2, in NumPy. For other K it is `step`, a round in log space by
the same quadrature, which has its own tests.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import plural_jax as pj
from plural_jax.density.core import DensityState
from plural_jax.density.matrix_blocks import Tables
from tests import oracles
from tests.oracles import random_problem


@pytest.fixture(autouse=True)
def _blocks_for_small_problems_too(monkeypatch):
    monkeypatch.setattr(Tables, "fewest_cell_steps", 0)


FIELDS = pj.density.DensityInfo._fields


def run(rewards, phi, log_p, pool_size, num_steps, every=1):
    """The rounds as a function of arrays alone."""
    process = pj.density.finite_pool(pj.Landscape(rewards=rewards), phi, pool_size=pool_size)
    return process.rounds(None, process.init(log_p), num_steps, every)


def step_by_step(rewards, phi, log_p, pool_size, num_steps, every=1):
    """The same from `step`, which knows no blocks."""
    process = pj.density.finite_pool(pj.Landscape(rewards=rewards), phi, pool_size=pool_size)
    return oracles.step_by_step(process, log_p, num_steps, every)


jitted = jax.jit(run, static_argnums=(4, 5))
jitted_steps = jax.jit(step_by_step, static_argnums=(4, 5))


def of_pairs(rewards, phi, log_p, num_steps):
    """Log-masses after each round with K = 2, [num_steps, n], by the pairwise sum."""
    trace = []
    for _ in range(num_steps):
        with np.errstate(divide="ignore"):
            log_p = log_p + np.log(phi @ oracles.pairwise_h(np.exp(log_p), rewards))
        log_p = log_p - oracles.log_sum_exp(log_p)
        trace.append(log_p)
    return np.array(trace)


def assert_close(got, expected, tolerance):
    for name in FIELDS:
        a, b = getattr(got[1], name), getattr(expected[1], name)
        assert a.dtype == b.dtype and a.shape == b.shape, name
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=name)
    np.testing.assert_allclose(got[0].log_p, expected[0].log_p, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(got[0].log_w, expected[0].log_w, rtol=tolerance, atol=tolerance)


# Shapes and numbers of rounds that other tests use too, so that they compile once.
@pytest.mark.parametrize(
    ("m", "n", "num_steps", "every", "dtype"),
    [
        (1, 9, 12, 2, np.float32),
        (2, 21, 12, 1, np.float64),
        (2, 21, 12, 1, np.float32),
        (3, 12, 4, 4, np.float64),
        (3, 12, 4, 4, np.float32),
    ],
)
def test_rounds_equal_repeated_steps(rng, m, n, num_steps, every, dtype):
    problem = random_problem(rng, m, n, dtype=dtype)
    pool_size = dtype(rng.uniform(2, 40))
    got = jitted(*problem, pool_size, num_steps, every)
    assert got[0].log_p.dtype == dtype
    expected = jitted_steps(*problem, pool_size, num_steps, every)
    assert_close(got, expected, 1e-10 if dtype == np.float64 else 3e-4)


def test_little_work_is_done_step_by_step(rng, monkeypatch):
    """Where blocks would take longer to compile; with the same result."""
    problem = random_problem(rng)
    blocks = jitted(*problem, np.float64(7), 12, 1)
    monkeypatch.setattr(Tables, "fewest_cell_steps", 21 * 12 + 1)
    monkeypatch.setattr(Tables, "__init__", None)
    # A function of its own, so that nothing is remembered.
    assert_close(jax.jit(lambda *x: run(*x, 12))(*problem, np.float64(7)), blocks, 1e-10)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_pairs(rng, dtype):
    rewards, phi, log_p = random_problem(rng, dtype=dtype)
    state, infos = jitted(rewards, phi, log_p, dtype(2), 12, 1)
    expected = of_pairs(*(np.asarray(x, np.float64) for x in (rewards, phi, log_p)), 12)
    tolerance = 1e-10 if dtype == np.float64 else 1e-4
    np.testing.assert_allclose(state.log_p, expected[-1], rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(infos.reward_mean, np.exp(expected) @ rewards.T, rtol=tolerance, atol=tolerance)


def test_most_rounds_are_linear(rng, monkeypatch):
    """Or the other tests would compare log space with itself."""
    problem = random_problem(rng, dtype=np.float32)
    monkeypatch.setattr("plural_jax.density.linear_blocks.normalize", lambda log_p: jnp.full_like(log_p, jnp.nan))
    state, infos = jax.jit(lambda: run(*problem, np.float32(7.0), 12))()
    assert np.isnan(state.log_p).all()  # normalized at the end alone
    assert all(np.isfinite(leaf).all() for leaf in infos)


def test_the_total_mass_stays_one():
    """An error of the total mass would grow like its K-th power: 400 rounds at an unstable balance of two atoms."""
    rewards, phi = np.array([[20, 0], [0, 20]], np.float32), np.array([0.5, 0.5], np.float32)
    state, infos = jitted(rewards, phi, np.log(phi), np.float32(5), 400, 400)
    np.testing.assert_allclose(np.exp(state.log_p), 0.5, atol=1e-4)
    np.testing.assert_allclose(infos.basin_mass.sum(), 1, rtol=1e-6)


def test_vanishing_masses_are_followed_exactly(rng):
    # With pairs a cell loses at most half of its mass in a round, with ten candidates more: far beyond float32 here.
    rewards = np.concatenate([[0.0, -1.0], rng.uniform(-6, -4, size=14)])[None].astype(np.float32)
    log_p, phi = np.log(rng.dirichlet(np.ones(16))).astype(np.float32), np.ones(1, np.float32)
    state, _ = jitted(rewards, phi, log_p, np.float32(10), 300, 300)
    expected, _ = jitted_steps(*(np.asarray(x, np.float64) for x in (rewards, phi, log_p, 10.0)), 300, 300)
    assert expected.log_p.min() < -800
    np.testing.assert_allclose(state.log_p, expected.log_p, rtol=4e-6)


def test_a_far_start_finds_the_reward(rng):
    # In float32, where the mass at the second centre is e^-112; quadratic rewards that range over 100.
    x = np.linspace(-5, 20, 500)
    rewards = (-0.25 * (x - np.array([[rng.uniform(-1, 1)], [15.0]])) ** 2).astype(np.float32)
    log_p, phi = (-0.5 * x**2).astype(np.float32), np.array([0.4, 0.6], np.float32)
    _, infos = jitted(rewards, phi, log_p, np.float32(8), 120, 40)
    _, expected = jitted_steps(*(np.asarray(x, np.float64) for x in (rewards, phi, log_p, 8.0)), 120, 40)
    basins = rewards >= rewards.max(1, keepdims=True) - np.float32(0.1)
    assert np.exp(log_p)[basins[1]].max() < 1e-44 and expected.basin_mass[-1, 1] > 0.1
    np.testing.assert_allclose(infos.basin_mass, expected.basin_mass, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_rewards_of_ten_thousand(rng, dtype):
    rewards, phi, log_p = random_problem(rng, m=3, n=12, scale=1e4, dtype=dtype)
    phi[1] = 0
    state, infos = jitted(rewards, phi, log_p, dtype(3), 4, 4)
    expected, _ = jitted_steps(*(np.asarray(x, np.float64) for x in (rewards, phi, log_p, 3.0)), 4, 4)
    # In float32 neighbors of 2e4 are 2e-3 apart; differences of rewards are rounded to that in each round, and the rate of a
    # rare atom adds up several (0.05 was seen). There, pools of atoms whose masses underflow are lost, which decide how fast
    # a much worse atom vanishes, but not that it does.
    held = expected.log_p > (-80 if dtype == np.float32 else -700)
    np.testing.assert_allclose(
        state.log_p[held], expected.log_p[held], rtol=1e-5, atol=0.2 if dtype == np.float32 else 1e-6
    )
    assert (state.log_p[~held] < -75).all()
    assert all(np.isfinite(x).all() for x in infos)


def test_atoms_without_mass_stay_without_mass(rng):
    rewards, phi, log_p = random_problem(rng, n=16)
    rewards[:, 3] += 90.0  # no reward helps an atom that is never drawn
    log_p[3] = -np.inf
    log_p = log_p - oracles.log_sum_exp(log_p)
    # Not through `init`, which refuses a start without mass in a basin.
    process = pj.density.finite_pool(pj.Landscape(rewards=rewards), phi, pool_size=2.0)
    state = DensityState(jnp.asarray(log_p), jnp.zeros(16))
    state, infos = jax.jit(lambda s: process.rounds(None, s, 20, 20))(state)
    assert np.isneginf(state.log_p[3]) and all(np.isfinite(x).all() for x in infos)
    alive = np.arange(16) != 3
    expected = of_pairs(rewards[:, alive], phi, log_p[alive], 20)[-1]
    np.testing.assert_allclose(state.log_p[alive], expected, rtol=1e-9, atol=1e-9)


@functools.partial(jax.jit, static_argnums=(4,))
def _number(rewards, phi, log_p, pool_size, function=run):
    """One number that looks at everything a run returns."""
    state, infos = function(rewards, phi, log_p, pool_size, 6, 2)
    weights = jnp.cos(jnp.arange(state.log_p.shape[0]).astype(state.log_p.dtype))
    smooth = (infos.reward_mean, infos.reward_variance, infos.log_z, infos.entropy, infos.objective)
    return jnp.sum(weights * (state.log_p + state.log_w)) + sum(jnp.sum(jnp.square(x)) for x in smooth)


def test_vmap_over_every_set_of_axes(rng):
    problems = [random_problem(rng, n=10) for _ in range(3)]
    rewards, phi, log_p = (jnp.stack(x) for x in zip(*problems, strict=True))
    sizes = jnp.array([2.0, 11.5, np.inf])
    one = jax.jit(lambda r, f, s, k: _number(r, f, s, k, step_by_step))
    expected = np.array([[[one(r, f, log_p[0], k) for k in sizes] for f in phi] for r in rewards])
    close = functools.partial(np.testing.assert_allclose, rtol=1e-9)

    def of(r, f, k):
        return _number(r, f, log_p[0], k)

    by_size = jax.vmap(of, (None, None, 0))
    close(jax.vmap(jax.vmap(by_size, (None, 0, None)), (0, None, None))(rewards, phi, sizes), expected)
    got = jax.vmap(jax.vmap(_number, (None, None, 0, None)), (0, 0, None, 0))(rewards, phi, log_p[:2], sizes)
    close(got[:, 0], expected[range(3), range(3), range(3)])
    close(got[1, 1], one(rewards[1], phi[1], log_p[1], sizes[1]))


def test_one_wild_configuration_does_not_spoil_the_others(rng):
    rewards, _, log_p = random_problem(rng, n=14, scale=30.0)
    phis = np.array([[0.0, 1.0], [1.0, 0.0], [0.3, 0.7], [1e-12, 1 - 1e-12]])
    state, _ = jax.vmap(lambda phi: jitted(rewards, phi, log_p, 2.0, 25, 5))(jnp.asarray(phis))
    for i, phi in enumerate(phis):
        np.testing.assert_allclose(state.log_p[i], of_pairs(rewards, phi, log_p, 25)[-1], rtol=1e-8, atol=1e-8)


def test_derivatives_are_those_of_the_repeated_step(rng):
    rewards, phi, log_p = (jnp.asarray(x) for x in random_problem(rng, m=2, n=7))
    arguments = (rewards, phi, log_p, jnp.float64(4.5))
    # Forwards and backwards as one program each.
    got = jax.jit(jax.grad(_number.__wrapped__, (0, 1, 2, 3)))(*arguments)
    expected = jax.jit(jax.grad(lambda *x: _number.__wrapped__(*x, step_by_step), (0, 1, 2, 3)))(*arguments)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-8)


def test_new_numbers_compile_nothing(rng):
    jitted(*random_problem(rng), np.float64(7), 12, 1)
    before = jitted._cache_size()
    for size, scale in ((2.0, 1.0), (30.0, 1.0), (np.inf, 1.0), (3.0, 1e4)):
        jitted(*random_problem(rng, scale=scale), np.float64(size), 12, 1)
    assert jitted._cache_size() == before
