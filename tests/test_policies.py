"""The baselines of E9: each against simulated curation of actual candidates, or a closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import plural_jax as pj
from plural_jax.density.core import parts
from tests import oracles

M, N = 2, 7
PHI = np.array([0.3, 0.7])


def _example(rng, n=N):
    return rng.normal(size=(M, n)) * 1.5, rng.dirichlet(np.ones(n))


@jax.jit
def _round(process, log_p):
    """The law of a curated item, [n], and the info of the first round."""
    state, info = process.step(None, process.init(log_p))
    return jnp.exp(state.log_p), info


@jax.jit
def _drawn(process, key):
    """The state after the first round of a process that draws."""
    return process.step(key, process.init())[0]


def _candidates(rng, p, pool_size, pools=60_000):
    return rng.choice(len(p), size=(pools, pool_size), p=p)


def _agrees(counts, law):
    """Simulated counts against an exact law, by chi-square's mean and its six standard deviations."""
    expected = counts.sum() * law
    assert (counts[law == 0] == 0).all()
    seen = law > 0
    statistic = ((counts - expected)[seen] ** 2 / expected[seen]).sum()
    freedom = seen.sum() - 1
    assert statistic < freedom + 7 * np.sqrt(2 * freedom) + 15, (counts / counts.sum(), law)


def _softmax_choice(rng, table):
    """One candidate of each pool by discrete choice: Gumbel's trick on rewards [pools, K]."""
    return (table + rng.gumbel(size=table.shape)).argmax(axis=1)


@pytest.mark.parametrize("name", ["averaged_reward", "single_reward"])
def test_one_reward_selects(rng, name):
    rewards, p = _example(rng)
    land = pj.Landscape(rewards=rewards)
    pools = _candidates(rng, p, 5)
    if name == "averaged_reward":
        chosen_by, make = PHI @ rewards, lambda k: pj.density.averaged_reward(land, PHI, pool_size=k)
    else:
        chosen_by, make = rewards[1], lambda k: pj.density.single_reward(land, PHI, 1, pool_size=k)
    law, info = _round(make(5.0), np.log(p))
    chosen = pools[np.arange(len(pools)), _softmax_choice(rng, chosen_by[pools])]
    _agrees(np.bincount(chosen, minlength=N), np.asarray(law))
    # Both preferences are reported, with the weights that were given.
    np.testing.assert_allclose(info.reward_mean, rewards @ law, rtol=1e-12)
    np.testing.assert_allclose(info.objective, PHI @ np.log(np.exp(rewards) @ law), rtol=1e-12)
    # In the large-K limit T rounds are one tilt by T times the reward.
    process = make(np.inf)
    final, _ = pj.run(process, process.init(np.log(p)), 6, save="final")
    tilted = np.log(p) + 6 * chosen_by
    np.testing.assert_allclose(final.log_p, tilted - oracles.log_sum_exp(tilted), rtol=1e-11, atol=1e-11)


def test_averaged_reward_of_large_offsets_in_float32(rng):
    rewards, p = _example(rng)
    offset = np.array([[1e4], [-3e4]])
    # Rounded to what float32 can hold beside the offset, so that both landscapes have the same differences.
    rewards = np.round(rewards * 64) / 64
    plain, _ = _round(pj.density.averaged_reward(pj.Landscape(rewards=rewards), PHI), np.log(p))
    far = pj.Landscape(rewards=(rewards + offset).astype(np.float32))
    law, _ = _round(pj.density.averaged_reward(far, PHI.astype(np.float32)), np.log(p).astype(np.float32))
    np.testing.assert_allclose(law, plain, rtol=2e-5)


