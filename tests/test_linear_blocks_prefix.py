"""Summaries that read only the first cells: against NumPy in float64, where what they leave out could matter.

2,048 cells, with few configurations filled up to 32, are just enough for summaries to leave some out.
"""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import plural_jax as pj
from plural_jax.density import linear_blocks_prefix as prefix
from plural_jax.density.core import DensityState
from plural_jax.density.linear_blocks_masses import Format
from plural_jax.density.linear_blocks_summary import Observer
from tests import oracles

N = 2048
X = np.linspace(-5.0, 5.0, N)
PHIS = np.array([[0.5, 0.5], [0.1, 0.9], [0.85, 0.15], [1.0, 0.0]])
UNIFORM = np.full(N, -np.log(N))


def infos_of(rewards, phi, log_p, eps, num_steps, every):
    """Infos for a start that needs no mass in any basin."""
    process = pj.density.large_pool(pj.Landscape(rewards=rewards), phi, eps=eps)
    return process.rounds(None, DensityState(log_p, log_p), num_steps, every)[1]


@functools.partial(jax.jit, static_argnums=(4, 5))
def run(*args):
    """Infos of a batch of weights and starts."""
    return jax.vmap(infos_of, (None, 0, 0, None, None, None))(*args)


@functools.partial(jax.jit, static_argnums=(4, 5))
def run_whole(*args):
    """The same from summaries of all cells."""
    with mock.patch.object(prefix, "pays", lambda *_: False):
        return run.__wrapped__(*args)


def oracle(rewards, phi, log_p, eps, num_steps, every):
    """The same of one configuration, and the masses."""
    log_p = log_p - oracles.log_sum_exp(log_p)
    best = rewards.max(axis=1, keepdims=True)
    basins = rewards >= best - eps
    infos, masses = [], []
    for t in range(num_steps):
        log_p = log_p + oracles.large_pool_log_w(log_p, rewards, phi)
        log_p = log_p - oracles.log_sum_exp(log_p)
        if (t + 1) % every:
            continue
        p, live = np.exp(log_p), log_p > -np.inf
        mean = rewards @ p
        log_z = np.array([oracles.log_sum_exp(log_p + r) for r in rewards])
        log_w = np.where(live, oracles.large_pool_log_w(log_p, rewards, phi), -np.inf)
        outside = ~basins.any(axis=0)
        masses.append(p)
        infos.append(
            pj.density.DensityInfo(
                reward_mean=mean,
                reward_variance=((rewards - mean[:, None]) ** 2) @ p,
                log_z=log_z,
                entropy=-np.sum(p[live] * log_p[live]),
                basin_mass=basins @ p,
                outside_mass=outside @ p,
                log_sup_w_outside=log_w[outside].max(initial=-np.inf),
                objective=phi @ log_z,
                log_max_w=log_w.max(),
            )
        )
    return jax.tree.map(lambda *x: np.array(x), *infos), np.array(masses)


def check(rewards, phis, starts, eps=0.1, num_steps=60, every=1, dtype=np.float32, whole=run_whole):
    """Compare all infos with the oracle and with whole summaries; returns the oracle's infos and masses."""
    rewards, phis, starts = (np.asarray(x, dtype) for x in (rewards, phis, starts))
    args = rewards, phis, starts, dtype(eps), num_steps, every
    got, whole = run(*args), whole(*args)
    exact = [np.asarray(x, np.float64) for x in (rewards, phis, starts)]
    pairs = [oracle(exact[0], f, s, float(dtype(eps)), num_steps, every) for f, s in zip(*exact[1:], strict=True)]
    expected = jax.tree.map(lambda *x: np.array(x), *[infos for infos, _ in pairs])
    # Rounding of sums over 2,048 cells in any order. A variance keeps no digits below those of the squared mean.
    tolerance, lost = (3e-4, 1e-9) if dtype == np.float32 else (1e-10, 1e-26)
    for name in got._fields:
        a, b, c = (np.asarray(getattr(x, name)) for x in (got, whole, expected))
        assert a.dtype == dtype and a.shape == c.shape, name
        np.testing.assert_allclose(a, c, rtol=tolerance, atol=tolerance, err_msg=name)
        # However small: what is left out changes no digit.
        atol = {"basin_mass": 0.0, "outside_mass": 0.0, "reward_variance": lost}.get(name, tolerance / 4)
        np.testing.assert_allclose(a, b, rtol=tolerance / 2, atol=atol, err_msg=name)
    return got, expected, np.array([masses for _, masses in pairs])


