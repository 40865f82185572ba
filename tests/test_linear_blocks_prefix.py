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
from plural_jax.density import linear_blocks, linear_blocks_summary, tilt_blocks
from plural_jax.density import linear_blocks_prefix as prefix
from plural_jax.density.core import DensityState
from plural_jax.density.linear_blocks import Measured
from plural_jax.density.linear_blocks_masses import Format, mix
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
    """Compare all infos with the oracle and with whole summaries; returns the infos, the oracle's, and masses."""
    rewards, phis, starts = (np.asarray(x, dtype) for x in (rewards, phis, starts))
    args = rewards, phis, starts, dtype(eps), num_steps, every
    got = run(*args)
    expected, masses = compare(got, *args)
    whole = whole(*args)
    tolerance, lost = _TOLERANCE[dtype]
    for name in got._fields:
        # However small: what is left out changes no digit.
        atol = {"basin_mass": 0.0, "outside_mass": 0.0, "reward_variance": lost}.get(name, tolerance / 4)
        np.testing.assert_allclose(
            getattr(got, name), getattr(whole, name), rtol=tolerance / 2, atol=atol, err_msg=name
        )
    return got, expected, masses


#: Rounding of sums over 2,048 cells in any order. A variance keeps no digits below those of the squared mean.
_TOLERANCE = {np.float32: (3e-4, 1e-9), np.float64: (1e-10, 1e-26)}


def compare(got, rewards, phis, starts, eps, num_steps, every):
    """Compare the infos of a batch with the oracle; returns the oracle's infos and masses."""
    exact = [np.asarray(x, np.float64) for x in (rewards, phis, starts)]
    pairs = [oracle(exact[0], f, s, float(eps), num_steps, every) for f, s in zip(*exact[1:], strict=True)]
    expected = jax.tree.map(lambda *x: np.array(x), *[infos for infos, _ in pairs])
    tolerance = _TOLERANCE[rewards.dtype.type][0]
    for name in got._fields:
        a, b = np.asarray(getattr(got, name)), getattr(expected, name)
        assert a.dtype == rewards.dtype and a.shape == b.shape, name
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=name)
    return expected, np.array([masses for _, masses in pairs])


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