def test_reward_per_round(rng):
    rewards, p = _example(rng)
    process = pj.density.reward_per_round(pj.Landscape(rewards=rewards), PHI)
    keys = jax.random.split(jax.random.key(int(rng.integers(2**31))), 3000)
    rounds = 3
    run = jax.jit(jax.vmap(lambda key: pj.run(process, process.init(np.log(p)), rounds, key=key, save="final")[0]))
    got = np.exp(np.asarray(run(keys).log_p))
    # After three rounds there are four densities, one for each number of rounds that preference 1 curated.
    seen = np.zeros(rounds + 1)
    for count in range(rounds + 1):
        tilted = np.log(p) + count * rewards[0] + (rounds - count) * rewards[1]
        law = np.exp(tilted - oracles.log_sum_exp(tilted))
        seen[count] = (np.abs(got - law).max(axis=1) < 1e-10).sum()
    assert seen.sum() == len(keys)
    _agrees(seen, np.array([0.343, 0.441, 0.189, 0.027]))


def test_reward_per_round_averages_to_the_mixture(rng):
    """One round, finite K: each preference's law, with probability phi; and phi = 0 is never asked."""
    rewards, p = _example(rng)
    land = pj.Landscape(rewards=rewards)
    process = pj.density.reward_per_round(land, PHI, pool_size=2.0)
    keys = jax.random.split(jax.random.key(int(rng.integers(2**31))), 400)
    step = jax.jit(jax.vmap(lambda process, key: process.step(key, process.init(np.log(p)))[0].log_p, (None, 0)))
    h = oracles.pairwise_h(p, rewards)
    near = [np.abs(np.exp(np.asarray(step(process, keys))) - p * h[i]).max(axis=1) < 1e-10 for i in range(M)]
    assert (near[0] ^ near[1]).all()
    assert abs(near[0].mean() - 0.3) < 6 * np.sqrt(0.21 / len(keys))
    never = pj.density.reward_per_round(land, [0.0, 1.0], pool_size=2.0)
    assert np.abs(np.exp(np.asarray(step(never, keys))) - p * h[1]).max() < 1e-10


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("ties", [False, True])
def test_greedy_takes_the_best_of_k(rng, ties, dtype):
    rewards, p = _example(rng)
    if ties:
        rewards = np.round(rewards)
        rewards[0, :3] = rewards[0].max() + 1  # a shared optimum
        p[4] = 0
        p /= p.sum()
    with np.errstate(divide="ignore"):
        log_p = np.log(p).astype(dtype)
    k = 6
    process = pj.density.greedy(pj.Landscape(rewards=rewards.astype(dtype)), PHI.astype(dtype), pool_size=k)
    law = np.asarray(_round(process, log_p)[0], np.float64)
    np.testing.assert_allclose(law.sum(), 1, rtol=1e-6)
    # By its definition, atom by atom.
    expected = np.zeros(N)
    for phi, r in zip(PHI, rewards, strict=True):
        upto, below = (np.array([p[op(r, v)].sum() for v in r]) for op in (np.less_equal, np.less))
        group = np.maximum(upto - below, 1e-300)
        expected += phi * p * (upto**k - below**k) / group
    np.testing.assert_allclose(law, expected, rtol=1e-11 if dtype == np.float64 else 1e-5, atol=1e-7)
    # And by actual candidates, of which the first of the best is taken after shuffling: draws are exchangeable.
    pools = _candidates(rng, p, k)
    preference = rng.choice(M, size=len(pools), p=PHI)
    chosen = pools[np.arange(len(pools)), rewards[preference[:, None], pools].argmax(axis=1)]
    _agrees(np.bincount(chosen, minlength=N), expected)


def test_greedy_is_the_cold_limit(rng):
    rewards, p = _example(rng)
    land = pj.Landscape(rewards=rewards)
    greedy = _round(pj.density.greedy(land, PHI, pool_size=3.5), np.log(p))[0]
    cold = _round(pj.density.finite_pool(land, PHI, pool_size=3.5, temperature=1e-4), np.log(p))[0]
    np.testing.assert_allclose(greedy, cold, atol=1e-6)


