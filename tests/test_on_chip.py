"""The rounds on a GPU's chip, run by XLA on the CPU: against NumPy, against the plain rounds, and lowered for a GPU.

The oracle is the loop of Eq. 5 in float64 log space. Tolerances are relative plus absolute, in float32 2e-5 unless said
otherwise: a few roundings for each round.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import plural_jax as pj
from plural_jax import _pallas
from plural_jax.density import on_chip
from plural_jax.density.core import parts
from plural_jax.density.tilt_blocks import xla_rounds
from tests import oracles

EPS = 0.1
TOLERANCE = {np.dtype(np.float32): 2e-5, np.dtype(np.float64): 1e-11}


def landscape(rewards, eps=EPS):
    """G landscapes [G, m, n] as `run` takes them."""

    def one(rewards):
        phi = jnp.full(rewards.shape[0], 1 / rewards.shape[0], rewards.dtype)
        problem, multiplier = parts(pj.density.large_pool(pj.Landscape(rewards=rewards), phi, eps=eps))
        return problem._replace(phi=None, log_uniform=None), multiplier

    return jax.vmap(one)(rewards)


@functools.partial(jax.jit, static_argnums=(0, 1))
def run(num_steps, every, rewards, phi, log_p):
    return on_chip.run(num_steps, every, landscape(rewards), phi, log_p, interpret=True)


@functools.partial(jax.jit, static_argnums=(0, 1))
def plain(num_steps, every, rewards, phi, log_p):
    return xla_rounds(num_steps, every, landscape(rewards), phi, log_p)


def random_problem(rng, landscapes, m, n, configurations, dtype, scale=2.0, starts=None):
    """Rewards [G, m, n], phi [G, m, C] with a zero where there are several preferences, starts [G, n, C or 1]."""
    rewards = rng.normal(size=(landscapes, m, n)) * scale
    phi = rng.dirichlet(np.ones(m), size=(landscapes, configurations)).swapaxes(1, 2)
    if m > 1:
        phi[0, :, 0] = np.eye(m)[rng.integers(m)]
    log_p = np.log(rng.dirichlet(np.ones(n), size=(landscapes, starts or configurations))).swapaxes(1, 2)
    return tuple(np.asarray(x, dtype) for x in (rewards, phi, log_p))


def oracle(num_steps, every, rewards, phi, log_p, eps=EPS):
    """Log-masses of one configuration at the end, and the fields of the infos, in float64."""
    rewards, phi, log_p = (np.asarray(x, np.float64) for x in (rewards, phi, log_p))
    infos = []
    log_p = log_p - oracles.log_sum_exp(log_p)
    for t in range(1, num_steps + 1):
        log_p = log_p + oracles.large_pool_log_w(log_p, rewards, phi)
        log_p = log_p - oracles.log_sum_exp(log_p)
        if t % every == 0:
            log_w = oracles.large_pool_log_w(log_p, rewards, phi)
            infos.append(oracles.summary(log_p, log_w, rewards, phi, eps))
    return log_p, infos


def assert_oracle(got, num_steps, every, rewards, phi, log_p, tolerance=None):
    final, infos = got
    tolerance = tolerance or TOLERANCE[final.dtype]
    close = functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance)
    for g, c in np.ndindex(final.shape[0], final.shape[2]):
        start = log_p[g, :, min(c, log_p.shape[2] - 1)]
        expected, rows = oracle(num_steps, every, rewards[g], phi[g, :, c], start)
        close(final[g, :, c], expected, err_msg="log_p")
        assert len(rows) == infos.entropy.shape[1]
        for t, row in enumerate(rows):
            for name, value in row.items():
                close(getattr(infos, name)[g, t, ..., c], value, err_msg=f"{name} at save {t}")


def assert_plain(got, expected):
    for name, a, b in zip(("log_p", *got[1]._fields), (got[0], *got[1]), (expected[0], *expected[1]), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype, name
        tolerance = 2 * TOLERANCE[a.dtype]
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize(
    ("dtype", "m", "n", "num_steps", "every"),
    [
        (np.float32, 1, 45, 12, 12),
        (np.float32, 2, 130, 20, 1),
        (np.float64, 2, 70, 20, 4),
        (np.float64, 3, 33, 12, 5),
        (np.float32, 5, 50, 12, 4),
    ],
)
def test_random_landscapes(rng, dtype, m, n, num_steps, every):
    problem = random_problem(rng, 2, m, n, 3, dtype, starts=1 if m == 3 else None)
    got = run(num_steps, every, *problem)
    assert_oracle(got, num_steps, every, *problem)
    if num_steps % every == 0:  # rounds after the last save are more than the plain rounds promise
        assert_plain(got, plain(num_steps, every, *problem))


def test_a_far_start_finds_the_reward(rng):
    # In float32, where the mass at the second center is 1e-49, below every number that float32 has.
    x = np.linspace(-5, 20, 300)
    centers = np.array([rng.uniform(-1, 1), 15.0])
    rewards = (-0.25 * (x - centers[:, None]) ** 2).astype(np.float32)[None]
    phi = np.array([[[0.4, 0.1], [0.6, 0.9]]], np.float32)
    log_p = (-0.5 * x**2).astype(np.float32)[None, :, None]
    got = run(40, 8, rewards, phi, log_p)
    # Rewards of -70 at the far end, and log-masses of -200 to begin with.
    assert_oracle(got, 40, 8, rewards, phi, log_p, tolerance=2e-4)
    assert np.exp(log_p).min() == 0 and got[1].basin_mass[0, -1, 1].min() > 0.1


def test_rewards_of_ten_thousand(rng):
    problem = random_problem(rng, 1, 3, 40, 2, np.float32, scale=1e4)
    final, infos = run(8, 2, *problem)
    assert all(np.isfinite(x).all() for x in infos)
    assert_plain((final, infos), plain(8, 2, *problem))
    for c in range(2):
        expected, _ = oracle(8, 2, problem[0][0], problem[1][0, :, c], problem[2][0, :, c])
        np.testing.assert_allclose(final[0, :, c], expected, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_vanishing_masses_are_followed(rng, dtype):
    # Cells lose about five e-folds a round, far beyond the range of the type.
    rewards = np.concatenate([[0.0, -1.0], rng.uniform(-6, -4, size=14)])[None, None].astype(dtype)
    log_p = np.log(rng.dirichlet(np.ones(16)))[None, :, None].astype(dtype)
    final, _ = run(300, 300, rewards, np.ones((1, 1, 1), dtype), log_p)
    expected, _ = oracle(300, 300, rewards[0], np.ones(1), log_p[0, :, 0])
    assert expected.min() < -1100
    np.testing.assert_allclose(final[0, :, 0], expected, rtol=4e-6 if dtype == np.float32 else 1e-13)


def test_cells_without_mass_stay_without_mass(rng):
    # Each configuration has its own; what no configuration has may have any reward.
    rewards, phi, log_p = random_problem(rng, 1, 2, 40, 3, np.float32)
    for c in range(3):
        log_p[0, rng.choice(40, 15, replace=False), c] = -np.inf
    log_p[0, 7], rewards[0, :, 7] = -np.inf, 1e3
    got = run(15, 3, rewards, phi, log_p)
    assert (np.isneginf(got[0]) == np.isneginf(log_p)).all()
    assert_plain(got, plain(15, 3, rewards, phi, log_p))
    for c in range(3):
        expected, _ = oracle(15, 3, rewards[0], phi[0, :, c], log_p[0, :, c])
        live = np.isfinite(expected)
        np.testing.assert_allclose(got[0][0, live, c], expected[live], rtol=2e-5, atol=2e-5)


def test_small_variances_keep_their_digits():
    # Nearly all mass sits where the second reward is 5 below its best: the variance is 1e-4 of the squared mean.
    rewards = np.array([[[0.0, -0.2, -9.0], [-5.0, -4.9, 0.0]]], np.float32)
    log_p = np.log(np.array([0.9, 0.0999, 1e-4]))[None, :, None].astype(np.float32)
    phi = np.array([1.0, 0.0], np.float32)[None, :, None]
    _, infos = run(30, 3, rewards, phi, log_p)
    _, rows = oracle(30, 3, rewards[0], phi[0, :, 0], log_p[0, :, 0])
    expected = [row["reward_variance"] for row in rows]
    np.testing.assert_allclose(infos.reward_variance[0, :, :, 0], expected, rtol=3e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("m", range(1, 11))
def test_layouts(rng, m, dtype):
    fitting = []
    for n in [*range(1, 40), 2048, *rng.integers(40, 30_000, size=200)]:
        layout = on_chip.Layout.of(int(n), m, dtype)
        size, threads = layout.cells * layout.vectors, 32 * layout.num_warps
        assert n <= size < max(n + layout.cells, 33)
        assert layout.cells % threads == 0 and layout.cells.bit_count() == 1 and layout.num_warps.bit_count() == 1
        if on_chip.fits(int(n), m, dtype):
            fitting.append(n)
            # As many values as registers hold, with room for temporaries.
            assert size * (m + 2) * np.dtype(dtype).itemsize // 4 <= threads * 192 <= 65_536
    assert max(fitting) > 1_500 and not on_chip.fits(30_000, m, dtype) and not on_chip.fits(10, 11, dtype)
    assert on_chip.fits(4096, 2, np.float32) and on_chip.fits(12_288, 2, np.float32)


@pytest.mark.parametrize(("dtype", "m", "n", "every"), [(np.float32, 2, 4096, 1), (np.float64, 3, 300, 7)])
def test_it_compiles_to_triton(rng, dtype, m, n, every):
    problem = random_problem(rng, 2, m, n, 2, dtype)
    pytest.importorskip("jax.experimental.pallas.triton", reason="this JAX has no Triton lowering any more")
    function = jax.jit(lambda *x: on_chip.run(20, every, landscape(x[0]), *x[1:]))
    with oracles.a_hopper():
        text = function.trace(*problem).lower(lowering_platforms=("cuda",)).as_text()
    assert "triton" in text and "large_pool_rounds" in text
    assert f"num_warps = {on_chip.Layout.of(n, m, dtype).num_warps} : i32" in text


def test_it_is_not_for_a_cpu():
    assert jax.default_backend() != "cpu" or not _pallas.available()
