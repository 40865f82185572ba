"""Curation from samples: laws of single draws against exact ones, policies, and what is refused."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import plural_jax as pj
from plural_jax import curation

NUM = 20_000


@pytest.fixture
def key(rng):
    return jax.random.key(int(rng.integers(2**31)))


def law_is(index, expected, least=1e-5):
    """Chi-square test of counts against probabilities; cells that are expected less than five times count together."""
    index, expected = np.asarray(index), np.asarray(expected, np.float64)
    counts, wanted = np.bincount(index.ravel(), minlength=expected.size), expected * index.size
    assert counts[expected == 0].sum() == 0
    rare = wanted < 5
    counts, wanted = np.append(counts[~rare], counts[rare].sum()), np.append(wanted[~rare], wanted[rare].sum())
    used = wanted > 0
    assert used.sum() == 1 or stats.chisquare(counts[used], wanted[used] * counts.sum() / wanted.sum()).pvalue > least


@pytest.mark.parametrize("temperature", [0.4, 1.0, 5.0])
@pytest.mark.parametrize("pool_size", [2, 3, 10])
def test_fresh_pools_have_the_law_of_lemma_1(rng, key, pool_size, temperature):
    rewards, phi, p = rng.normal(size=(3, 12)) * 2, rng.dirichlet(np.ones(3)), rng.dirichlet(np.ones(12))
    sampling, choosing = jax.random.split(key)
    atoms = jax.random.choice(sampling, 12, (NUM * pool_size,), p=jnp.asarray(p))
    curate = jax.jit(curation.curate, static_argnames=("num_curated", "pool_size"))
    picked = curate(
        choosing, rewards[:, atoms], jnp.asarray(phi), NUM, pool_size=pool_size, temperature=jnp.asarray(temperature)
    )
    assert len(set(np.asarray(picked.candidate))) == NUM  # no two draws share a candidate
    process = pj.density.finite_pool(
        pj.Landscape(rewards=rewards), phi, pool_size=float(pool_size), temperature=temperature
    )
    state = process.init(np.log(p))
    law_is(atoms[picked.candidate], np.exp(state.log_p + state.log_w))
    law_is(picked.preference, phi)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 2.0])
def test_the_whole_pool_is_chosen_from_by_softmax(rng, key, temperature):
    rewards, phi = rng.normal(size=(2, 37)) * 3, np.array([0.3, 0.7])
    picked = curation.curate(key, rewards, phi, NUM, temperature=temperature)
    best = rewards == rewards.max(axis=1, keepdims=True)
    odds = np.exp((rewards - rewards.max(axis=1, keepdims=True)) / temperature) if temperature else best.astype(float)
    odds /= odds.sum(axis=1, keepdims=True)
    law_is(picked.candidate, phi @ odds)
    for i in range(2):  # and given who chose
        law_is(np.asarray(picked.candidate)[np.asarray(picked.preference) == i], odds[i])


def test_one_choice(rng, key):
    rewards = rng.normal(size=5)
    many = jax.vmap(lambda k: curation.choose(k, rewards, temperature=0.7))(jax.random.split(key, NUM))
    law_is(many, np.exp(rewards / 0.7) / np.exp(rewards / 0.7).sum())
    ties = jax.vmap(lambda k: curation.choose(k, [1.0, 3.0, 3.0], temperature=0.0))(jax.random.split(key, NUM))
    law_is(ties, [0, 0.5, 0.5])


def softmax(x):
    return np.exp(x - x.max()) / np.exp(x - x.max()).sum()


def test_overlapping_pools_are_subsets_at_random(rng, key):
    """Four pools of three out of six candidates: each draw alone sees a random subset."""
    rewards, phi = rng.normal(size=(2, 6)) * 2, np.array([0.4, 0.6])
    expected = np.zeros(6)
    subsets = list(itertools.combinations(range(6), 3))
    for subset in subsets:
        for i in range(2):
            expected[list(subset)] += phi[i] * softmax(rewards[i, list(subset)]) / len(subsets)
    picked = jax.jit(jax.vmap(lambda k: curation.curate(k, rewards, phi, 4, pool_size=3).candidate))(
        jax.random.split(key, NUM)
    )
    for draw in range(4):
        law_is(picked[:, draw], expected)


@pytest.mark.parametrize("pool_size", [None, 2])
def test_without_replacement_in_sequence(rng, key, pool_size):
    """Three draws from four candidates against the probability of every order, enumerated."""
    rewards, phi = rng.normal(size=(2, 4)), np.array([0.25, 0.75])
    expected = np.zeros((4, 4, 4))
    for order in itertools.permutations(range(4), 3):
        chance = 1.0
        for t, k in enumerate(order):
            left = [j for j in range(4) if j not in order[:t]]
            pools = list(itertools.combinations(left, min(pool_size or 4, len(left))))
            odds = [phi[i] * softmax(rewards[i, list(s)])[s.index(k)] for s in pools if k in s for i in range(2)]
            chance *= sum(odds) / len(pools)
        expected[order] = chance
    assert expected.sum() == pytest.approx(1)
    picked = jax.jit(
        jax.vmap(lambda k: curation.curate(k, rewards, phi, 3, replace=False, pool_size=pool_size).candidate)
    )(jax.random.split(key, NUM))
    law_is(np.ravel_multi_index(np.asarray(picked).T, (4, 4, 4)), expected.ravel())


def test_all_of_them_without_replacement(rng, key):
    picked = curation.curate(key, rng.normal(size=(2, 50)) * 1e4, [0.5, 0.5], 50, replace=False)
    assert sorted(picked.candidate.tolist()) == list(range(50))


@pytest.mark.parametrize(("pool_size", "replace"), [(None, True), (3, True), (None, False), (3, False)])
def test_what_is_not_available_is_as_if_it_were_not_there(rng, key, pool_size, replace):
    """The law of the first draw, over many keys, is that of the table without the missing columns."""
    rewards, phi = rng.normal(size=(2, 7)), rng.dirichlet(np.ones(2))
    there = rng.permutation(np.arange(7) < 5)
    options = {"num_curated": 5, "pool_size": pool_size, "replace": replace}
    curate = jax.jit(lambda k, r, mask: jax.vmap(lambda k: curation.curate(k, r, phi, available=mask, **options))(k))
    picked = curate(jax.random.split(key, 4000), np.where(there, rewards, 1e9), there).candidate
    odds = np.exp(rewards[:, there])
    if pool_size is None:
        expected = phi @ (odds / odds.sum(1, keepdims=True))
    else:
        pools = [list(c) for c in itertools.combinations(range(5), 3)]
        expected = np.zeros(5)
        for pool in pools:
            expected[pool] += phi @ (odds[:, pool] / odds[:, pool].sum(1, keepdims=True)) / len(pools)
    whole = np.zeros(7)
    whole[there] = expected
    law_is(picked[:, 0], whole)
    assert there[np.asarray(picked)].all()
    if not replace:
        assert (np.sort(picked, axis=1) == np.flatnonzero(there)).all()


def test_no_curation_without_replacement_is_a_random_order(rng, key):
    curate = jax.jit(
        jax.vmap(lambda k, r: curation.curate(k, r, curation.no_curation(), 4, replace=False), in_axes=(0, None))
    )
    picked = curate(jax.random.split(key, 4000), rng.normal(size=(1, 4)) * 100).candidate
    for draw in range(4):
        law_is(picked[:, draw], np.full(4, 0.25))


def test_policies(rng, key):
    rewards, phi = rng.normal(size=(3, 8)), np.array([0.2, 0.5, 0.3])
    curate = lambda policy, **kw: curation.curate(key, rewards, policy, NUM, **kw)  # noqa: E731
    average = curate(curation.averaged_reward(phi), temperature=0.5)
    law_is(average.candidate, softmax(phi @ rewards / 0.5))
    assert (average.preference == -1).all()
    single = curate(curation.single_reward(2))
    law_is(single.candidate, softmax(rewards[2]))
    assert (single.preference == 2).all()
    nobody = curate(curation.no_curation())
    law_is(nobody.candidate, np.full(8, 1 / 8))
    best = curate(curation.greedy(phi))
    np.testing.assert_array_equal(best.candidate, rewards.argmax(axis=1)[np.asarray(best.preference)])
    law_is(best.preference, phi)
    rounds = jax.vmap(lambda k: curation.curate(k, rewards, curation.reward_per_round(phi), 3).preference)(
        jax.random.split(key, 5_000)
    )
    assert (rounds == rounds[:, :1]).all()
    law_is(rounds[:, 0], phi)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rewards_of_ten_thousand_and_numbers_that_change(rng, key, dtype):
    # So far apart that nobody takes the second best.
    rewards = rng.permuted(np.tile(np.linspace(-1e4, 1e4, 300), (2, 1)), axis=1).astype(dtype)
    traces = []

    @jax.jit
    def run(key, rewards, phi, temperature):
        traces.append(1)
        return curation.curate(key, rewards, phi, 40, temperature=temperature)

    for phi in ([0.5, 0.5], [0.0, 1.0]):
        picked = run(key, rewards, np.asarray(phi, dtype), np.asarray(1.0, dtype))
        np.testing.assert_array_equal(picked.candidate, rewards.argmax(axis=1)[np.asarray(picked.preference)])
    assert (picked.preference == 1).all() and len(traces) == 1
    together = jax.vmap(run, (0, None, None, None))(jax.random.split(key, 3), rewards, np.array([0.5, 0.5], dtype), 1.0)
    alone = run(jax.random.split(key, 3)[1], rewards, np.array([0.5, 0.5], dtype), 1.0)
    np.testing.assert_array_equal(together.candidate[1], alone.candidate)


def test_any_pytree_and_real_data(rng, key):
    samples = {"image": rng.normal(size=(100, 4, 4)), "text": (np.arange(100), np.arange(100) % 3 == 0)}
    taken = curation.take(samples, [5, 99, 5])
    np.testing.assert_array_equal(taken["image"], samples["image"][[5, 99, 5]])
    np.testing.assert_array_equal(taken["text"][0], [5, 99, 5])
    real = {"image": np.full((7, 4, 4), 9.0), "text": (np.arange(200, 207), np.ones(7, bool))}
    big = curation.take(samples, np.arange(NUM) % 100)
    mixed = curation.mix_real(key, big, real, 0.3)
    replaced = np.asarray(mixed["text"][0]) >= 200
    law_is(replaced.astype(int), [0.7, 0.3])
    law_is(np.asarray(mixed["text"][0])[replaced] - 200, np.full(7, 1 / 7))
    # Whole samples are replaced, not leaves.
    assert ((np.asarray(mixed["image"])[:, 0, 0] == 9) == replaced).all()
    np.testing.assert_array_equal(curation.mix_real(key, big, real, 0.0)["image"], big["image"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rewards": [[1.0, np.nan]]}, r"rewards must be finite, got nan at index \(0, 1\)"),
        ({"available": [True, False]}, r"available must be bool of shape \[3\], got bool of shape \[2\]"),
        ({"available": [1, 0, 1]}, r"available must be bool of shape \[3\], got int64"),
        ({"available": np.zeros(3, bool)}, "available must leave at least 1 candidates, got 0"),
        ({"rewards": [1.0, 2.0]}, r"rewards must be a table of m preferences x n candidates, got shape \(2,\)"),
        ({"pool_size": 4}, "pool_size must be at most the number of candidates, got 4 of 3"),
        ({"pool_size": 0}, "pool_size must be a whole number of at least 1, got 0"),
        ({"num_curated": 4, "replace": False}, "num_curated must be at most the number of candidates .* got 4 draws from 3"),
        ({"num_curated": 0}, "num_curated must be a whole number of at least 1, got 0"),
        ({"temperature": -1.0}, "temperature must be one number that is not negative, got -1.0"),
        ({"temperature": np.nan}, "temperature must be finite, got nan"),
        ({"policy": [0.5, 0.6]}, "phi must sum to 1"),
        ({"policy": [1.0]}, "phi must hold one weight for each of the 2 preferences"),
        ({"policy": curation.mixture([0.5, 0.25, 0.25])}, "phi must hold one weight for each of the 2 preferences"),
        ({"policy": curation.single_reward(2)}, "preference must be one of the 2 preferences, 0 to 1, got 2"),
    ],
)  # fmt: skip
def test_refused(arguments, message):
    given = {"rewards": np.zeros((2, 3)), "policy": [0.5, 0.5], "num_curated": 2, **arguments}
    with pytest.raises(ValueError, match=message):
        curation.curate(jax.random.key(0), **given)


def test_refused_by_the_others():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="preference must be a whole number of at least 0, got -1"):
        curation.single_reward(-1)
    with pytest.raises(ValueError, match=r"weight must be one number between 0 and 1, got 1.5"):
        curation.mix_real(key, np.zeros(3), np.zeros(2), 1.5)
    with pytest.raises(ValueError, match="real must have the structure of the samples"):
        curation.mix_real(key, np.zeros(3), (np.zeros(2),), 0.5)
    with pytest.raises(ValueError, match="rewards must hold one number for each candidate"):
        curation.choose(key, [])
