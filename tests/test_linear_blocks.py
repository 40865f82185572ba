"""Many rounds at once: against NumPy, against one step after another, at the edges of the range, and under transformations.

The oracle is the loop of Eq. 5 in float64 log space, written here a second time in NumPy.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import plural_jax as pj
from plural_jax import _pallas
from plural_jax.density import linear_blocks, on_chip, tilt_blocks
from plural_jax.density.core import DensityState
from plural_jax.density.linear_blocks_masses import Format
from plural_jax.density.matrix_blocks import Tables
from tests import oracles
from tests.oracles import random_problem
from tests.test_matrix_blocks import run as run_pools

FIELDS = pj.density.DensityInfo._fields


def oracle(rewards, phi, log_p, num_steps):
    """Log-masses after each round, [num_steps, n]."""
    trace, phi = [], phi.astype(np.float64)
    for _ in range(num_steps):
        log_p = log_p + oracles.large_pool_log_w(log_p, rewards, phi)
        log_p = log_p - oracles.log_sum_exp(log_p)
        trace.append(log_p)
    return np.array(trace)


def run(rewards, phi, log_p, num_steps, every=1, eps=0.1):
    """The rounds as a function of arrays alone."""
    process = pj.density.large_pool(pj.Landscape(rewards=rewards), phi, eps=eps)
    return process.rounds(None, process.init(log_p), num_steps, every)


def step_by_step(rewards, phi, log_p, num_steps, every=1, eps=0.1):
    """The same from `step`, which knows no blocks."""
    process = pj.density.large_pool(pj.Landscape(rewards=rewards), phi, eps=eps)
    return oracles.step_by_step(process, log_p, num_steps, every)


jitted = jax.jit(run, static_argnums=(3, 4))
jitted_steps = jax.jit(step_by_step, static_argnums=(3, 4))


def assert_infos_close(got, expected, rtol, atol):
    for name in FIELDS:
        a, b = getattr(got, name), getattr(expected, name)
        assert a.dtype == b.dtype and a.shape == b.shape, name
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=name)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("m", "n", "every"), [(1, 9, 2), (2, 21, 1), (3, 8, 12)])
def test_rounds_equal_repeated_steps(rng, dtype, m, n, every):
    rewards, phi, log_p = random_problem(rng, m, n, dtype=dtype)
    state, infos = jitted(rewards, phi, log_p, 12, every)
    reference, expected = jitted_steps(rewards, phi, log_p, 12, every)
    tolerance = 1e-11 if dtype == np.float64 else 1e-4
    assert_infos_close(infos, expected, tolerance, tolerance)
    assert state.log_p.dtype == dtype
    for got in (state, reference):
        np.testing.assert_allclose(
            got.log_p, oracle(rewards, phi, log_p, 12)[-1], rtol=tolerance, atol=tolerance, err_msg="log_p"
        )
    np.testing.assert_allclose(state.log_w, reference.log_w, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_vanishing_masses_are_followed_exactly(rng, dtype):
    # Cells lose about five e-folds a round, for 300 rounds: far beyond the range of float32 and of float64.
    rewards = np.concatenate([[0.0, -1.0], rng.uniform(-6, -4, size=14)])[None].astype(dtype)
    log_p = np.log(rng.dirichlet(np.ones(16))).astype(dtype)
    expected = oracle(rewards, np.ones(1), log_p, 300)
    state, _ = jitted(rewards, np.ones(1, dtype), log_p, 300, 300)
    assert expected[-1].min() < -1100
    np.testing.assert_allclose(state.log_p, expected[-1], rtol=2e-6 if dtype == np.float32 else 1e-13)


def test_atoms_without_mass_stay_without_mass(rng):
    rewards, phi, log_p = random_problem(rng, n=16)
    rewards[:, 3] += 1e3  # no reward helps an atom that is never drawn
    log_p[3] = -np.inf
    # Not through `init`, which refuses a start without mass in a basin.
    process = pj.density.large_pool(pj.Landscape(rewards=rewards), phi)
    log_p = log_p - oracles.log_sum_exp(log_p)
    state = DensityState(jnp.asarray(log_p), jnp.asarray(oracles.large_pool_log_w(log_p, rewards, phi)))
    state, infos = jax.jit(lambda s: process.rounds(None, s, 20, 20))(state)
    expected = oracle(rewards, phi, log_p, 20)[-1]
    assert np.isneginf(state.log_p[3]) and all(np.isfinite(x).all() for x in infos)
    alive = np.arange(16) != 3
    np.testing.assert_allclose(state.log_p[alive], expected[alive], rtol=1e-10, atol=1e-10)


def test_a_far_start_finds_the_reward(rng):
    # In float32, where the mass at the second centre is e^-112 and would be lost.
    x = np.linspace(-5, 20, 500)
    centers = np.array([rng.uniform(-1, 1), 15.0])
    rewards = (-0.25 * (x - centers[:, None]) ** 2).astype(np.float32)
    log_p = (-0.5 * x**2).astype(np.float32)
    phi = np.array([0.4, 0.6], np.float32)
    expected = oracle(rewards, phi, log_p.astype(np.float64), 40)
    _, infos = jitted(rewards, phi, log_p, 40, 1)
    basins = rewards >= rewards.max(1, keepdims=True) - np.float32(0.1)
    masses = np.exp(expected) @ basins.T
    assert np.exp(log_p)[basins[1]].max() < 1e-44 and masses[-1, 1] > 0.1
    np.testing.assert_allclose(infos.basin_mass, masses, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_rewards_of_ten_thousand(rng, dtype):
    rewards, phi, log_p = random_problem(rng, m=3, n=12, scale=1e4, dtype=dtype)
    phi[1] = 0
    state, infos = jitted(rewards, phi, log_p, 8, 2)
    expected = oracle(rewards, phi, log_p.astype(np.float64), 8)
    np.testing.assert_allclose(state.log_p, expected[-1], rtol=1e-5, atol=1e-3)
    assert all(np.isfinite(x).all() for x in infos)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_small_variances_keep_their_digits(dtype):
    # Nearly all mass sits where the second reward is 5 below its best: the variance is 1e-4 of the squared mean.
    rewards = np.array([[0.0, -0.2, -9.0], [-5.0, -4.9, 0.0]], dtype)
    log_p = np.log(np.array([0.9, 0.0999, 1e-4])).astype(dtype)
    phi = np.array([1.0, 0.0], dtype)
    expected = oracle(rewards, phi, log_p.astype(np.float64), 30)
    _, infos = jitted(rewards, phi, log_p, 30, 1)
    p, r = np.exp(expected), rewards.astype(np.float64)
    mean = p @ r.T
    variance = np.einsum("tx,tix->ti", p, (r[None] - mean[:, :, None]) ** 2)
    np.testing.assert_allclose(infos.reward_variance, variance, rtol=1e-10 if dtype == np.float64 else 3e-5)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_entropy_is_accurate(rng, dtype):
    # From spread out to nearly one atom, where log p is close to zero.
    rewards, phi, log_p = random_problem(rng, m=1, n=400, scale=0.5, dtype=dtype)
    _, infos = jitted(rewards, phi, log_p, 60, 1)
    expected = oracle(rewards, phi, log_p.astype(np.float64), 60)
    entropy = -np.sum(np.exp(expected) * expected, axis=1)
    tolerance = 1e-12 if dtype == np.float64 else 4e-6
    np.testing.assert_allclose(infos.entropy, entropy, rtol=tolerance, atol=tolerance)


@functools.partial(jax.jit, static_argnums=(3,))
def _number(rewards, phi, log_p, function=run):
    """One number that looks at everything a run returns."""
    state, infos = function(rewards, phi, log_p, 6, 2)
    weights = jnp.cos(jnp.arange(state.log_p.shape[0]).astype(state.log_p.dtype))
    smooth = (infos.reward_mean, infos.reward_variance, infos.log_z, infos.entropy, infos.objective)
    return jnp.sum(weights * (state.log_p + state.log_w)) + sum(jnp.sum(jnp.square(x)) for x in smooth)


def test_vmap_over_every_set_of_axes(rng):
    # Three of each: configurations are filled up with copies, landscapes are not.
    problems = [random_problem(rng, n=10) for _ in range(3)]
    rewards, phi, log_p = (jnp.stack(x) for x in zip(*problems, strict=True))
    expected = np.array([[[_number(r, f, s) for s in log_p] for f in phi] for r in rewards])
    by_start = jax.vmap(_number, (None, None, 0))
    by_phi_and_start = jax.vmap(by_start, (None, 0, None))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-10)
    close(jax.vmap(by_phi_and_start, (0, None, None))(rewards, phi, log_p), expected)
    close(jax.vmap(jax.vmap(_number, (0, None, None)), (None, 0, None))(rewards, phi, log_p[0]), expected[:, :, 0].T)
    close(jax.vmap(_number)(rewards, phi, log_p), expected[range(3), range(3), range(3)])
    close(
        jax.vmap(jax.vmap(_number), (None, None, 0))(rewards, phi, log_p[:, None].repeat(3, 1)),
        np.array([expected[range(3), range(3), k] for k in range(3)]),
    )
    close(jax.lax.map(lambda f: by_start(rewards[0], f, log_p), phi), expected[0])


def test_the_chip_of_a_gpu_is_used_where_a_density_fits(rng, monkeypatch):
    on_the_chip = []

    def record(*arguments):
        on_the_chip.append(arguments[-1].shape[1])
        return tilt_blocks.xla_rounds(*arguments)

    monkeypatch.setattr(on_chip, "run", record)
    for n, is_gpu in ((30, False), (30, True), (10**5, True)):
        monkeypatch.setattr(_pallas, "available", lambda is_gpu=is_gpu: is_gpu)
        jax.eval_shape(lambda *x: run(*x, 4), *random_problem(rng, n=n))
    assert on_the_chip == [30]


def test_one_wild_configuration_does_not_spoil_the_others(rng):
    rewards, _, log_p = random_problem(rng, n=14, scale=40.0)
    phis = np.array([[0.0, 1.0], [1.0, 0.0], [0.3, 0.7], [1e-12, 1 - 1e-12]])
    state, _ = jax.vmap(lambda phi: jitted(rewards, phi, log_p, 25, 5))(jnp.asarray(phis))
    for i, phi in enumerate(phis):
        np.testing.assert_allclose(state.log_p[i], oracle(rewards, phi, log_p, 25)[-1], rtol=1e-9, atol=1e-9)


def test_derivatives(rng):
    rewards, phi, log_p = (jnp.asarray(x) for x in random_problem(rng, m=3, n=7))
    # Forwards and backwards as one program each.
    got = jax.jit(jax.grad(_number.__wrapped__, (0, 1, 2)))(rewards, phi, log_p)
    expected = jax.jit(jax.grad(lambda *x: _number.__wrapped__(*x, step_by_step), (0, 1, 2)))(rewards, phi, log_p)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9)
    for i, x in enumerate((rewards, phi, log_p)):
        direction = jnp.asarray(rng.normal(size=x.shape))
        direction = direction - direction.mean() if i == 1 else direction

        def along(h, i=i, direction=direction):
            moved = [rewards, phi, log_p]
            moved[i] = moved[i] + h * direction
            return _number(*moved)

        h = 1e-6
        difference = (along(h) - along(-h)) / (2 * h)
        forward = jax.jvp(along, (0.0,), (1.0,))[1]
        np.testing.assert_allclose(forward, difference, rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(jnp.sum(got[i] * direction), difference, rtol=2e-5, atol=1e-6)


def test_derivatives_of_batches(rng):
    rewards, phi, log_p = (jnp.asarray(x) for x in random_problem(rng, m=2, n=7))
    phis = jnp.stack([phi, phi[::-1], jnp.asarray([0.0, 1.0])])
    one = jax.grad(_number, 1)
    batched = jax.vmap(one, (None, 0, None))(rewards, phis, log_p)
    total = jax.grad(lambda f: jnp.sum(jax.vmap(_number, (None, 0, None))(rewards, f, log_p)))(phis)
    for i in range(3):
        expected = one(rewards, phis[i], log_p)
        assert np.isfinite(expected).all()
        np.testing.assert_allclose(batched[i], expected, rtol=1e-9)
        np.testing.assert_allclose(total[i], expected, rtol=1e-9)


def test_new_numbers_compile_nothing(rng):
    function = jax.jit(lambda *x: run(*x, 4))
    for _ in range(3):
        function(*random_problem(rng, n=6))
    function(*random_problem(rng, n=6, scale=1e4))
    assert function._cache_size() == 1


def test_sharded(rng):
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    rewards, phi, log_p = random_problem(rng, n=10)
    phis = jnp.asarray(np.stack([phi, phi[::-1]]))
    spec = jax.sharding.PartitionSpec("d")
    body = jax.vmap(lambda f: _number(rewards, f, log_p))
    sharded = jax.jit(jax.shard_map(body, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))
    np.testing.assert_allclose(sharded(phis), [_number(rewards, f, log_p) for f in phis], rtol=1e-10)


# At the end, because it makes JAX forget what the other tests compiled.
class Doubtful(tilt_blocks.Tilts):
    """Reads sums that are wrong, and says so, once a deep cell has grown in a block."""

    def measure(self, masses):
        shallowest = self._setting.form.shallowest
        grown = [jnp.any((x.exponent < shallowest) & (x.q >= 2.0 ** (shallowest + 1))) for x in masses]
        z = super().measure(masses).z
        return self.measured(z + 2 * jnp.any(jnp.stack(grown)).astype(z.dtype))

    def trusted(self, growth, measured):
        return super().trusted(growth, measured) & ((growth <= 1) | jnp.all(measured.z < 1.5))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sums_that_are_not_trusted_are_read_again(rng, monkeypatch, dtype):
    """A block takes over what the one before read last, unless false masses had grown until they counted."""
    monkeypatch.setattr(tilt_blocks, "xla_rounds", functools.partial(linear_blocks.run, Doubtful))
    n = 14
    rewards = np.concatenate([[[5.0], [0.0]], rng.uniform(0, 2, (2, n - 1))], axis=1)
    log_p = np.concatenate([[-300.0 if dtype == np.float32 else -2000.0], np.log(rng.dirichlet(np.ones(n - 1)))])
    phi, num_steps = np.array([0.6, 0.4], dtype), 12
    state, infos = jax.jit(run, static_argnums=(3, 4))(rewards.astype(dtype), phi, log_p.astype(dtype), num_steps)
    expected = oracle(rewards, phi, log_p, num_steps)
    tolerance = 1e-4 if dtype == np.float32 else 1e-11
    np.testing.assert_allclose(state.log_p, expected[-1], rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(infos.reward_mean, np.exp(expected) @ rewards.T, rtol=tolerance)


@pytest.mark.parametrize("pool_size", [None, 6.5])
def test_pieces_and_parts_change_nothing(rng, monkeypatch, pool_size):
    """Many configurations are computed a piece at a time, and with several host devices their cells in parts."""
    rewards = jnp.asarray(rng.normal(size=(3, 2, 26)) * 2)
    log_p = jnp.asarray(np.log(rng.dirichlet(np.ones(26))))
    phis = jnp.asarray(rng.dirichlet(np.ones(2), size=70))

    def batch():
        def one(r, f):
            return run(r, f, log_p, 5, 5) if pool_size is None else run_pools(r, f, log_p, pool_size, 5, 5)

        # A function of its own, so that nothing is remembered.
        return jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))(rewards, phis)

    monkeypatch.setattr(Tables, "fewest_cell_steps", 0)
    whole = batch()
    shapes = []
    take = linear_blocks._run
    monkeypatch.setattr(linear_blocks, "_run", lambda *a: shapes.append(a[-2].shape) or take(*a))
    monkeypatch.setattr(linear_blocks, "_ENTRIES_AT_A_TIME", 26 * 32 * 2)
    monkeypatch.setattr(linear_blocks, "_ENTRIES_OF_A_PART", 600)
    monkeypatch.setattr(jax, "local_device_count", lambda: 2)
    jax.clear_caches()
    parts = batch()
    assert shapes[-1] == (1, 2, 35)  # two pieces of the columns, one landscape at a time
    for a, b in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_masses_at_the_border_of_the_range(dtype):
    """Log-masses around that of the smallest normal number, one after another, keep their digits and are never lost."""
    form = Format.of(dtype)
    log_p = [dtype(-form.depth * np.log(2))]
    for _ in range(40):
        log_p = [np.nextafter(log_p[0], dtype(-np.inf)), *log_p, np.nextafter(log_p[-1], dtype(0))]
    log_p = np.array(log_p, dtype)[None, :, None]
    for masses in (form.from_log(log_p, (0, log_p.size)), (form.fold(*form.from_log(log_p, (0, log_p.size))),)):
        assert (np.asarray(masses[0].q) > 0).all()
        np.testing.assert_allclose(form.to_log(masses), log_p, rtol=2 * np.finfo(dtype).eps)
