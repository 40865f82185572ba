"""The step API: one conformance test over every process, and the driver `run`."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import plural_jax as pj
from plural_jax.models import histogram

REWARDS = np.array([[0.0, 1.0, 5.0, 2.0, -3.0], [5.0, 1.0, 0.0, 2.0, 4.0]])


def large_pool(phi, dtype):
    return pj.density.large_pool(pj.Landscape(rewards=REWARDS.astype(dtype)), jnp.stack([phi, 1 - phi]), eps=0.5)


def finite_pool(phi, dtype):
    land = pj.Landscape(rewards=REWARDS.astype(dtype))
    return pj.density.finite_pool(land, jnp.stack([phi, 1 - phi]), pool_size=5.0, eps=0.5)


def gaussian(phi, dtype):
    centers = jnp.asarray([[-1.0, 0.0], [1.0, 0.5]], dtype)
    return pj.density.gaussian(centers, jnp.asarray(0.5, dtype), jnp.stack([phi, 1 - phi]), num_steps=7)


def policy(name, *args, **kwargs):
    def make(phi, dtype):
        land = pj.Landscape(rewards=REWARDS.astype(dtype))
        return getattr(pj.density, name)(land, jnp.stack([phi, 1 - phi]), *args, eps=0.5, **kwargs)

    return make


def finite_set(phi, dtype):
    return pj.density.finite_set(large_pool(phi, dtype), set_size=50)


def mix_real(phi, dtype):
    return pj.density.mix_real(large_pool(phi, dtype), np.log([0.1, 0.2, 0.3, 0.2, 0.2]), weight=phi)


def accumulate(phi, dtype):
    return pj.density.accumulate(large_pool(phi, dtype), initial_sets=2.0)


def all_together(phi, dtype):
    process = pj.density.finite_set(
        pj.density.reward_per_round(pj.Landscape(rewards=REWARDS.astype(dtype)), jnp.stack([phi, 1 - phi])),
        set_size=200,
    )
    return pj.density.accumulate(pj.density.mix_real(process, np.zeros(5), weight=0.1))


def to_limit(phi, dtype):
    return pj.density.to_limit(pj.Landscape(rewards=REWARDS.astype(dtype)), jnp.stack([phi, 1 - phi]))


def retraining(phi, dtype):
    process = pj.retraining.loop(
        histogram(np.zeros(5, dtype)), pj.rewards.items(REWARDS.astype(dtype)), jnp.stack([phi, 1 - phi]),
        num_candidates=30, num_curated=20, pool_size=4,
    )  # fmt: skip
    return process._replace(init=Partial(process.init, key=jax.random.key(5)))  # its start is drawn too


#: Every process of the library, as a function of a weight phi and a floating type. New processes are added here.
PROCESSES = {
    "large_pool": large_pool,
    "finite_pool": finite_pool,
    "gaussian": gaussian,
    "single_reward": policy("single_reward", 1),
    "averaged_reward": policy("averaged_reward"),
    "reward_per_round": policy("reward_per_round"),
    "no_curation": policy("no_curation"),
    "greedy": policy("greedy", pool_size=4.0),
    "finite_set": finite_set,
    "mix_real": mix_real,
    "accumulate": accumulate,
    "all_together": all_together,
    "to_limit": to_limit,
    "retraining": retraining,
}
STEPS = 6


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", PROCESSES)
def test_protocol(name, dtype):
    """Round trip, types, jit, vmap, loop and no retrace, for every process in both precisions."""
    make, tolerance = PROCESSES[name], 2e-5 if dtype == np.float32 else 1e-11
    key = jax.random.key(0)
    process = make(jnp.asarray(0.3, dtype), dtype)
    state = process.init()
    floats = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert floats and all(leaf.dtype == dtype for leaf in floats)

    # One step keeps structure, shapes and types, so that it can be the body of a scan.
    after, info = jax.jit(process.step)(key, state)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(lambda x: x.dtype, state)
    assert all(x.dtype == dtype for x in jax.tree.leaves(info) if jnp.issubdtype(x.dtype, jnp.floating))

    # A Python loop over step.
    looped, infos = state, []
    step = jax.jit(process.step)
    for t in range(STEPS):
        looped, info = step(jax.random.fold_in(key, t), looped)
        infos.append(info)
    expected = jax.tree.map(lambda *x: jnp.stack(x), *infos)

    # run, under jit and vmap over the number that everybody maps over; and a new number compiles nothing.
    traces = []

    @jax.jit
    def many(phis):
        traces.append(1)

        def one(phi):
            process = make(phi, dtype)
            return pj.run(process, process.init(), STEPS, key=key)

        return jax.vmap(one)(phis)

    batch = many(jnp.asarray([0.3, 0.8], dtype))
    many(jnp.asarray([0.2, 0.4], dtype))
    assert len(traces) == 1

    def close(a, b):
        np.testing.assert_allclose(a[0], b, rtol=tolerance, atol=tolerance)

    jax.tree.map(close, batch, (looped, expected))


@pytest.mark.parametrize("name", PROCESSES)
def test_run_of_a_process_is_its_steps(name):
    """Without any transformation around it, and in pieces."""
    process, key, meter = PROCESSES[name](jnp.asarray(0.3), np.float64), jax.random.key(0), Counter()
    final, trace = pj.run(process, process.init(), 4, key=key, progress=meter)
    assert meter.seen == 4
    state, step = process.init(), jax.jit(process.step)
    for t in range(4):
        state, info = step(jax.random.fold_in(key, t), state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11), final, state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[-1], b, rtol=1e-11, atol=1e-11), trace, info)


def test_run_does_not_retrace_when_numbers_change():
    traces = []

    def save(state, info):
        traces.append(1)
        return info.entropy

    for phi in (0.2, 0.5):
        process = large_pool(jnp.asarray(phi), np.float64)
        pj.run(process, process.init(), STEPS, save=save)
    assert len(traces) == 1


class Walk(NamedTuple):
    position: jax.Array


def random_walk():
    """A stochastic process of plain functions, as a user would write one."""

    def step(key, state):
        moved = Walk(state.position + jax.random.normal(key, state.position.shape))
        return moved, {"distance": jnp.abs(moved.position).sum()}

    return pj.Process(init=lambda: Walk(jnp.zeros(3)), step=step)


class Counter:
    def __init__(self):
        self.total, self.seen, self.stopped = 0, 0, False

    def start(self, total, description):
        self.total = total

    def advance(self, amount):
        self.seen += amount

    def stop(self):
        self.stopped = True


def test_stochastic_process_in_pieces_draws_the_same_numbers():
    walk, key, meter = random_walk(), jax.random.key(7), Counter()
    whole, trace = pj.run(walk, walk.init(), 50, key=key)
    pieces, other = pj.run(walk, walk.init(), 50, key=key, progress=meter)
    np.testing.assert_array_equal(whole.position, pieces.position)
    np.testing.assert_array_equal(trace["distance"], other["distance"])
    assert meter.total == meter.seen == 50 and meter.stopped
    different, _ = pj.run(walk, walk.init(), 50, key=jax.random.key(8))
    assert not np.allclose(whole.position, different.position)


@pytest.mark.parametrize("make", [large_pool, finite_pool])
def test_save_policies(make):
    process = make(jnp.asarray(0.3), np.float64)
    state = process.init()
    final, every = pj.run(process, state, 12)
    for kwargs, rows in (({"every": 4}, [3, 7, 11]), ({"every": 12}, [11]), ({"save": "final"}, [11])):
        other, some = pj.run(process, state, 12, **kwargs)
        np.testing.assert_allclose(other.log_p, final.log_p, atol=1e-11)
        for a, b in zip(some, every, strict=True):
            np.testing.assert_allclose(a, b[np.array(rows)], atol=1e-11)
    densities = pj.run(process, state, 12, save="density", every=6)[1].log_p
    np.testing.assert_allclose(densities[-1], final.log_p, atol=1e-11)
    assert densities.shape == (2, 5)
    custom = pj.run(process, state, 12, save=lambda s, i: {"top": s.log_p.max(), "f": i.objective}, every=3)[1]
    np.testing.assert_allclose(custom["f"], every.objective[2::3], atol=1e-11)


def test_density_needs_a_density():
    walk = random_walk()
    with pytest.raises(ValueError, match="save='density' needs a state with log_p, but this one is Walk"):
        pj.run(walk, walk.init(), 2, key=jax.random.key(0), save="density")


def test_run_inside_jit_and_vmap_of_grad():
    def objective(phi):
        process = large_pool(phi, np.float64)
        return pj.run(process, process.init(), 4, save="final")[1].objective[0]

    slopes = jax.jit(jax.vmap(jax.grad(objective)))(jnp.array([0.2, 0.6]))
    h = 1e-6
    value = jax.jit(objective)
    np.testing.assert_allclose(slopes[1], (value(0.6 + h) - value(0.6 - h)) / (2 * h), rtol=1e-6)
