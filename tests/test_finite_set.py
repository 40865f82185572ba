"""Finite curated sets: the draws against scipy, the dynamics against the exact Markov chain, the chain against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import plural_jax as pj
from plural_jax.density.training_sets import multinomial_counts
from plural_jax.theory import curated_share, extinction_probability, required_set_size, time_to_loss
from tests import oracles

DRAWS = 8_000


@jax.jit
def _counts(keys, p, size):
    return jax.vmap(lambda key: multinomial_counts(key, p, size))(keys)


def _keys(rng, count):
    return jax.random.split(jax.random.key(int(rng.integers(2**31))), count)


def _chi_square(counts, law):
    """P-value of counts against a law of whole numbers; cells with few expected are put together."""
    edges = np.unique(law.ppf(np.linspace(0, 1, 31)[1:-1]))
    expected = np.diff(np.concatenate([[0], law.cdf(edges), [1]])) * len(counts)
    observed = np.histogram(counts, np.concatenate([[-np.inf], edges + 0.5, [np.inf]]))[0]
    enough = expected >= 5
    expected = np.append(expected[enough], expected[~enough].sum())
    observed = np.append(observed[enough], observed[~enough].sum())
    if expected[-1] < 5:
        expected, observed = expected[:-1], observed[:-1]
    statistic = ((observed - expected) ** 2 / expected).sum()
    return scipy.stats.chi2.sf(statistic, max(1, len(expected) - 1))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_draws_are_multinomial(rng, dtype):
    # One dominant mass, tiny ones before and behind it, and none at all.
    p = np.array([1e-5, 0.0, 0.3, 2e-3, 0.0, 1e-4, 0.0])
    p[4] = 1 - p.sum()
    p = p.astype(dtype)
    for size in (1, 7, 300):
        counts = np.asarray(_counts(_keys(rng, DRAWS), p, jnp.int32(size)))
        assert (counts.sum(axis=1) == size).all() and (counts[:, p == 0] == 0).all()
        for cell in np.flatnonzero(p):
            assert _chi_square(counts[:, cell], scipy.stats.binom(size, p[cell])) > 1e-7, (size, cell)
        # Two cells together: their covariance is -N p q.
        pair = counts[:, 2] + counts[:, 4]
        assert _chi_square(pair, scipy.stats.binom(size, float(p[2]) + float(p[4]))) > 1e-7


@pytest.mark.end_to_end
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_million_draws(rng, dtype):
    """Where a binomial in float32 is no longer exact: many small masses, each with the right mean and variance."""
    size = 1_000_000
    p = rng.dirichlet(np.full(30, 0.3)).astype(dtype)
    counts = np.asarray(_counts(_keys(rng, 12), p, jnp.int32(size)), np.float64)
    p = p.astype(np.float64) / p.astype(np.float64).sum()
    expected = size * p
    seen = expected > 20
    z = (counts - expected)[:, seen] / np.sqrt(expected * (1 - p))[seen]
    assert np.abs(z).max() < 6
    assert 0.6 < np.mean(z**2) < 1.5  # 12 x some 25 numbers
    assert np.abs(z.mean(axis=0) * np.sqrt(len(counts))).max() < 5.5


def test_masses_below_the_resolution_of_float32_are_drawn_with_the_right_mean(rng):
    tiny, cells, size, repeats = 2.0**-33, 2**14, 2**20, 6
    p = np.append(1 - tiny * cells, np.full(cells, tiny)).astype(np.float32)
    counts = np.asarray(_counts(_keys(rng, repeats), p, jnp.int32(size)))
    mean = scipy.stats.poisson(repeats * size * cells * tiny)  # 12 items; none if they were rounded down, 48 if up
    total = counts[:, 1:].sum()
    assert mean.cdf(total) > 1e-6 and mean.sf(total - 1) > 1e-6


def _two_plateaus(kappa, dtype=np.float64):
    """Two atoms with the leakages kappa."""
    return pj.Landscape(rewards=np.array([[0.0, np.log(kappa[0])], [np.log(kappa[1]), 0.0]], dtype))


@pytest.mark.parametrize("pool_size", [2.0, 7.0, np.inf])
def test_curated_share_is_one_exact_round(rng, pool_size):
    kappa, phi, a = rng.uniform(0.01, 0.9, 2), rng.uniform(0.05, 0.95), rng.uniform(0.01, 0.99)
    process = pj.density.finite_pool(_two_plateaus(kappa), [phi, 1 - phi], pool_size=pool_size)
    state = process.init(np.log([a, 1 - a]))
    expected = np.exp(state.log_p + state.log_w)[0]
    np.testing.assert_allclose(curated_share(a, phi, leakage=kappa, pool_size=pool_size), expected, rtol=1e-11)


def test_curated_share_at_its_ends():
    for pool_size in (2, 5, np.inf):
        np.testing.assert_array_equal(curated_share([0.0, 1.0], 0.3, pool_size=pool_size), [0, 1])
        np.testing.assert_array_equal(curated_share([0.0, 1.0], 0.3, leakage=0.2, pool_size=pool_size), [0, 1])
    # Without leakage a preference is served unless no candidate is to its taste.
    a = np.linspace(0, 1, 11)
    np.testing.assert_allclose(curated_share(a, 0.3, pool_size=4), 0.3 * (1 - (1 - a) ** 4) + 0.7 * a**4, atol=1e-14)
    # With leakage 1 nothing is preferred, and a large pool is an infinite one.
    np.testing.assert_allclose(curated_share(a, 0.3, leakage=1.0, pool_size=9), a, atol=1e-14)
    np.testing.assert_allclose(
        curated_share(a[1:-1], 0.3, leakage=0.1, pool_size=20_000), curated_share(a[1:-1], 0.3, leakage=0.1), atol=1e-3
    )


@jax.jit
def _simulated(keys, kappa, phi, a, pool_size, set_size):
    """The first plateau's mass in 12 rounds of a finite set, for each key."""

    def one(key):
        land = pj.Landscape(rewards=jnp.array([[0.0, 1.0], [1.0, 0.0]]) * jnp.log(kappa)[:, None])
        process = pj.density.finite_pool(land, jnp.stack([phi, 1 - phi]), pool_size=pool_size)
        process = pj.density.finite_set(process, set_size)
        return pj.run(process, process.init(jnp.log(jnp.stack([a, 1 - a]))), 12, key=key)[1].basin_mass[:, 0]

    return jax.vmap(one)(keys)