def test_greedy_at_the_edges_of_the_numbers(rng):
    rewards = np.array([[3.0, 3.0, 2.0, 1.0], [0.0, 0.0, 1.0, 5.0]])
    land = pj.Landscape(rewards=rewards)
    start = np.array([0.1, 0.3, 0.6, 0.0])
    with np.errstate(divide="ignore"):
        log_p = np.log(start)
    # Infinitely many candidates: the best atoms that have mass, in proportion to it.
    process = pj.density.greedy(pj.Landscape(rewards=rewards[:, :3]), PHI, pool_size=np.inf)
    law, info = _round(process, log_p[:3])
    np.testing.assert_allclose(law, [0.3 * 0.25, 0.3 * 0.75, 0.7], rtol=1e-12)
    assert np.isfinite([info.log_max_w, info.entropy, info.objective]).all()
    traced = jax.jit(lambda k: _round(pj.density.greedy(land, PHI, pool_size=k), log_p=jnp.log(jnp.full(4, 0.25)))[0])
    np.testing.assert_allclose(traced(jnp.inf), [0.15, 0.15, 0, 0.7], rtol=1e-12)
    # Pools of millions, and masses far below the least float.
    np.testing.assert_allclose(traced(1e7), [0.15, 0.15, 0, 0.7], atol=1e-6)
    rare = pj.density.greedy(pj.Landscape(rewards=np.array([[0.0, 1.0, 2.0]], np.float32)), [1.0], pool_size=1e6)
    state = rare.init(np.array([0.0, -20.0, -300.0], np.float32))
    # K times its mass where it is rare, and never more: the multiplier of the best atom is K.
    np.testing.assert_allclose(state.log_w[2], np.log(1e6), rtol=1e-6)
    np.testing.assert_allclose(state.log_w[1], np.log(-np.expm1(-1e6 * np.exp(-20.0)) / np.exp(-20.0)), rtol=1e-5)
    assert not np.isnan(state.log_w).any()


def test_no_curation_changes_nothing(rng):
    rewards, p = _example(rng)
    process = pj.density.no_curation(pj.Landscape(rewards=rewards), PHI, temperature=2.0)
    law, info = _round(process, np.log(p))
    np.testing.assert_allclose(law, p, rtol=1e-12)
    np.testing.assert_allclose(info.objective, PHI @ np.log(np.exp(rewards / 2) @ p), rtol=1e-12)
    assert abs(float(info.log_max_w)) < 1e-15


def test_mixed_with_real_data(rng):
    rewards, p = _example(rng)
    real = rng.dirichlet(np.ones(N))
    real[2] = 0
    real /= real.sum()
    with np.errstate(divide="ignore"):
        log_real = np.log(real) + 3.0  # normalized by the library
    large = pj.density.large_pool(pj.Landscape(rewards=rewards), PHI)
    run = jax.jit(
        lambda weight: pj.run(
            pj.density.mix_real(large, log_real, weight), large.init(np.log(p)), 4, save=lambda s, i: (s, i.entropy)
        )[1]
    )
    for weight in (0.0, 0.35, 1.0):
        state, entropy = run(weight)
        expected = p
        for t in range(4):
            curated = expected * np.exp(oracles.large_pool_log_w(np.log(np.maximum(expected, 1e-300)), rewards, PHI))
            expected = (1 - weight) * curated + weight * real
            np.testing.assert_allclose(np.exp(state.log_p[t]), expected, rtol=1e-11, atol=1e-280)
            some = expected[expected > 0]
            np.testing.assert_allclose(entropy[t], -np.sum(some * np.log(some)), rtol=1e-10, atol=1e-12)
            if weight < 1:
                log_w = oracles.large_pool_log_w(np.log(expected), rewards, PHI)
                np.testing.assert_allclose(state.log_w[t], log_w, rtol=1e-9, atol=1e-9)


def test_accumulated_data_are_the_union_of_all_sets(rng):
    """The sets themselves are kept and averaged, with as many copies of the initial data as they count for."""
    rewards, p = _example(rng)
    process = pj.density.accumulate(pj.density.large_pool(pj.Landscape(rewards=rewards), PHI), initial_sets=2.5)
    state, trace = pj.run(process, process.init(np.log(p)), 5, save=lambda s, i: s)
    sets, model = [], p
    for t in range(5):
        sets.append(model * np.exp(oracles.large_pool_log_w(np.log(model), rewards, PHI)))
        model = (2.5 * p + np.sum(sets, axis=0)) / (2.5 + len(sets))
        np.testing.assert_allclose(np.exp(trace.log_p[t]), model, rtol=1e-11)
    np.testing.assert_allclose(trace.num_sets, 2.5 + np.arange(1, 6))
    assert isinstance(state, pj.density.AccumulatedState)


