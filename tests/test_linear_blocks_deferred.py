"""Rounds in which most cells wait: against NumPy in float64, where the mass of waiting cells comes to matter.

2,048 cells, with few configurations filled up to 32, are just enough for cells to wait.
"""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import plural_jax as pj
from plural_jax.density import linear_blocks
from plural_jax.density.core import DensityState
from plural_jax.density.linear_blocks_deferred import ROUNDS, Deferred
from plural_jax.density.linear_blocks_masses import Format, Masses
from plural_jax.density.linear_blocks_strides import Strides
from tests import oracles
from tests.test_linear_blocks_prefix import MOVING_PHIS, UNIFORM, N, X, bumps, mass_that_moves_twice

NUM_STEPS = 96
taken = []


class Counted(Deferred):
    """Also notes how many rounds each block took while others waited."""

    def __call__(self, masses, others, stride, limit):
        masses, num_rounds, others = super().__call__(masses, others, stride, limit)
        jax.debug.callback(lambda number: taken.append(int(number)), num_rounds)
        return masses, num_rounds, others


@functools.partial(jax.jit, static_argnums=(3, 4))
def run(rewards, phis, starts, num_steps, every):
    """States and infos of a batch of weights and starts."""

    def one(phi, log_p):
        process = pj.density.large_pool(pj.Landscape(rewards=rewards), phi)
        return process.rounds(None, DensityState(log_p, log_p), num_steps, every)

    with mock.patch.object(linear_blocks, "Deferred", Counted):
        return jax.vmap(one)(phis, starts)


def check(rewards, phis, starts, every=NUM_STEPS, dtype=np.float32):
    """Compare log-masses and some infos with NumPy; returns the number of rounds of each block in which others waited."""
    rewards, phis, starts = (np.asarray(x, dtype) for x in (rewards, phis, starts))
    taken.clear()
    state, infos = run(rewards, phis, starts, NUM_STEPS, every)
    jax.effects_barrier()
    assert taken  # or nothing would be said of waiting
    assert state.log_p.dtype == dtype
    tolerance = 1e-4 if dtype == np.float32 else 1e-10
    rewards, phis, starts = (np.asarray(x, np.float64) for x in (rewards, phis, starts))
    for k, (phi, log_p) in enumerate(zip(phis, starts, strict=True)):
        for t in range(NUM_STEPS):
            log_p = log_p + oracles.large_pool_log_w(log_p, rewards, phi)
            log_p = log_p - oracles.log_sum_exp(log_p)
            if (t + 1) % every == 0:
                save = (t + 1) // every - 1
                mean = rewards @ np.exp(log_p)
                np.testing.assert_allclose(infos.reward_mean[k, save], mean, rtol=tolerance, atol=tolerance)
                p, live = np.exp(log_p), log_p > -np.inf
                entropy = -np.sum(p[live] * log_p[live])
                np.testing.assert_allclose(infos.entropy[k, save], entropy, rtol=tolerance, atol=tolerance)
        np.testing.assert_array_equal(np.isneginf(state.log_p[k]), np.isneginf(log_p))
        live = log_p > -np.inf
        np.testing.assert_allclose(state.log_p[k][live], log_p[live], rtol=tolerance, atol=tolerance)
    return np.array(taken)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("m", [1, 2, 3])
def test_most_rounds_leave_most_cells_waiting(rng, m, dtype):
    rewards = 9 * np.exp(-4.0 * (X - np.linspace(-1.5, 1.5, m)[:, None]) ** 2)
    phis = rng.dirichlet(np.ones(m), size=4)
    rounds = check(rewards, phis, [UNIFORM] * 4, dtype=dtype)
    assert rounds.sum() > NUM_STEPS // 3 and rounds.max() <= ROUNDS


def test_summaries_between(rng):
    """Every 16th round, so that blocks are cut; with weights that are zero, and cells without mass."""
    starts = np.log(rng.dirichlet(np.full(N, 0.3), size=4) + 1e-300)
    starts[2, np.abs(X) > 2.0] = -np.inf
    starts[3, rng.random(N) < 0.4] = -np.inf
    phis = np.array([[0.5, 0.5], [1.0, 0.0], [0.85, 0.15], [1e-4, 1 - 1e-4]])
    assert check(bumps(3.0), phis, starts, every=16).sum() > NUM_STEPS // 2


def test_nothing_waits_where_mass_never_concentrates():
    assert not check(bumps(3.0, height=1e-3), MOVING_PHIS, [UNIFORM] * 4).any()


def test_a_slice_that_waits_grows_back(rng):
    """The last slice comes to hold a tenth of the mass and more, from 1e-14 and less: waiting must end before."""
    rewards, starts = mass_that_moves_twice(rng)
    rounds = check(rewards, MOVING_PHIS, starts)
    assert rounds.any() and (rounds[:2] < ROUNDS).any()


@pytest.mark.parametrize("lowest", [-8.0, -40.0, -300.0])
def test_shares_whose_powers_underflow(rng, lowest):
    """Waiting cells at which one preference's tilt is lost beside the other's, and cells where both are tiny."""
    rewards = np.full((2, 32, N // 32), lowest)
    rewards[:, 3], rewards[:, 9] = np.array([[0.0], [-1.0]]), np.array([[-1.0], [0.0]])
    rewards[0, 12:20] = rng.uniform(-4, -3, (8, N // 32))
    rewards[1, 20:28] = rng.uniform(-4, -3, (8, N // 32))
    rewards = (rewards - 0.1 * rng.random(rewards.shape)).reshape(2, N)
    starts = np.log(rng.dirichlet(np.ones(N), size=4))
    phis = np.array([[0.5, 0.5], [0.999, 0.001], [0.2, 0.8], [0.0, 1.0]])
    rounds = check(rewards, phis, starts)
    assert rounds.any() or lowest < -8.0


@pytest.mark.parametrize("m", [1, 2, 4])
@pytest.mark.parametrize("num_rounds", [2, 4, 6, ROUNDS])
def test_catching_up_is_the_product_of_w(rng, m, num_rounds):
    tilt = np.exp(-rng.uniform(0, 6, (2, m, 64)))
    tilt[0, :, 50] = 0.0  # a cell without mass
    weights = rng.uniform(0, 3, (ROUNDS, 2, m, 5))
    weights[:, 0, 0, 1] = 0.0
    q = rng.uniform(1, 2, (2, 48, 5))
    q[0, 50 - 16] = 0.0
    setting = mock.Mock(form=Format.of(np.float64), tilt=jnp.asarray(tilt), cuts=(0, 16, 64))
    masses = (Masses(jnp.asarray(q), jnp.zeros(q.shape, jnp.int32)),)
    strides = Strides(setting, None)
    record = weights
    if strides.num_rounds == 2:
        u, v = weights[::2], weights[1::2]
        pairs = [(i, j) for i in range(m) for j in range(i, m)]
        both = [u[:, :, i] * v[:, :, j] + (u[:, :, j] * v[:, :, i] if i < j else 0) for i, j in pairs]
        record = np.stack(both, axis=2)
    got = Deferred(setting, strides)._catch_up(masses, jnp.asarray(record), jnp.int32(num_rounds))
    expected = q * np.prod(np.einsum("tgmc,gmn->tgnc", weights, tilt)[:num_rounds, :, 16:], axis=0)
    np.testing.assert_allclose(got[0].q, expected, rtol=1e-13)
