"""The large-K tilt: against NumPy, against the theory that holds for every landscape, and at the edges of the numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import plural_jax as pj
from tests import oracles

STEPS = 25


def random_problem(rng, m, n, scale=3.0):
    rewards = rng.normal(size=(m, n)) * scale
    phi = rng.dirichlet(np.ones(m))
    log_p = np.log(rng.dirichlet(np.ones(n)))
    return rewards, phi, log_p


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("m", [1, 2, 5])
def test_against_numpy(rng, m, dtype):
    rewards, phi, log_p = random_problem(rng, m, 30)
    rewards = rewards.astype(dtype)
    temperature, eps = 1.7, 0.4
    process = pj.density.large_pool(pj.Landscape(rewards=rewards), phi, temperature=temperature, eps=eps)
    final, trace = pj.run(process, process.init(log_p), STEPS)
    tolerance = 1e-11 if dtype == np.float64 else 2e-4
    for t in range(STEPS):
        log_p = log_p + oracles.large_pool_log_w(log_p, rewards, phi, temperature)
        log_p = log_p - oracles.log_sum_exp(log_p)
        log_w = oracles.large_pool_log_w(log_p, rewards, phi, temperature)
        expected = oracles.summary(log_p, log_w, rewards, phi, eps, temperature)
        for name, value in expected.items():
            got = getattr(trace, name)
            assert got.dtype == dtype
            np.testing.assert_allclose(got[t], value, rtol=tolerance, atol=tolerance, err_msg=f"{name} in round {t}")
    np.testing.assert_allclose(final.log_p, log_p, rtol=tolerance, atol=tolerance * STEPS)


# One compiled function for every example: hypothesis draws numbers, not shapes.
_M, _N = 3, 12


@jax.jit
def _trajectory(rewards, phi, log_p):
    process = pj.density.large_pool(pj.Landscape(rewards=rewards), phi)
    return pj.run(process, process.init(log_p), STEPS, save=lambda state, info: (state, info))[1]


@st.composite
def landscapes(draw):
    numbers = st.floats(-20, 20, allow_nan=False, width=32)
    rewards = draw(st.lists(st.lists(numbers, min_size=_N, max_size=_N), min_size=_M, max_size=_M))
    weights = np.array(draw(st.lists(st.floats(0.01, 1), min_size=_M, max_size=_M)))
    mass = np.array(draw(st.lists(st.floats(1e-3, 1), min_size=_N, max_size=_N)))
    return np.array(rewards, np.float64), weights / weights.sum(), np.log(mass / mass.sum())


@settings(max_examples=150, deadline=None)
@given(landscapes())
def test_what_holds_for_every_landscape(example):
    rewards, phi, start = example
    state, info = _trajectory(jnp.asarray(rewards), jnp.asarray(phi), jnp.asarray(start))
    p = np.exp(np.asarray(state.log_p))
    objective = np.asarray(info.objective)
    scale = 1e-12 * (1 + np.abs(objective).max())
    # Eq. 5 conserves mass.
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-12)
    # F never decreases, and gains at least KL(p_{t+1} || p_t) in a round.
    gain = np.diff(objective)
    kl = np.sum(p[1:] * (np.asarray(state.log_p)[1:] - np.asarray(state.log_p)[:-1]), axis=1)
    assert (gain >= kl - scale).all() and (kl >= -scale).all()
    # log max W bounds what any density could still gain: here, every later one, and the best single atom.
    certificate = np.asarray(info.log_max_w)
    assert (certificate >= -scale).all()
    assert (objective[-1] - objective <= certificate + scale).all()
    assert ((phi @ rewards).max() - objective <= certificate + scale).all()
    # W averages to one, so its largest value is at least one and F of the density stays below the rewards' maxima.
    assert (objective <= phi @ rewards.max(1) + scale).all()


def test_outside_mass_decays_by_sup_w():
    """Lemma 3: m_{t+1} <= rho_t m_t, with the sup of W_t outside the basins that the info reports."""
    land = pj.Landscape.on(pj.Grid.uniform(-5.0, 5.0, 100), pj.rewards.bump([-2.0, 2.0], 5.0, 1.0))
    process = pj.density.large_pool(land, [0.4, 0.6])
    _, trace = pj.run(process, process.init(), STEPS)
    bound = np.asarray(trace.outside_mass[:-1]) * np.exp(np.asarray(trace.log_sup_w_outside[:-1]))
    assert (np.asarray(trace.outside_mass[1:]) <= bound * (1 + 1e-12)).all()


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4])
def test_offset_changes_nothing_in_float32(rng, offset):
    rewards = rng.integers(-40, 40, size=(2, 20)).astype(np.float32) / 8  # exact in float32 with the offset added
    process = pj.density.large_pool(pj.Landscape(rewards=rewards), [0.3, 0.7])
    moved = pj.density.large_pool(pj.Landscape(rewards=rewards + np.float32(offset)), [0.3, 0.7])
    plain, shifted = (pj.run(p, p.init(), STEPS, save="density")[1].log_p for p in (process, moved))
    np.testing.assert_array_equal(plain, shifted)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rewards_of_ten_thousand(rng, dtype):
    rewards = rng.uniform(-1e4, 1e4, size=(2, 40)).astype(dtype)
    phi, log_p = np.array([0.3, 0.7]), np.full(40, -np.log(40))
    process = pj.density.large_pool(pj.Landscape(rewards=rewards), phi)
    final, trace = pj.run(process, process.init(), STEPS)
    for _ in range(STEPS):
        log_p = log_p + oracles.large_pool_log_w(log_p, rewards, phi)
    assert np.isfinite(final.log_p).all()
    assert all(np.isfinite(leaf).all() for leaf in trace)
    # Log-masses reach -1e5, where one unit in the last place of float32 is 0.01.
    np.testing.assert_allclose(final.log_p, log_p, rtol=1e-6 if dtype == np.float32 else 1e-12, atol=1e-8)


def test_finds_a_mode_whose_mass_underflows():
    """A start N(0, 1) has mass 1e-49 at x = 15, below float32; a reward centred there must still find it."""
    grid = pj.Grid.uniform(np.float32(-5), np.float32(20), 501)
    land = pj.Landscape.on(grid, pj.rewards.quadratic(np.array([15.0, 0.0], np.float32), np.float32(0.5)))
    process = pj.density.large_pool(land, [0.5, 0.5])
    state = process.init(land.gaussian(0.0, 1.0))
    assert state.log_p.dtype == np.float32
    assert -120 < state.log_p[400] < -110  # e^-116 = 1e-50
    _, trace = pj.run(process, state, 50)
    assert trace.reward_mean[-1, 0] > -0.5 * 15**2 / 2 - 1
    x = np.asarray(land.points)[:, 0].astype(np.float64)
    log_p, rewards = -(x**2) / 2, -0.5 * (x[None] - np.array([[15.0], [0.0]])) ** 2
    log_p = log_p - oracles.log_sum_exp(log_p)
    for t in range(50):
        log_p = log_p + oracles.large_pool_log_w(log_p, rewards, [0.5, 0.5])
        np.testing.assert_allclose(trace.reward_mean[t], rewards @ np.exp(log_p), rtol=2e-3, atol=2e-3)


def test_atoms_without_mass_stay_without(rng):
    rewards, phi, log_p = random_problem(rng, 2, 10)
    empty = np.setdiff1d(np.arange(10), rewards.argmax(1))[:3]
    log_p[empty] = -np.inf
    process = pj.density.large_pool(pj.Landscape(rewards=rewards), phi, eps=0.0)
    final, trace = pj.run(process, process.init(log_p), STEPS)
    kept = np.setdiff1d(np.arange(10), empty)
    assert (np.asarray(final.log_p)[empty] == -np.inf).all()
    smaller = pj.density.large_pool(pj.Landscape(rewards=rewards[:, kept]), phi, eps=0.0)
    other, other_trace = pj.run(smaller, smaller.init(log_p[kept]), STEPS)
    np.testing.assert_allclose(np.asarray(final.log_p)[kept], other.log_p, atol=1e-11)
    for a, b in zip(trace, other_trace, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-11)


def test_unused_preference_changes_nothing(rng):
    rewards, _, log_p = random_problem(rng, 3, 15)
    rewards[2] *= 100
    full = pj.density.large_pool(pj.Landscape(rewards=rewards), [0.4, 0.6, 0.0])
    part = pj.density.large_pool(pj.Landscape(rewards=rewards[:2]), [0.4, 0.6])
    a, b = (pj.run(p, p.init(log_p), STEPS)[0].log_p for p in (full, part))
    np.testing.assert_allclose(a, b, atol=1e-11)


def basin_mass(phi, distance, rounds=True):
    grid = pj.Grid.uniform(-4.0, 4.0, 41)
    land = pj.Landscape.on(grid, pj.rewards.bump(jnp.stack([-distance / 2, distance / 2]), 5.0, 1.0))
    process = pj.density.large_pool(land, jnp.stack([phi, 1 - phi]), eps=0.3)
    if not rounds:
        process = process._replace(rounds=None)
    return pj.run(process, process.init(), 10, save="final")[1].basin_mass[0, 0]


@pytest.mark.parametrize("rounds", [True, False])
def test_gradient_of_a_final_basin_mass(rng, rounds):
    at, h = (rng.uniform(0.2, 0.8), rng.uniform(1.8, 2.2)), 1e-5

    def function(phi, distance):
        return basin_mass(phi, distance, rounds)

    gradient = jax.jit(jax.grad(function, (0, 1)))(*at)
    forward = jax.jit(jax.jacfwd(function, (0, 1)))(*at)
    value = jax.jit(function)
    numeric = (
        (value(at[0] + h, at[1]) - value(at[0] - h, at[1])) / (2 * h),
        (value(at[0], at[1] + h) - value(at[0], at[1] - h)) / (2 * h),
    )
    np.testing.assert_allclose(gradient, numeric, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(forward, numeric, rtol=1e-5, atol=1e-8)


def test_gradient_at_phi_zero():
    rewards = jnp.array([[1.0, 0.0, 0.2], [0.0, 1.0, 0.3]])

    def mass(phi):
        process = pj.density.large_pool(pj.Landscape(rewards=rewards), jnp.stack([phi, 1 - phi]))
        return pj.run(process._replace(rounds=None), process.init(), 3, save="final")[1].basin_mass[0, 0]

    slope = jax.grad(mass)(0.0)
    assert np.isfinite(slope)
    np.testing.assert_allclose(slope, (mass(1e-6) - mass(0.0)) / 1e-6, rtol=1e-4)