@pytest.mark.parametrize(("pool_size", "set_size"), [(np.inf, 25), (6.0, 40)])
def test_simulated_extinction_against_the_chain(rng, pool_size, set_size):
    kappa, phi, a, rounds, replicas = np.array([0.02, 0.05]), 0.2, 0.3, 12, 1500
    mass = np.asarray(_simulated(_keys(rng, replicas), kappa, phi, a, pool_size, float(set_size)))
    np.testing.assert_allclose(mass * set_size, np.round(mass * set_size), atol=1e-9)
    seen = (mass == 0).mean(axis=0)
    exact = extinction_probability(set_size, phi, num_steps=rounds, initial=a, leakage=kappa, pool_size=pool_size)
    assert exact[-1] > 0.02  # there is something to compare
    assert (oracles.binomial_chance(np.round(seen * replicas), replicas, exact) > 1e-8).all(), (seen, exact)


def test_chain_against_a_matrix_power(rng):
    """The plain chain: scipy's binomial probabilities and a dense matrix, for a set large enough that rows are cut."""
    n, phi, a, kappa, rounds = 300, 0.05, 0.02, (0.01, 0.2), 15
    share = np.asarray(curated_share(np.arange(n + 1) / n, phi, leakage=kappa, pool_size=30))
    matrix = scipy.stats.binom.pmf(np.arange(n + 1), n, share[:, None])
    law = scipy.stats.binom.pmf(np.arange(n + 1), n, curated_share(a, phi, leakage=kappa, pool_size=30))
    expected = []
    for _ in range(rounds):
        expected.append(law[0])
        law = law @ matrix
    got = extinction_probability(n, phi, num_steps=rounds, initial=a, leakage=kappa, pool_size=30)
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-13)
    assert 0.01 < got[-1] < 0.99 and (np.diff(got) >= 0).all()


