"""The shortest sums of exponentials: against 1/S itself, against the least number of terms in theory, and in finite pools."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import plural_jax as pj
from plural_jax.density.exponential_sums import shortest_sum
from plural_jax.density.quadrature import log_bradley_terry
from tests import oracles


@pytest.mark.parametrize("length", [0.0, 0.1, 1.0, 6.0, 13.0, 29.0])
def test_a_sum_is_one_over_s(rng, length):
    log_t, log_w = shortest_sum(length)
    s = np.exp(-length * np.concatenate([rng.random(20_000), [0.0, 1.0]]))
    sums = (np.exp(log_w) * np.exp(-np.exp(log_t) * s[:, None])).sum(axis=1)
    np.testing.assert_allclose(sums * s, 1, rtol=0, atol=3.01e-8)
    assert (np.diff(log_t) > 0).all()


@pytest.mark.parametrize("length", [3.0, 6.0, 12.0, 24.0])
def test_hardly_more_terms_than_the_best(length):
    """The best absolute error of k terms on [1, R] is about 16 exp(-pi^2 k / log(8 R)) (Braess and Hackbusch 2005)."""
    best = np.log(16 / 3e-8) * (length + np.log(8)) / np.pi**2
    assert best - 2.5 < len(shortest_sum(length)[0]) <= best + 1


def test_too_long_an_interval_has_no_short_sum():
    assert shortest_sum(31.0) is None


def weights(process, log_p):
    _, multiplier = process.step.args
    return np.asarray(log_bradley_terry(multiplier.args[0], jnp.asarray(log_p)), np.float64)


@pytest.mark.parametrize("span", [0.5, 5.0, 25.0])
def test_pools_of_any_size_agree_with_double_precision(rng, span):
    """Also sizes that are not whole, and whatever the mass; the other nodes, of float64, have their own tests."""
    rewards = rng.uniform(0, span, (2, 12))
    rewards[:, :2] = [[0, span], [span, 0]]  # the whole range
    landscapes = [pj.Landscape(rewards=rewards.astype(dtype)) for dtype in (np.float32, np.float64)]
    sizes = [2.0, 2.01, 2.5, 3.0, 3.3, 10.0, 10.5, 100.0]

    def all_sizes(land, log_p):
        return np.stack(
            [weights(pj.density.finite_pool(land, [0.3, 0.7], pool_size=k), log_p.astype(land.dtype)) for k in sizes]
        )

    for concentration in (0.1, 1.0):
        p = rng.dirichlet(np.full(12, concentration)) + 1e-9
        single, double = (all_sizes(land, np.log(p / p.sum())) for land in landscapes)
        np.testing.assert_allclose(single, double, atol=6e-6)


def test_a_traced_pool_size_takes_the_same_nodes(rng):
    land = pj.Landscape(rewards=rng.uniform(0, 4, (2, 9)).astype(np.float32))
    log_p = jnp.log(jnp.asarray(rng.dirichlet(np.ones(9)), jnp.float32))
    span = float(np.ptp(np.asarray(land.rewards, np.float64), axis=1).max())

    def h(pool_size):
        process = pj.density.finite_pool(land, [0.5, 0.5], pool_size=pool_size)
        nodes = process.step.args[1].args[0]
        assert nodes.table.shape[1:3] == (1, len(shortest_sum(span + 1)[0])) and nodes.num_far is None
        return log_bradley_terry(nodes, log_p)

    sizes = jnp.asarray([2.0, 7.0, 40.0], jnp.float32)
    rows, slopes = jax.jit(jax.vmap(lambda k: (h(k), jax.jacfwd(h)(k))))(sizes)
    for row, size in zip(rows, (2, 7, 40), strict=True):
        np.testing.assert_allclose(row, h(float(size)), atol=2e-6)
    expected = oracles.pairwise_h(np.exp(np.asarray(log_p, np.float64)), np.asarray(land.rewards, np.float64))
    np.testing.assert_allclose(np.exp(rows[0]), expected, rtol=6e-6)
    # Larger pools prefer the best atom more.
    best = jnp.argmax(land.rewards, axis=1)
    assert (slopes[:, jnp.arange(2), best] > 0).all()


def test_rounds_of_every_temperature(rng):
    """Nodes depend on rewards in units of the temperature; whole rounds agree with those of double precision."""
    rewards = rng.normal(size=(2, 20))
    for temperature in (0.05, 0.5, 3.0):
        finals = []
        for dtype in (np.float32, np.float64):
            land = pj.Landscape(rewards=rewards.astype(dtype))
            process = pj.density.finite_pool(land, [0.4, 0.6], pool_size=5.0, temperature=temperature)
            finals.append(np.asarray(pj.run(process, process.init(), 5, save="final")[0].log_p, np.float64))
        np.testing.assert_allclose(np.exp(finals[0]), np.exp(finals[1]), rtol=5e-4, atol=1e-6)