def mass_that_moves_twice(rng, noise=0.05):
    """Rewards [2, N] and four starts [4, N] whose last slice in the order regrows, most of it within one block.

    A holds the mass; F is best for the second preference but has mass 1e-200; L comes last in the order, has mass 1e-20 to
    1e-14, and holds the second preference's share for a while before F does. The rest never matters.
    """
    tilt = np.empty((2, 32, N // 32))
    tilt[0], tilt[1] = 0.5, 1e-3
    log_p = np.full((32, N // 32), -200.0)
    tilt[:, A], log_p[A] = np.array([[1.0], [1e-3]]), 0.0
    tilt[:, F], log_p[F] = np.array([[1e-6], [1.0]]), -460.0
    tilt[:, L], log_p[L] = np.array([[1e-6], [0.05]]), -46.0
    rewards = np.log(tilt) - noise * rng.random(tilt.shape)
    starts = np.array([log_p + 0.1 * rng.random(log_p.shape) for _ in range(4)])
    starts[:, L] += np.array([[0.0], [5.0], [10.0], [14.0]])
    return rewards.reshape(2, N), starts.reshape(4, N)


A, F, L = 3, 17, 29
MOVING_PHIS = np.array([[0.5, 0.5], [0.6, 0.4], [0.4, 0.6], [0.45, 0.55]])


def test_a_slice_that_was_left_out_grows_back(rng):
    rewards, starts = mass_that_moves_twice(rng)
    # So that F has cells outside the basins, where W is higher than in L.
    rewards.reshape(2, 32, -1)[1, F] -= 0.3 * rng.random(N // 32)
    _, expected, masses = check(rewards, MOVING_PHIS, starts)
    share = masses.reshape(4, 60, 32, -1).sum(3)
    assert share[0, 2, L] < 1e-13 and (share[:, :, L].max(1) > 0.1).all()
    # The highest W, and the highest outside, where there is hardly any mass.
    assert share[0, 2, F] < 1e-100 and expected.log_max_w[0, 2] > 4


class Recorder(Observer):
    """In place of the numbers of a summary: the bounds that it is given, and the rows that say where there are none."""

    def __call__(self, masses, z, measured, bounds, choice):
        return bounds, choice

    def careful(self, log_p, log_w):
        return jnp.full((self.phi.shape[0], prefix.SLICES, self.phi.shape[2]), jnp.nan, self.form.dtype)


@functools.partial(jax.jit, static_argnums=3)
def bounds_of(rewards, phis, starts, num_steps):
    """Bounds on q in each slice after every round, [G, T, 32, C] in the order of the cells; NaN after a log round."""
    large = jax.vmap(lambda r: pj.density.large_pool(pj.Landscape(rewards=r), phis[0]).step.args)
    problem, multiplier = large(rewards)
    phi, log_p = (jnp.broadcast_to(x.T, (2, *x.T.shape)) for x in (phis, starts))
    problem = problem._replace(phi=None, log_uniform=None)
    with (
        mock.patch.object(prefix, "pays", lambda *_: True),
        mock.patch.object(linear_blocks, "Observer", Recorder),
        mock.patch.object(linear_blocks, "num_rows", lambda m: prefix.SLICES),
        mock.patch.object(linear_blocks, "unpack", lambda rows, m: rows),
    ):
        _, bounds = tilt_blocks.xla_rounds(num_steps, 1, (problem, multiplier), phi, log_p)
    order = prefix.best_first(jnp.exp(rewards - rewards.max(axis=2, keepdims=True)))
    back = jnp.argsort(order, axis=1)
    return jnp.take_along_axis(bounds, back[:, None, :, None], axis=2)


def test_bounds_of_every_round(rng):
    """No slice ever has more mass than its bound; and hardly less, where rewards are constant in the slice."""
    cells, starts = mass_that_moves_twice(rng)
    flat, _ = mass_that_moves_twice(rng, noise=0.0)
    args = [np.asarray(x, np.float32) for x in (np.stack([cells, flat]), MOVING_PHIS, starts)]
    bounds = np.asarray(bounds_of(*args, 60), np.float64) * 2.0 ** -Format.of(np.float32).scale
    rewards, phis, starts = (np.asarray(x, np.float64) for x in args)
    for r, bound, loosest in zip(rewards, np.moveaxis(bounds, 3, 1), (10, 1.001), strict=True):
        mass = np.array([oracle(r, f, s, 0.1, 60, 1)[1] for f, s in zip(phis, starts, strict=True)])
        mass = mass.reshape(4, 60, 32, -1).sum(3)
        known = ~np.isnan(bound)
        assert known.mean() > 0.9
        assert (bound >= mass * (1 - 1e-4))[known].all()
        # Cells below the range of float32 have a false mass.
        shown = known & (mass > 1e-30)
        assert (bound <= mass * loosest)[shown].all()
        # A slice regrows by many orders of magnitude before the masses are summed anew.
        assert known[3, :6, L].all() and mass[3, 5, L] > 1e5 * mass[3, 0, L] > 0


def test_batches_of_landscapes(rng):
    """Each with its own order of the cells; in float64, with a number of cells that is filled up, every fifth round."""
    n, num_steps, every = 2050, 60, 5
    x = np.linspace(-5.0, 5.0, n)
    centers = np.array([[[-1.5], [1.5]], [[3.5], [0.5]]])
    rewards = 5.0 * np.exp(-0.5 * (x - centers) ** 2)
    starts = np.log(rng.dirichlet(np.ones(n), size=4))
    with mock.patch.object(prefix, "LENGTHS", (32, 12)), mock.patch.object(linear_blocks_summary, "LENGTHS", (32, 12)):
        batch = jax.vmap(jax.vmap(infos_of, (None, 0, 0, None, None, None)), (0, None, None, None, None, None))
        got = jax.jit(batch, static_argnums=(4, 5))(rewards, PHIS, starts, 0.1, num_steps, every)
    for g in range(2):
        compare(jax.tree.map(lambda v, g=g: v[g], got), rewards[g], PHIS, starts, 0.1, num_steps, every)


@pytest.mark.slow
@pytest.mark.parametrize(("m", "n", "every", "dtype"), [(1, 2050, 5, np.float32), (5, N, 1, np.float64)])
def test_other_numbers_of_preferences(rng, m, n, every, dtype):
    x = np.linspace(-5.0, 5.0, n)
    rewards = rng.uniform(2, 8, (m, 1)) * np.exp(-0.5 * (x - rng.uniform(-4, 4, (m, 1))) ** 2)
    starts = np.log(rng.dirichlet(np.ones(n), size=32))
    check(rewards, rng.dirichlet(np.ones(m), size=32), starts, num_steps=40, every=every, dtype=dtype, whole=run)


CUTS = tuple(N // prefix.SLICES * cut for cut in (0, *prefix.CUTS))


def observer():
    """An observer of four configurations of two bumps in float32, its tilts and the order of its slices."""
    rewards = jnp.asarray(bumps(3.0), jnp.float32)
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
    phis, live = jnp.asarray(PHIS.T, jnp.float32)[None], jnp.ones((1, N, 1), bool)

    def w_first(measured, length):
        return mix(measured.weights, tilt[:, :, :length])

    slices = prefix.Slices.of(tilt, problem.basins, problem.outside)
    made = Observer(
        Format.of(np.float32), problem, Partial(lambda p, log_p: log_p), tilt, phis, live, CUTS, slices, w_first
    )
    return made, tilt, order


@jax.jit
def observed(log_p, guess):
    """The numbers and the choice of a summary of densities [N, 4] that begins with a guess."""
    observe, tilt, order = observer()
    form = observe.form
    masses = form.from_log(prefix.reorder(log_p[None], order, 1), CUTS)
    q = [part.q for part in masses]
    z = jnp.matmul(tilt, jnp.concatenate(q, axis=1)) * 2.0**-form.scale
    return observe(masses, z, Measured(observe.phi / z, z, 1 / jnp.min(z)), observe.slices.masses(q), guess)


@jax.jit
def ordered(x):
    """Tilts and x [1, 3, N, 2] in order, the order, and x back in its own."""
    _, tilt, order = observer()
    there = prefix.reorder(x, order, 2)
    return tilt, there, order, prefix.reorder(there, jnp.argsort(order, axis=1), 2)


def test_order_and_its_inverse(rng):
    x = rng.normal(size=(1, 3, N, 2))
    tilt, there, _, back = (np.asarray(v) for v in ordered(x))
    highest = tilt.sum(axis=1).reshape(prefix.SLICES, -1).max(axis=1)
    assert (np.diff(highest) <= 0).all()
    assert not np.array_equal(there, x)
    np.testing.assert_array_equal(back, x)


def test_cells_are_left_out_when_and_only_when_that_is_proven():
    def after(rounds, guess):
        log_p = np.tile(UNIFORM[:, None], (1, 4))
        for _ in range(rounds):
            for k in range(4):
                log_p[:, k] += oracles.large_pool_log_w(log_p[:, k], bumps(3.0), PHIS[k])
        return observed(np.asarray(log_p, np.float32), np.int32(guess))

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


@pytest.mark.parametrize("tiny", ["outside", "variance", "entropy"])
def test_what_may_be_left_out_of_a_tiny_number(rng, tiny):
    """A slice far down the order is read if, and only if, it could change the last digit of the smallest number."""
    rewards = bumps(3.0).astype(np.float32).astype(np.float64)
    shortfall = rewards.max(1, keepdims=True) - rewards
    order = np.asarray(ordered(np.zeros((1, 3, N, 2)))[2])[0]
    early = np.isin(np.arange(N) // 64, order[: prefix.LENGTHS[-1]])
    basin = shortfall <= 0.1
    near = np.flatnonzero(early & ~basin.any(0) & (shortfall.min(0) < 0.2))
    p = PHIS @ (basin / basin.sum(1, keepdims=True))
    if tiny == "variance":
        p[0] = shortfall[0] == 0
    p[:, near] += {"outside": 1e-18, "variance": 1e-3, "entropy": 0.05}[tiny] * rng.dirichlet(np.ones(near.size))
    p /= p.sum(1, keepdims=True)
    # What the dropped slice may add: the rounding of one of 32 slices, by what a unit of its mass can change a number.
    mean = shortfall @ p[0]
    variance = ((shortfall - mean[:, None]) ** 2) @ p[0]
    numbers = [
        *mean / shortfall.max(1),
        *variance / shortfall.max(1) ** 2,
        p[0, ~basin.any(0)].sum(),
        1 / (126 * np.log(2)),
    ]
    assert np.argmin(numbers) in {"outside": [4], "variance": [2, 3], "entropy": [5]}[tiny]
    allowed = min(numbers) * 2.0**-25 / 32

    def chosen(number, share):
        q = p.copy()
        q[0, order[number - 1] * 64 + rng.integers(64)] += share * allowed
        with np.errstate(divide="ignore"):
            return int(observed(np.log(q.T).astype(np.float32), np.int32(3))[1])

    for number, choice in ((9, 2), (12, 2), (13, 1), (20, 1), (21, 0), (32, 0)):
        assert chosen(number, 1.05) == choice
        assert chosen(number, 0.95) == 3
