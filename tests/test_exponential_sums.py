"""The shortest sums of exponentials: against 1/S itself, against the least number of terms in theory, and in finite pools."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import plural_jax as pj
from plural_jax.density.exponential_sums import shortest_sum
from plural_jax.density.quadrature import log_bradley_terry, short_rule
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
        assert nodes.table.shape[1:3] == (1, len(short_rule(span)[0])) and nodes.num_far is None
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
    for temperature in (0.05, 3.0):
        finals = []
        for dtype in (np.float32, np.float64):
            land = pj.Landscape(rewards=rewards.astype(dtype))
            process = pj.density.finite_pool(land, [0.4, 0.6], pool_size=5.0, temperature=temperature)
            finals.append(np.asarray(pj.run(process, process.init(), 5, save="final")[0].log_p, np.float64))
        np.testing.assert_allclose(np.exp(finals[0]), np.exp(finals[1]), rtol=5e-4, atol=1e-6)


def traced(k, reward_range):
    """H of traced rewards, compiled."""

    def h(rewards, log_p):
        process = pj.density.finite_pool(
            pj.Landscape(rewards=rewards), [0.5, 0.5], pool_size=k, temperature=0.5, reward_range=reward_range
        )
        return log_bradley_terry(process.step.args[1].args[0], log_p)

    return jax.jit(h)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_range_that_is_promised(rng, dtype):
    """The same numbers with fewer nodes if it holds, and the same numbers if it does not."""
    tolerance = {np.float32: 6e-6, np.float64: 1e-11}[dtype]
    log_p = np.log(rng.dirichlet(np.ones(9))).astype(dtype)
    promised, nothing = traced(6.0, 3.0), traced(6.0, None)
    for span in (0.0, 1.0, 2.9999, 3.0, 3.1, 40.0, 300.0):
        rewards = rng.uniform(0, span, (2, 9)).astype(dtype)
        rewards[:, :2] = [0, span]
        both = (h(rewards, log_p) for h in (promised, nothing))
        # log A is rounded, which is an error in proportion to the range.
        np.testing.assert_allclose(*both, rtol=0, atol=tolerance * (1 + span), err_msg=str(span))


def test_gradients_of_rounds_with_a_promise(rng):
    """With and without a promise of 5, within that range and beyond it."""
    shape = rng.uniform(0, 1, (2, 40))
    shape[:, :2] = [0, 1]

    def mass(scale, reward_range):
        land = pj.Landscape(rewards=scale * jnp.asarray(shape, jnp.float32))
        process = pj.density.finite_pool(land, [0.3, 0.7], pool_size=4.0, reward_range=reward_range)
        return pj.run(process, process.init(), 6, save="final")[1].reward_mean[0]

    def both(reward_range):
        value = lambda scale: mass(scale, reward_range).sum()  # noqa: E731
        return jax.jit(jax.vmap(jax.value_and_grad(value)))(jnp.asarray([4.0, 9.0], jnp.float32))

    for promised, nothing in zip(both(5.0), both(None), strict=True):
        np.testing.assert_allclose(promised, nothing, rtol=2e-4)


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf"), [1.0, 2.0]])
def test_a_range_that_makes_no_sense(bad):
    with pytest.raises(ValueError, match="reward_range"):
        pj.density.finite_pool(pj.Landscape(rewards=[[0.0, 1.0]]), [1.0], pool_size=3.0, reward_range=bad)


def test_a_range_that_is_traced():
    land = pj.Landscape(rewards=[[0.0, 1.0]])
    with pytest.raises(ValueError, match="reward_range must be a number that is known while tracing"):
        jax.jit(lambda x: pj.density.finite_pool(land, [1.0], pool_size=3.0, reward_range=x).init().log_p)(1.0)


def test_bumps_and_plateaus_know_their_range():
    """Although their centers are traced; their own parameters may be traced as well, and then nothing is known."""
    grid = pj.Grid.uniform(-4.0, 4.0, 33)

    def nodes(make, *args):
        seen = []

        def build(*args):
            process = pj.density.finite_pool(
                pj.Landscape.on(grid, make(*args)), [0.4, 0.6], pool_size=3.0, temperature=0.5
            )
            seen.append(process.step.args[1].args[0])
            return seen[0].table

        jax.eval_shape(build, *args)
        return seen[0].table.shape[1] * seen[0].table.shape[2]

    centers, height = jnp.asarray([-1.0, 1.0]), jnp.asarray(5.0)
    for known in (
        lambda c: pj.rewards.bump(c, 5.0, 1.0),
        lambda c: pj.rewards.bump(c, [4.0, -5.0], 1.0),
        lambda c: pj.rewards.plateau(c, 1.0, height=4.0, floor=[-1.0, 2.0]),
    ):
        # 32 e-folds in steps of 0.28: 10 of rewards and the tails of float64.
        assert 110 < nodes(known, centers) < 120
    for unknown in (lambda c, h: pj.rewards.bump(c, h, 1.0), lambda c, h: pj.rewards.quadratic(c, h)):
        assert nodes(unknown, centers, height) > 290


def test_a_range_of_a_reward_function_that_is_traced():
    """Nothing is known then, and nothing is refused."""

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Line:
        reward_range: jax.Array

        def __call__(self, x):
            return self.reward_range * x

    def final(reward):
        land = pj.Landscape.on(pj.Grid.uniform(0.0, 1.0, 9), reward)
        process = pj.density.finite_pool(land, [1.0], pool_size=3.0)
        return process.init().log_w

    np.testing.assert_allclose(jax.jit(final)(Line(jnp.asarray(2.0))), final(Line(jnp.asarray(2.0))), atol=1e-12)


def test_a_range_that_a_reward_function_gets_wrong():
    """Its attribute is a hint and no promise that numbers rest on."""

    class Steep:
        reward_range = 1.0

        def __call__(self, x):
            return jnp.concatenate([3.0 * x, -3.0 * x], axis=-1)

    def final(reward):
        land = pj.Landscape.on(pj.Grid.uniform(-4.0, 4.0, 33), reward)
        process = pj.density.finite_pool(land, [0.4, 0.6], pool_size=3.0)
        return jnp.exp(pj.run(process, process.init(), 5, save="final")[0].log_p)

    got = jax.jit(lambda: final(Steep()))()
    np.testing.assert_allclose(got, jax.jit(lambda: final(Steep().__call__))(), rtol=1e-4, atol=1e-9)