def test_no_leakage_in_closed_form(rng):
    phi, n, rounds = rng.uniform(0.05, 0.4), int(rng.integers(20, 60)), 50
    t = np.arange(1, rounds + 1)
    first, second = (1 - phi) ** n, phi**n
    # In each round the first, the second or neither is lost.
    lost = -np.expm1(t * np.log1p(-(first + second)))
    np.testing.assert_allclose(
        extinction_probability(n, phi, num_steps=rounds), first / (first + second) * lost, rtol=1e-10
    )
    time = time_to_loss(n, phi)
    np.testing.assert_allclose(time.mean, 1 / (first + second), rtol=1e-10)
    np.testing.assert_allclose(time.first_lost, first / (first + second), rtol=1e-10)
    # Far beyond what a linear solver in float64 could do.
    np.testing.assert_allclose(time_to_loss(200, 0.5).mean, 2.0**199, rtol=1e-9)


def test_time_to_loss_against_a_linear_solver():
    n, phi, a, kappa = 30, 0.3, 0.4, (0.1, 0.3)
    share = np.asarray(curated_share(np.arange(n + 1) / n, phi, leakage=kappa, pool_size=4))
    matrix = scipy.stats.binom.pmf(np.arange(n + 1), n, share[:, None])
    inner = np.eye(n - 1) - matrix[1:-1, 1:-1]
    first = scipy.stats.binom.pmf(np.arange(n + 1), n, curated_share(a, phi, leakage=kappa, pool_size=4))
    time = time_to_loss(n, phi, initial=a, leakage=kappa, pool_size=4)
    np.testing.assert_allclose(time.mean, 1 + first[1:-1] @ np.linalg.solve(inner, np.ones(n - 1)), rtol=1e-9)
    lost = first[0] + first[1:-1] @ np.linalg.solve(inner, matrix[1:-1, 0])
    np.testing.assert_allclose(time.first_lost, lost, rtol=1e-9)


def test_neutral_drift():
    """With leakage 1 nobody has a preference: the chance to be lost first is the other's mass, and both last about
    -2 N (a log a + (1 - a) log(1 - a)) rounds (Kimura's diffusion).
    """
    time = time_to_loss(200, 0.5, initial=0.3, leakage=1.0)
    np.testing.assert_allclose(time.first_lost, 0.7, rtol=1e-9)
    np.testing.assert_allclose(time.mean, -400 * (0.3 * np.log(0.3) + 0.7 * np.log(0.7)), rtol=0.02)


def test_required_set_size():
    for phi in (0.01, 0.1, 0.3):
        closed = np.ceil(np.log(-np.expm1(np.log(0.95) / 100)) / np.log1p(-phi))
        assert required_set_size(phi) == closed
    # The smallest: one less is not enough.
    options = {"leakage": (0.05, 0.02), "pool_size": 15, "num_steps": 30}
    n = required_set_size(0.2, survival=0.9, **options)
    last = [extinction_probability(k, 0.2, **options)[-1] for k in range(1, int(n) + 1)]
    assert last[-1] <= 0.1 and (np.array(last[:-1]) > 0.1).all()
    # phi K < 1 kills a preference whatever its distance; the exact law says so too.
    assert required_set_size(0.05, pool_size=10, largest=1000) == np.inf
    mass = 0.05
    for _ in range(100):
        mass = float(curated_share(mass, 0.05, pool_size=10))
    assert mass < 1e-20


def test_a_large_set_is_the_exact_law(rng):
    rewards = rng.normal(size=(2, 6))
    exact = pj.density.large_pool(pj.Landscape(rewards=rewards), [0.4, 0.6])
    assert pj.density.finite_set(exact, np.inf) is exact
    make = jax.jit(
        lambda size, key: pj.run(
            pj.density.finite_set(exact, size), exact.init(), 5, key=key, save=lambda state, info: state.log_p
        )[1]
    )
    key = jax.random.key(int(rng.integers(2**31)))
    expected = np.exp(pj.run(exact, exact.init(), 5, save="density")[1].log_p)
    np.testing.assert_allclose(np.exp(make(jnp.inf, key)), expected, rtol=1e-12)
    np.testing.assert_allclose(np.exp(make(3e5, key)), expected, atol=0.02)
    small = np.exp(make(10.0, key))
    np.testing.assert_allclose(small * 10, np.round(small * 10), atol=1e-9)
    # A lost atom stays lost.
    assert ((small[1:] == 0) | (small[:-1] > 0)).all()


