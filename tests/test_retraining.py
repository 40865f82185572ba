"""The retraining loop: against the exact densities, its numbers, rewards on the host, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import plural_jax as pj
from plural_jax import curation, retraining
from plural_jax.models.counting import histogram

ATOMS, ROUNDS = 9, 4


@pytest.fixture
def key(rng):
    return jax.random.key(int(rng.integers(2**31)))


@pytest.fixture
def setting(rng):
    rewards, log_p = rng.normal(size=(2, ATOMS)) * 1.5, np.log(rng.dirichlet(np.full(ATOMS, 5.0)))
    return rewards, log_p, np.array([0.35, 0.65])


def seeds(process, key, num, rounds=ROUNDS):
    """Many runs at once: final states and infos with a leading axis over seeds."""

    @jax.jit
    def all(process, keys):
        def one(key):
            first, rest = jax.random.split(key)
            return pj.run(process, process.init(first), rounds, key=rest)

        return jax.vmap(one)(keys)

    return all(process, jax.random.split(key, num))


def exact(process, log_p, rounds=ROUNDS):
    return np.exp(np.asarray(pj.run(process, process.init(log_p), rounds, save="density")[1].log_p))


@pytest.mark.end_to_end
def test_counting_converges_to_the_exact_dynamics_like_monte_carlo(setting, key):
    """A histogram refit by counting, fresh pools of five: errors fall like 1/sqrt(N)."""
    rewards, log_p, phi = setting
    expected = exact(pj.density.finite_pool(pj.Landscape(rewards=rewards), phi, pool_size=5.0), log_p)[-1]
    sizes, errors = [50, 3200], []
    for size in sizes:
        process = retraining.loop(histogram(log_p), pj.rewards.items(rewards), phi, num_curated=size, pool_size=5)
        final, _ = seeds(process, jax.random.fold_in(key, size), 64)
        p = np.exp(np.asarray(final.params))
        errors.append(np.sqrt(np.mean((p - expected) ** 2)))
        # Within four standard errors of the mean, but for the bias of order 1/N of a nonlinear map.
        deviation = np.abs(p.mean(axis=0) - expected)
        assert (deviation < 4.5 * p.std(axis=0) / np.sqrt(64) + 5 / size).all()
    rate = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert -0.6 < rate < -0.4


@pytest.mark.end_to_end
def test_accumulated_and_real_data_follow_their_exact_processes(setting, key):
    rewards, log_p, phi = setting
    land, model, reward = pj.Landscape(rewards=rewards), histogram(log_p), pj.rewards.items(rewards)
    inner = pj.density.finite_pool(land, phi, pool_size=3.0)
    real = np.repeat(np.arange(3), [1, 2, 5])
    log_real = np.log(np.append([1, 2, 5], np.full(ATOMS - 3, 1e-300)) / 8)
    cases = [
        ({"accumulate": ROUNDS, "initial_sets": 2}, pj.density.accumulate(inner, initial_sets=2.0)),
        ({"real": real, "real_weight": 0.3}, pj.density.mix_real(inner, log_real, 0.3)),
    ]
    for options, process in cases:
        sampled = retraining.loop(model, reward, phi, num_curated=2000, pool_size=3, **options)
        final, info = seeds(sampled, key, 24)
        p = np.exp(np.asarray(final.params))
        expected = exact(process, log_p)[-1]
        np.testing.assert_allclose(p.mean(axis=0), expected, atol=5 * p.std() / np.sqrt(24 * 4) + 5e-3)
        assert np.abs(p.mean(axis=0) - expected).max() < 0.02 and not info.fault.any()
    assert final.data is None


def test_a_pool_grows_by_the_survivors(setting, key):
    """The first draws are from the seeds alone; new samples join once each, and only those that the rule picks."""
    rewards, log_p, phi = setting
    given = np.repeat(
        np.arange(ATOMS - 1), np.arange(1, ATOMS)
    )  # seeds without the last atom, which the model does have
    options = {"num_candidates": 40, "num_curated": 2000, "grow": 3, "seeds": given}
    process = retraining.loop(histogram(log_p), pj.rewards.items(rewards), phi, **options)
    state = process.init(key)
    assert int(state.pool.used) == len(given) and state.pool.samples.shape == (len(given) + 3 * 40,)
    frequency = np.append(np.bincount(given), 0) / len(given)
    tilted = np.exp(rewards) * frequency
    expected = phi @ (tilted / tilted.sum(1, keepdims=True))
    new, info = process.step(key, state)
    drawn = np.exp(np.asarray(new.params))  # the histogram's fit is the frequencies of what was curated
    assert drawn[-1] == 0 and np.abs(drawn - expected).max() < 5 * np.sqrt(0.25 / 2000)
    for number in range(2):
        before, used = state.pool, int(state.pool.used)
        state, info = process.step(jax.random.fold_in(key, number), state)
        joined = int(info.num_joined)
        assert 0 < joined <= 40 and int(state.pool.used) == used + joined
        np.testing.assert_array_equal(state.pool.samples[:used], before.samples[:used])
        fresh = np.asarray(state.pool.samples[used : used + joined])
        assert (np.bincount(fresh, minlength=ATOMS) <= np.bincount(state.candidates, minlength=ATOMS)).all()
        np.testing.assert_allclose(
            state.pool.rewards[:, : used + joined], rewards[:, state.pool.samples[: used + joined]]
        )
    # Sharp rewards let only the best survive.
    sharp = retraining.loop(histogram(log_p), pj.rewards.items(rewards), phi, temperature=1e-3, **options)
    state, info = sharp.step(key, sharp.init(key))
    best = set(np.argmax(np.where(np.isin(np.arange(ATOMS), state.candidates), rewards, -np.inf), axis=1))
    assert set(np.asarray(state.pool.samples[len(given) : len(given) + int(info.num_joined)])) <= best
    with pytest.raises(ValueError, match="grow has room for fewer rounds"):
        pj.run(process, process.init(key), 9, key=key)


def test_a_pool_starts_with_the_first_samples_where_no_seeds_are_given(setting, key):
    rewards, log_p, phi = setting
    process = retraining.loop(
        histogram(log_p), pj.rewards.items(rewards), phi, num_candidates=30, num_curated=9, grow=1
    )
    state = process.init(key)
    np.testing.assert_array_equal(state.pool.samples[:30], state.candidates)
    assert int(state.pool.used) == 30


def test_info_is_what_it_says(setting, key):
    """Every field a second time in NumPy, from the states of a run."""
    rewards, log_p, phi = setting
    basin = lambda atoms: jnp.where(atoms < 3, 0, jnp.where(atoms < 6, 1, -1))  # noqa: E731
    process = retraining.loop(
        histogram(log_p), pj.rewards.items(rewards), phi, num_candidates=300, num_curated=120, basin=basin,
        measure=lambda params, atoms: {"largest": atoms.max()},
    )  # fmt: skip
    old = process.init(key)
    step_key = jax.random.fold_in(key, 1)
    new, info = process.step(step_key, old)
    atoms = np.asarray(new.candidates)
    r = rewards[:, atoms]
    np.testing.assert_allclose(new.rewards, r)
    np.testing.assert_allclose(info.reward_mean, r.mean(axis=1))
    np.testing.assert_allclose(info.reward_variance, r.var(axis=1))
    label = np.asarray(basin(jnp.asarray(atoms)))
    share = np.array([(label == i).mean() for i in (0, 1, -1)])
    np.testing.assert_allclose(info.allocation, share[:2])
    np.testing.assert_allclose(info.allocation_entropy, -scipy.special.xlogy(share, share).sum())  # a share may be 0
    np.testing.assert_allclose(info.entropy, -np.asarray(new.params)[atoms].mean())
    assert info.measured["largest"] == atoms.max() and info.fault == 0
    # The same draws again, from the part of the key that chooses.
    picked = curation.curate(jax.random.split(step_key, 4)[0], old.rewards, phi, 120)
    index, active = np.asarray(picked.candidate), np.asarray(picked.preference)
    np.testing.assert_allclose(
        np.exp(new.params), np.bincount(np.asarray(old.candidates)[index], minlength=ATOMS) / 120
    )
    assert info.num_distinct == len(set(index))
    from_where = np.asarray(basin(old.candidates))[index]
    for i in range(2):
        assert info.drawn[i] == pytest.approx((active == i).mean())
        leak = ((from_where >= 0) & (from_where != i))[active == i].mean()
        assert info.leakage[i] == pytest.approx(leak)


def test_leakage_of_nobody_is_unknown(setting, key):
    rewards, log_p, phi = setting
    process = retraining.loop(
        histogram(log_p), pj.rewards.items(rewards), phi, policy=curation.single_reward(1), num_curated=50
    )
    _, info = process.step(key, process.init(key))
    assert np.isnan(info.leakage[0]) and info.leakage[1] >= 0 and info.drawn.tolist() == [0, 1]


def test_rewards_on_the_host(setting, key):
    """A callable that wants NumPy arrays: found out, the same numbers bit for bit, one call for a batch of seeds."""
    rewards, log_p, phi = setting
    calls = []

    def reward(atoms):
        calls.append(atoms.shape)
        assert isinstance(atoms, np.ndarray)
        return rewards.T[atoms].tolist()

    loops = [
        retraining.loop(histogram(log_p), r, phi, num_candidates=40, num_curated=30, reward_on=where)
        for r, where in ((pj.rewards.items(rewards), "auto"), (reward, "auto"), (reward, "host"))
    ]
    assert [retraining.placement(p) for p in loops] == ["device", "host", "host"]
    results = [pj.run(p, p.init(key), 3, key=key) for p in loops]
    for other in results[1:]:
        jax.tree.map(np.testing.assert_array_equal, other, results[0])
    calls.clear()
    many = seeds(loops[1], key, 5, rounds=2)
    assert calls == [(200,)] * 3
    jax.tree.map(np.testing.assert_array_equal, many, seeds(loops[0], key, 5, rounds=2))


def test_a_host_reward_of_the_wrong_shape(setting, key):
    _, log_p, phi = setting
    process = retraining.loop(histogram(log_p), lambda atoms: np.asarray(atoms), phi, num_candidates=40, num_curated=5)
    with pytest.raises(Exception, match=r"reward must return one number for each of 40 samples and 2 preferences"):
        jax.block_until_ready(process.init(key))


def test_faults_stop_a_run(setting, key):
    rewards, log_p, phi = setting
    model = histogram(log_p)
    bad = retraining.loop(model, lambda atoms: jnp.where(atoms[:, None] >= 0, jnp.nan, jnp.ones(2)), phi)
    with pytest.raises(ValueError, match="reward was NaN or infinite for a candidate"):
        pj.run(bad, bad.init(key), 2, key=key)
    full = retraining.loop(model, pj.rewards.items(rewards), phi, accumulate=2, num_curated=20)
    pj.run(full, full.init(key), 2, key=key)
    with pytest.raises(ValueError, match="accumulate or grow has room for fewer rounds than were run"):
        pj.run(full, full.init(key), 3, key=key, save=lambda state, info: info.entropy)

    def make(phi):
        process = retraining.loop(model, lambda atoms: jnp.full((*atoms.shape, 2), jnp.inf), jnp.stack([phi, 1 - phi]))
        return process, key

    with pytest.raises(ValueError, match="reward was NaN or infinite"):
        pj.sweep(make, phi=[0.5], num_steps=1, key=key)


def test_a_pretrained_model_and_numbers_that_change(setting, key):
    rewards, log_p, phi = setting
    traces = []

    @jax.jit
    def run(phi, temperature, table):
        traces.append(1)
        process = retraining.loop(
            histogram(log_p), pj.rewards.items(table), phi, temperature=temperature, num_curated=20
        )
        return process.step(key, process.init(key, jnp.log(jnp.full(ATOMS, 1 / ATOMS))))

    first, _ = run(phi, 1.0, rewards)
    second, _ = run(phi[::-1], 2.0, rewards * 2)
    assert len(traces) == 1 and not np.array_equal(first.params, second.params)
    # The candidates of the given model, not of the model's own start.
    process = retraining.loop(histogram(np.where(np.arange(ATOMS) == 0, 0.0, -np.inf)), pj.rewards.items(rewards), phi)
    assert len(set(np.asarray(process.init(key, jnp.zeros(ATOMS) - np.log(ATOMS)).candidates))) == ATOMS
    assert set(np.asarray(process.init(key).candidates)) == {0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"phi": [0.5, 0.6]}, "phi must sum to 1"),
        ({"phi": 0.5}, r"phi must hold one weight for each preference, got shape \(\)"),
        ({"phi": [0.2, 0.3, 0.5]}, r"reward must return one number for each sample and preference, shape \(1000, 3\)"),
        ({"pool_size": 2000, "num_candidates": 1000}, "pool_size must be at most the number of candidates, got 2000 of 1000"),
        ({"replace": False, "num_curated": 1001}, "num_curated must be at most the number of candidates"),
        ({"temperature": -1.0}, "temperature must be one number that is not negative, got -1.0"),
        ({"real_weight": 0.5}, "real_weight=0.5 needs real data"),
        ({"real": np.zeros(3, int), "real_weight": 2.0}, "real_weight must be one number between 0 and 1, got 2.0"),
        ({"real": (np.zeros(3),), "real_weight": 0.5}, "real must have the structure of the samples"),
        ({"accumulate": 0}, "accumulate must be a whole number of at least 1, got 0"),
        ({"grow": 0}, "grow must be a whole number of at least 1, got 0"),
        ({"seeds": np.zeros(3, int)}, "seeds need a pool that grows: give grow="),
        ({"grow": 1, "seeds": np.zeros(3, int), "pool_size": 4}, "seeds must be at least 4 samples, got 3"),
        ({"grow": 1, "seeds": (np.zeros(3),)}, "seeds must have the structure of the samples"),
        ({"reward": 3}, "reward must be a function of samples, got 3"),
        ({"reward_on": "gpu"}, "reward_on must be 'auto', 'device' or 'host', got 'gpu'"),
        ({"policy": curation.single_reward(5)}, "preference must be one of the 2 preferences"),
    ],
)  # fmt: skip
def test_refused(arguments, message):
    given = {
        "model": histogram(np.zeros(4)),
        "reward": pj.rewards.items(np.zeros((2, 4))),
        "phi": [0.5, 0.5],
        **arguments,
    }
    with pytest.raises(ValueError, match=message):
        retraining.loop(given.pop("model"), given.pop("reward"), given.pop("phi"), **given)


def test_a_model_of_plain_functions(key):
    """A newcomer's model: a coin, fit by its mean; no `Partial`, no log-density."""

    def fit(key, p, samples, weights):
        return jnp.mean(samples)

    coin = pj.models.Model(
        init=lambda key: jnp.asarray(0.5),
        sample=lambda key, p, num: jax.random.bernoulli(key, p, (num,)).astype(jnp.float64),
        fit=fit,
    )
    process = retraining.loop(
        coin, lambda x: jnp.stack([x, -x], -1), phi=[1.0, 0.0], num_candidates=400, num_curated=400
    )
    final, _ = pj.run(process, process.init(key), num_steps=12, key=key)
    assert float(final.params) > 0.95


def test_a_step_needs_a_key(setting, key):
    rewards, log_p, phi = setting
    process = retraining.loop(histogram(log_p), pj.rewards.items(rewards), phi)
    with pytest.raises(ValueError, match="key must be a PRNG key"):
        process.step(None, process.init(key))


def test_placement_of_another_process(setting):
    process = pj.density.large_pool(pj.Landscape(rewards=setting[0]), setting[2])
    with pytest.raises(ValueError, match=r"process must be made by pj.retraining.loop"):
        retraining.placement(process)