def bumps(distance, height=5.0):
    return height * np.exp(-0.5 * (X - np.array([[-distance / 2], [distance / 2]])) ** 2)


@pytest.mark.parametrize("distance", [0.8, 1.6, 3.0, 6.0])
def test_batches_that_concentrate(distance):
    check(bumps(distance), PHIS, [UNIFORM] * 4)


def test_mass_that_never_concentrates():
    check(bumps(3.0, height=1e-3), PHIS, [UNIFORM] * 4)


def test_tiny_masses_outside_and_in_a_basin_that_dies():
    def relative(got, expected):
        shown = (expected > 1e-29) & (expected < 1e-6)
        assert shown.sum() >= 4 and expected.min() < 1e-35
        np.testing.assert_allclose(np.asarray(got)[shown], expected[shown], rtol=1e-4)

    got, expected, _ = check(-0.5 * (X - np.array([[-1.0], [1.5]])) ** 2, PHIS, [UNIFORM] * 4, eps=3.0)
    relative(got.outside_mass, expected.outside_mass)
    got, expected, _ = check(-2.0 * np.abs(X - np.array([[-2.0], [2.0]])), PHIS, [UNIFORM] * 4)
    relative(got.basin_mass[3, :, 1], expected.basin_mass[3, :, 1])


def test_far_starts_and_cells_without_mass(rng):
    starts = np.stack([-2.0 * (X - 4.9) ** 2, -8.0 * (X + 4.9) ** 2, UNIFORM, UNIFORM])
    starts[2:, :] += np.log(rng.dirichlet(np.full(N, 0.3), size=2) + 1e-300)
    starts[2, rng.random(N) < 0.4] = -np.inf
    starts[3, np.abs(X) > 1.3] = -np.inf
    check(bumps(3.0), PHIS, starts)