def test_set_size_is_an_axis_of_a_sweep(rng):
    def make(phi, set_size, replica):
        land = pj.Landscape(rewards=[[4.0, 0.0], [0.0, 4.0]])
        return pj.density.finite_set(pj.density.large_pool(land, jnp.stack([phi, 1 - phi])), set_size)

    key = jax.random.key(int(rng.integers(2**31)))
    axes = {"phi": [0.2, 0.5], "set_size": [5, 50, np.inf], "replica": np.arange(8)}
    ds = pj.sweep(make, **axes, num_steps=4, key=key)
    assert dict(ds.basin_mass.sizes) == {"phi": 2, "set_size": 3, "replica": 8, "step": 4, "preference": 2}
    spread = ds.basin_mass.isel(step=0, preference=0).std("replica")
    assert (spread.sel(set_size=np.inf) == 0).all() and (spread.sel(set_size=5) > 0).all()


def _large(rewards=((0.0, 1.0), (1.0, 0.0))):
    return pj.density.large_pool(pj.Landscape(rewards=np.array(rewards)), [0.5, 0.5])


CASES = {
    "set size": (lambda: pj.density.finite_set(_large(), 0), r"set_size must be a whole number from 1 .*got 0"),
    "set size part": (lambda: pj.density.finite_set(_large(), 2.5), r"set_size must be a whole number .*got 2.5"),
    "set size NaN": (lambda: pj.density.finite_set(_large(), np.nan), r"set_size must be a whole number .*nan"),
    "set size vector": (lambda: pj.density.finite_set(_large(), [1, 2]), r"set_size must be a single number.*\(2,\)"),
    "no density": (
        lambda: pj.density.finite_set(pj.density.gaussian([-1.0, 1.0], 0.5, [0.5, 0.5], num_steps=3), 10),
        r"process must be an exact density process.*got a process whose step is",
    ),
    "no process": (lambda: pj.density.finite_set(3, 10), r"process must be an exact density process.*got a int"),
    "plain step": (
        lambda: pj.density.mix_real(pj.Process(lambda: 0, lambda key, state: (state, state)), [0.0], 0.1),
        r"process must be an exact density process.*lambda",
    ),
    "no key": (
        lambda: pj.run(pj.density.finite_set(_large(), 10), _large().init(), 3),
        r"key must be a PRNG key, because a finite curated set is drawn at random, got None",
    ),
    "share": (lambda: curated_share(1.5, 0.1), r"mass must lie between 0 and 1, got 1.5"),
    "leakage": (lambda: curated_share(0.5, 0.1, leakage=[0.1] * 3), r"leakage must be one number or two.*\(3,\)"),
    "leakage above one": (lambda: curated_share(0.5, 0.1, leakage=2.0), r"leakage must lie between 0 and 1, got 2"),
    "pool": (lambda: curated_share(0.5, 0.1, pool_size=2.5), r"pool_size must be a whole number of at least 2.*2.5"),
    "chain": (lambda: extinction_probability(0, 0.1), r"set_size must be a whole number of at least 1, got 0"),
    "traced": (lambda: jax.jit(lambda phi: curated_share(0.5, phi))(0.1), r"phi is traced"),
    "survival": (lambda: required_set_size(0.1, survival=1.0), r"survival must lie between 0 and 1, both excluded"),
    "certain": (lambda: required_set_size(1.0), r"phi must lie between 0 and 1, both excluded, got 1"),
}


@pytest.mark.parametrize("name", CASES)
def test_refused(name):
    call, message = CASES[name]
    with pytest.raises(ValueError, match=message):
        call()
