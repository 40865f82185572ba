"""Two rounds from one reading: against rounds one after another in NumPy, and where products of tilts underflow."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import plural_jax as pj
from plural_jax.density import linear_blocks_masses, tilt_blocks
from plural_jax.density.linear_blocks import Setting
from plural_jax.density.linear_blocks_masses import Format, Masses, in_place
from tests import oracles

CUTS = (0, 8, 24)


def given(rng, m, columns=5, groups=2, n=CUTS[-1]):
    """A rule of large pools and masses in its format, with the tilts, weights and densities as NumPy arrays."""
    form = Format.of(np.float64)
    tilt = np.exp(-rng.uniform(0, 4, (groups, m, n)))
    phi = np.moveaxis(rng.dirichlet(np.ones(m), (groups, columns)), 2, 1)
    p = np.moveaxis(rng.dirichlet(np.ones(n), (groups, columns)), 2, 1)
    w_low = np.min(np.einsum("gmc,gmn->gnc", phi, tilt))
    problem = mock.Mock()
    live = jnp.ones((groups, n, 1), bool)
    setting = Setting(form, problem, None, jnp.asarray(tilt), jnp.asarray(phi), live, jnp.asarray(w_low), CUTS, False)
    q = jnp.asarray(p * 2.0**form.scale)
    masses = tuple(Masses(q[:, a:b], jnp.zeros(q[:, a:b].shape, jnp.int32)) for a, b in ((0, 8), (8, 24)))
    return tilt_blocks.Tilts(setting).strides(), masses, tilt, phi, p


def rounds(tilt, phi, p, number):
    """Densities after some rounds, and W of each."""
    w = []
    for _ in range(number):
        z = np.einsum("gmn,gnc->gmc", tilt, p)
        w.append(np.einsum("gmc,gmn->gnc", phi / z, tilt))
        p = p * w[-1]
    return p, w


@pytest.mark.parametrize("m", [1, 2, 3, 5])
def test_a_stride_is_rounds_one_after_another(rng, m):
    strides, masses, tilt, phi, p = given(rng, m)
    assert strides.num_rounds == (2 if m <= 2 else 1)
    stride = strides.next(strides.sums(masses))
    expected, w = rounds(tilt, phi, p, strides.num_rounds)
    taken = strides.take(masses, stride, jnp.int32(strides.num_rounds))
    q = np.concatenate([part.q for part in taken.masses], axis=1)
    np.testing.assert_allclose(q * 2.0 ** -Format.of(np.float64).scale, expected, rtol=1e-12)
    assert int(taken.num_rounds) == strides.num_rounds
    # The bounds hold, and are no looser than they say.
    z = np.einsum("gmn,gnc->gmc", tilt, p)
    np.testing.assert_allclose(stride.highest[0], 1 / z.min(), rtol=1e-12)
    # With one preference they are what is bounded, but for rounding.
    found = np.asarray(stride.highest) * (1 + 1e-12)
    assert found[0] >= w[0].max() and found[1] >= w[-1].max() * (m <= 2)
    assert found[2] >= w[0][:, CUTS[1] :].max() and found[3] >= np.prod(w, axis=0)[:, CUTS[1] :].max()


@pytest.mark.parametrize("limit", [0, 1, 2, 7, 8])
def test_strides_fit_into_the_limit_and_are_recorded(rng, limit):
    strides, masses, tilt, phi, p = given(rng, 2)
    taken = jax.jit(lambda limit: strides.take(masses, strides.next(strides.sums(masses)), limit, most=4))(limit)
    number = limit // 2 * 2
    assert int(taken.num_rounds) == number
    expected, w = rounds(tilt, phi, p, number)
    got = np.concatenate([part.q for part in taken.masses], axis=1) * 2.0 ** -Format.of(np.float64).scale
    np.testing.assert_allclose(got, expected, rtol=1e-11)
    products = np.stack([tilt[:, 0] ** 2, tilt[:, 0] * tilt[:, 1], tilt[:, 1] ** 2], axis=1)
    for k in range(number // 2):
        factor = np.einsum("grc,grn->gnc", taken.record[k], products)
        np.testing.assert_allclose(factor, w[2 * k] * w[2 * k + 1], rtol=1e-11)


def test_bounds_on_what_is_not_read(rng):
    strides, masses, tilt, phi, p = given(rng, 2)
    stride = strides.next(strides.sums(masses[:1]))
    others = np.max(np.einsum("gmn,gnc->gmc", tilt[:, :, 8:], p[:, 8:]))
    taken = strides.take(masses[:1], stride, jnp.int32(6), jnp.asarray(others), lambda others, highest: others >= 0)
    for _ in range(6):
        z = np.einsum("gmn,gnc->gmc", tilt[:, :, :8], p[:, :8])
        p = p * np.einsum("gmc,gmn->gnc", phi / z, tilt)
    # The bound holds after all rounds, and one of zero, which is what underflow makes of it, does not stay zero.
    assert float(taken.others) * (1 + 1e-12) >= np.max(np.einsum("gmn,gnc->gmc", tilt[:, :, 8:], p[:, 8:]))
    none = strides.take(masses[:1], stride, jnp.int32(6), jnp.zeros(()), lambda others, highest: others >= 0)
    assert float(none.others) > 0


def compare(rewards, start, num_steps, every):
    """Log-masses of a run in float32 against NumPy in float64."""
    rewards, start = np.asarray(rewards, np.float32), np.asarray(start, np.float32)
    phi = np.array([0.5, 0.5])
    process = pj.density.large_pool(pj.Landscape(rewards=rewards), phi.astype(np.float32))
    state = process.init()._replace(log_p=jnp.asarray(start))
    state, _ = jax.jit(lambda state: process.rounds(None, state, num_steps, every))(state)
    rewards, log_p = rewards.astype(np.float64), start.astype(np.float64)
    for _ in range(num_steps):
        log_p = log_p + oracles.large_pool_log_w(log_p, rewards, phi)
        log_p = log_p - oracles.log_sum_exp(log_p)
    np.testing.assert_allclose(state.log_p, log_p, rtol=2e-5, atol=3e-4)


@pytest.mark.parametrize("depth", [20.0, 50.0, 80.0])
@pytest.mark.parametrize("every", [3, 8, 24])
def test_rewards_of_a_wide_range(rng, depth, every):
    rewards = rng.uniform(-depth, 0, (2, 96))
    rewards[0, 5] = rewards[1, 70] = 0.0
    rewards[:, 30:33] = -depth
    compare(rewards, np.log(rng.dirichlet(np.ones(96))), 24, every)


def test_products_of_tilts_that_underflow(rng):
    """A cell with tilts 2^-45 and 2^-84, whose product is lost, where the second preference has a weight of 2^30."""
    rewards = rng.uniform(-1e-3, 0, (2, 96)) + np.array([[0.0], [-21.5]])
    rewards[:, 1] = -25.0, 0.0
    rewards[:, 2] = -31.0, -58.0
    start = np.full(96, -np.log(96))
    start[1] = -28.0
    compare(rewards, start - oracles.log_sum_exp(start), 2, 2)


def test_updates_in_parts_change_nothing(rng, monkeypatch):
    x, table = rng.random((2, 12, 3)), jnp.asarray(rng.random((2, 4, 12)))

    def update(x, cells):
        return x * cells(table, 2)[:, 1, :, None]

    whole = in_place(update, jnp.asarray(x))
    monkeypatch.setattr(linear_blocks_masses, "_ENTRIES_AT_ONCE", 8)
    parts = jax.jit(lambda x: in_place(update, x))(x)
    np.testing.assert_array_equal(whole, parts)
    np.testing.assert_allclose(parts, x * np.asarray(table)[:, 1, :, None], rtol=1e-15)
