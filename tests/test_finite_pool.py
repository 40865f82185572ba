"""The finite-K quadrature: against sums that define it, against Monte Carlo, and in both limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import plural_jax as pj
from plural_jax.density.quadrature import log_bradley_terry
from tests import oracles

M, N = 2, 9


def weights(rewards, log_p, pool_size, temperature=1.0):
    """H_K, [m, n], from the public process."""
    land = pj.Landscape(rewards=rewards)
    process = pj.density.finite_pool(
        land, np.full(len(rewards), 1 / len(rewards)), pool_size=pool_size, temperature=temperature
    )
    _, multiplier = process.step.args
    return np.exp(np.asarray(log_bradley_terry(multiplier.args[0], jnp.asarray(log_p, land.dtype)), np.float64))


def example(rng, scale=3.0, n=N):
    return rng.normal(size=(M, n)) * scale, np.log(rng.dirichlet(np.ones(n)))


@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
def test_two_candidates_are_a_pairwise_sum(rng, scale):
    rewards, log_p = example(rng, scale)
    expected = oracles.pairwise_h(np.exp(log_p), rewards, temperature=0.8)
    np.testing.assert_allclose(weights(rewards, log_p, 2.0, 0.8), expected, rtol=1e-12)


@pytest.mark.parametrize("pool_size", [3, 4])
def test_small_pools_are_sums_over_tuples(rng, pool_size):
    rewards, log_p = example(rng, n=5)
    expected = oracles.brute_h(np.exp(log_p), rewards, pool_size)
    np.testing.assert_allclose(weights(rewards, log_p, pool_size), expected, rtol=1e-12)


def test_float32(rng):
    rewards, log_p = example(rng)
    expected = oracles.pairwise_h(np.exp(log_p), rewards)
    got = weights(rewards.astype(np.float32), log_p, 2.0)
    np.testing.assert_allclose(got, expected, rtol=5e-6)


@pytest.mark.parametrize("pool_size", [10, 60])
def test_against_monte_carlo(rng, pool_size):
    rewards, log_p = example(rng)
    p = np.exp(log_p) / np.exp(log_p).sum()
    mean, bound = oracles.monte_carlo_h(rng, p, rewards, pool_size, 100_000, chance=1e-9)
    np.testing.assert_array_less(np.abs(weights(rewards, log_p, float(pool_size)) - mean), bound)


def test_two_kinds_of_item_in_closed_form():
    """N = 2 atoms: the other K - 1 candidates are a binomial count, for any whole K."""
    from math import comb

    reward, q, k = 2.0, 0.3, 40
    a = np.exp(reward)
    expected = sum(comb(k - 1, j) * q**j * (1 - q) ** (k - 1 - j) * k * a / (a + j * a + (k - 1 - j)) for j in range(k))
    got = weights(np.array([[reward, 0.0]]), np.log([q, 1 - q]), float(k))[0, 0]
    np.testing.assert_allclose(got, expected, rtol=1e-13)


_traced = jax.jit(
    lambda rewards, log_p, k: log_bradley_terry(
        pj.density.finite_pool(pj.Landscape(rewards=rewards), [0.5, 0.5], pool_size=k).step.args[1].args[0], log_p
    )
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-30, 30), min_size=M * N, max_size=M * N),
    st.lists(st.floats(1e-6, 1), min_size=N, max_size=N),
    st.one_of(st.floats(2, 1000), st.just(2.0)),
)
def test_weights_average_to_one_and_stay_below_k(rewards, mass, pool_size):
    rewards, p = np.array(rewards).reshape(M, N), np.array(mass) / np.sum(mass)
    h = np.exp(np.asarray(_traced(rewards, np.log(p), pool_size)))
    np.testing.assert_allclose(h @ p, 1, rtol=1e-11)
    assert (h <= pool_size * (1 + 1e-12)).all()
    # A better atom never weighs less.
    for i in range(M):
        order = np.argsort(rewards[i], kind="stable")
        assert (np.diff(h[i][order]) >= -1e-11).all()


@pytest.mark.parametrize("scale", [5.0, 200.0, 1e4])
def test_traced_rewards_of_any_range(rng, scale):
    """Where the range cannot be read, nodes beyond the table are evaluated on the fly."""
    rewards, log_p = rng.uniform(-scale, scale, (M, N)), np.log(rng.dirichlet(np.ones(N)))
    got = np.asarray(_traced(rewards, log_p, 2.0))
    r = rewards[:, :, None] - rewards[:, None, :]
    expected = np.log(2) + oracles.log_sum_exp(log_p - np.logaddexp(0, -r), axis=-1)
    np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-11)


def test_ten_thousand_in_float32(rng):
    rewards = rng.uniform(-1e4, 1e4, (2, 30)).astype(np.float32)
    process = pj.density.finite_pool(pj.Landscape(rewards=rewards), [0.3, 0.7], pool_size=10.0)
    final, trace = pj.run(process, process.init(), 10)
    assert np.isfinite(final.log_p).all() and all(np.isfinite(leaf).all() for leaf in trace)


def test_large_table_is_cut_and_nothing_changes(rng, monkeypatch):
    rewards, log_p = example(rng, 30.0)
    whole = weights(rewards, log_p, 7.5)
    monkeypatch.setattr("plural_jax.density.quadrature._MAX_TABLE", 64 * N)
    np.testing.assert_allclose(weights(rewards, log_p, 7.5), whole, rtol=1e-12)


def test_infinity_is_the_large_pool(rng):
    rewards, log_p = example(rng)
    land = pj.Landscape(rewards=rewards)
    large = pj.density.large_pool(land, [0.3, 0.7])

    def final(pool_size):
        process = pj.density.finite_pool(land, [0.3, 0.7], pool_size=pool_size)
        return pj.run(process, process.init(log_p), 5)[0].log_p

    expected = pj.run(large, large.init(log_p), 5)[0].log_p
    np.testing.assert_allclose(final(np.inf), expected, atol=1e-12)
    batch = jax.jit(jax.vmap(final))(jnp.array([np.inf, 1e9, 10.0]))
    np.testing.assert_allclose(batch[0], expected, atol=1e-12)
    np.testing.assert_allclose(batch[1], expected, atol=1e-6)
    np.testing.assert_allclose(batch[2], final(10.0), atol=1e-11)


def test_distance_to_the_limit_falls_like_lemma_b3(rng):
    """Lemma B.3: sup |H_K - H_inf| <= C sqrt(log K / K). The measured fall is faster, like 1/K."""
    rewards, log_p = example(rng, 1.5)
    r = rewards - oracles.log_sum_exp(log_p + rewards, axis=1)[:, None]
    sizes = np.array([10.0, 40.0, 160.0, 640.0, 2560.0])
    gaps = np.array([np.abs(weights(rewards, log_p, k) - np.exp(r)).max() for k in sizes])
    bound = np.sqrt(np.log(sizes) / sizes)
    assert (np.diff(gaps) < 0).all()
    assert (np.diff(gaps / bound) < 0).all()  # the smallest K sets the constant C
    slope = np.polyfit(np.log(sizes[2:]), np.log(gaps[2:]), 1)[0]
    assert -1.1 < slope < -0.9


def final_basin_mass(phi, distance, pool_size, height):
    grid = pj.Grid.uniform(-4.0, 4.0, 21)
    land = pj.Landscape.on(grid, pj.rewards.bump(jnp.stack([-distance / 2, distance / 2]), height, 1.0))
    process = pj.density.finite_pool(land, jnp.stack([phi, 1 - phi]), pool_size=pool_size, eps=height / 5)
    return pj.run(process, process.init(), 4, save="final")[1].basin_mass[0, 0]


@pytest.mark.parametrize("height", [5.0, 90.0])  # the second one needs nodes beyond the table
def test_gradients(rng, height):
    at = (rng.uniform(0.2, 0.8), rng.uniform(1.8, 2.2), rng.uniform(5.0, 20.0))
    both = jax.jit(jax.value_and_grad(final_basin_mass, (0, 1, 2)))
    value = lambda *x: both(*x)[0]  # noqa: E731
    gradient = both(*at, height)[1]
    for i in range(3):
        h = 1e-5 * at[i]
        up, down = ([x + s * h * (i == j) for j, x in enumerate(at)] for s in (1, -1))
        numeric = (value(*up, height) - value(*down, height)) / (2 * h)
        np.testing.assert_allclose(gradient[i], numeric, rtol=2e-5, atol=1e-8)


def test_forward_mode_with_concrete_rewards(rng):
    rewards, log_p = example(rng)
    land = pj.Landscape(rewards=rewards)

    def mass(phi):
        process = pj.density.finite_pool(land, jnp.stack([phi, 1 - phi]), pool_size=6.0)
        return pj.run(process, process.init(log_p), 3, save="final")[1].basin_mass[0, 0]

    both = jax.jit(lambda phi: jax.jvp(mass, (phi,), (jnp.ones_like(phi),)))
    slope, value = both(0.4)[1], lambda phi: both(phi)[0]
    np.testing.assert_allclose(slope, (value(0.4 + 1e-6) - value(0.4 - 1e-6)) / 2e-6, rtol=1e-6)


def test_a_preference_with_phi_k_below_one_dies():
    """H_K <= K, so where the other preference gives nothing W <= phi K: with phi K < 1 the minority's basin must vanish."""
    land = pj.Landscape(rewards=[[20.0, 0.0], [0.0, 20.0]])
    for phi, survives in ((0.15, False), (0.25, True)):
        process = pj.density.finite_pool(land, [phi, 1 - phi], pool_size=5.0)
        mass = pj.run(process, process.init(), 400)[1].basin_mass[-1, 0]
        assert (mass > 0.1) == survives
        assert survives or mass < 1e-20