def test_a_slice_that_was_left_out_grows_back(rng):
    # A holds the mass; F is best for the second preference but has mass 1e-200; L comes last in the order, has mass
    # 1e-20, and holds the second preference's share for a while before F does. The rest never matters.
    tilt = np.empty((2, 32, N // 32))
    tilt[0], tilt[1] = 0.5, 1e-3
    log_p = np.full((32, N // 32), -200.0)
    a, f, late = 3, 17, 29
    tilt[:, a], log_p[a] = np.array([[1.0], [1e-3]]), 0.0
    tilt[:, f], log_p[f] = np.array([[1e-6], [1.0]]), -460.0
    tilt[:, late], log_p[late] = np.array([[1e-6], [0.05]]), -46.0
    rewards = np.log(tilt) - 0.05 * rng.random(tilt.shape)
    rewards[1, f] -= 0.3 * rng.random(N // 32)  # so that F has cells outside the basins, where W is higher than in L
    starts = np.array([log_p + 0.1 * rng.random(log_p.shape) for _ in range(4)])
    starts[:, late] += np.array([[0.0], [2.0], [4.0], [6.0]])
    phis = np.array([[0.5, 0.5], [0.6, 0.4], [0.4, 0.6], [0.45, 0.55]])
    _, expected, masses = check(rewards.reshape(2, N), phis, starts.reshape(4, N))
    share = masses[0].reshape(60, 32, -1).sum(2)
    assert share[2, late] < 1e-13 and share[:, late].max() > 0.1
    # The highest W, and the highest outside, where there is hardly any mass.
    assert share[2, f] < 1e-100 and expected.log_max_w[0, 2] > 4


@pytest.mark.parametrize(("m", "n", "every", "dtype"), [(1, 2050, 5, np.float32), (5, N, 1, np.float64)])
def test_other_numbers_of_preferences(rng, m, n, every, dtype):
    x = np.linspace(-5.0, 5.0, n)
    rewards = rng.uniform(2, 8, (m, 1)) * np.exp(-0.5 * (x - rng.uniform(-4, 4, (m, 1))) ** 2)
    starts = np.log(rng.dirichlet(np.ones(n), size=32))
    check(rewards, rng.dirichlet(np.ones(m), size=32), starts, num_steps=40, every=every, dtype=dtype, whole=run)


def observer(dtype=np.float32):
    """An observer of four configurations of two bumps, and what it takes."""
    rewards = jnp.asarray(bumps(3.0), dtype)
    phis = jnp.asarray(PHIS.T, dtype)[None]
    problem = pj.density.large_pool(pj.Landscape(rewards=rewards), PHIS[0]).step.args[0]
    problem = jax.tree.map(lambda x: x[None], problem._replace(phi=None, log_uniform=None))
    tilt = jnp.exp(rewards - rewards.max(axis=1, keepdims=True))[None]
    order = prefix.best_first(tilt)
    problem = problem._replace(
        rewards=prefix.reorder(problem.rewards, order, 2),
        basins=prefix.reorder(problem.basins, order, 2),
        outside=prefix.reorder(problem.outside, order, 1),
    )
    tilt = prefix.reorder(tilt, order, 2)
    live = jnp.ones((1, N, 1), bool)
    cuts = tuple(N // prefix.SLICES * cut for cut in (0, *prefix.CUTS))
    return (
        Observer(Format.of(dtype), problem, Partial(lambda p, log_p: log_p), tilt, phis, live, cuts),
        tilt,
        order,
        cuts,
    )


def test_order_and_its_inverse(rng):
    _, tilt, order, _ = observer()
    highest = tilt.sum(axis=1).reshape(prefix.SLICES, -1).max(axis=1)
    assert (jnp.diff(highest) <= 0).all()
    x = jnp.asarray(rng.normal(size=(1, 3, N, 2)))
    there = prefix.reorder(x, order, 2)
    assert not jnp.array_equal(there, x)
    np.testing.assert_array_equal(prefix.reorder(there, jnp.argsort(order, axis=1), 2), x)


def test_cells_are_left_out_when_and_only_when_that_is_proven():
    observe, tilt, order, cuts = observer()
    form = observe.form

    @jax.jit
    def observed(log_p, guess):
        masses = form.from_log(prefix.reorder(log_p[None], order, 1), cuts)
        q = [part.q for part in masses]
        z = jnp.matmul(tilt, jnp.concatenate(q, axis=1)) * 2.0**-form.scale
        return observe(masses, z, jnp.asarray(True), observe.slices.masses(q), guess)

    def after(rounds, guess):
        log_p = np.tile(UNIFORM[:, None], (1, 4))
        for _ in range(rounds):
            for k in range(4):
                log_p[:, k] += oracles.large_pool_log_w(log_p[:, k], bumps(3.0), PHIS[k])
        return observed(jnp.asarray(log_p, jnp.float32), jnp.asarray(guess, jnp.int32))

    last = len(prefix.LENGTHS) - 1
    whole, choice = after(0, 0)
    assert choice == 0
    # A wrong guess is found out and corrected.
    guessed, choice = after(0, last)
    assert choice == 0
    np.testing.assert_array_equal(guessed, whole)
    whole, choice = after(60, 0)
    assert choice == last
    np.testing.assert_allclose(after(60, last)[0], whole, rtol=1e-4, atol=1e-5)