def test_wrappers_compose(rng):
    """Sets of N samples accumulate: after t rounds every mass is a whole number of (t + 1) N samples."""
    rewards, _ = _example(rng)
    set_size, t = 8, 3
    start = np.full(N, 1 / N)
    large = pj.density.large_pool(pj.Landscape(rewards=rewards), PHI)
    process = pj.density.accumulate(pj.density.finite_set(large, set_size))
    final, _ = pj.run(process, process.init(np.log(start)), t, key=jax.random.key(int(rng.integers(2**31))))
    new = np.exp(final.log_p) * (t + 1) - start
    np.testing.assert_allclose(new * set_size, np.round(new * set_size), atol=1e-9)
    np.testing.assert_allclose(new.sum(), t, rtol=1e-12)
    # Real data are added exactly to a finite set; in the other order they are sampled with it.
    outside = pj.density.mix_real(pj.density.finite_set(large, set_size), np.zeros(N), 0.5)
    inside = pj.density.finite_set(pj.density.mix_real(large, np.zeros(N), 0.5), set_size)
    key = jax.random.key(int(rng.integers(2**31)))
    mixed, sampled = (np.exp(_drawn(x, key).log_p) * 2 * set_size for x in (outside, inside))
    np.testing.assert_allclose(mixed - set_size / N, np.round(mixed - set_size / N), atol=1e-9)
    np.testing.assert_allclose(sampled, 2 * np.round(sampled / 2), atol=1e-9)
    assert parts(process)[0] is parts(large)[0]
    resampled = pj.density.finite_set(process, set_size)
    assert float(_drawn(resampled, key).num_sets) == 2


def _land():
    return pj.Landscape(rewards=np.array([[0.0, 1.0], [1.0, 0.0]]))


def _large():
    return pj.density.large_pool(_land(), [0.5, 0.5])


CASES = {
    "preference": (
        lambda: pj.density.single_reward(_land(), PHI, 2),
        r"preference must be a whole number from 0 to 1, got 2",
    ),
    "preference part": (lambda: pj.density.single_reward(_land(), PHI, 0.5), r"preference must be a whole number.*0.5"),
    "preferences": (lambda: pj.density.single_reward(_land(), PHI, [0, 1]), r"preference must be a single number"),
    "phi": (lambda: pj.density.averaged_reward(_land(), [0.5, 0.6]), r"phi must sum to 1"),
    "greedy pool": (lambda: pj.density.greedy(_land(), PHI, pool_size=1), r"pool_size must be at least 2 .*got 1"),
    "pool": (lambda: pj.density.averaged_reward(_land(), PHI, pool_size=1), r"pool_size must be at least 2 .*got 1"),
    "temperature": (lambda: pj.density.no_curation(_land(), PHI, temperature=-1.0), r"temperature must be positive"),
    "key": (
        lambda: pj.run(pj.density.reward_per_round(_land(), PHI), _large().init(), 2),
        r"key must be a PRNG key, because each round's preference is drawn",
    ),
    "weight": (lambda: pj.density.mix_real(_large(), [0.0, 0.0], 1.2), r"weight must lie between 0 and 1, got 1.2"),
    "weights": (lambda: pj.density.mix_real(_large(), [0.0, 0.0], [0.1, 0.2]), r"weight must be a single number"),
    "real": (lambda: pj.density.mix_real(_large(), [0.0], 0.1), r"log_real must have one log-mass for each of the 2"),
    "no real": (lambda: pj.density.mix_real(_large(), [-np.inf] * 2, 0.1), r"log_real holds no mass"),
    "initial": (lambda: pj.density.accumulate(_large(), initial_sets=0.0), r"initial_sets must be positive, got 0"),
    "twice": (
        lambda: pj.density.accumulate(pj.density.finite_set(pj.density.accumulate(_large()), 5)),
        r"process accumulates its data already",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_refused(name):
    call, message = CASES[name]
    with pytest.raises(ValueError, match=message):
        call()
