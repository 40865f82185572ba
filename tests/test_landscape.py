"""Grids, landscapes and reward functions against their formulas written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import plural_jax as pj


def test_grid_order_and_measure():
    grid = pj.Grid.uniform([0.0, -1.0], [2.0, 1.0], [3, 5])
    x, y = np.meshgrid(np.linspace(0, 2, 3), np.linspace(-1, 1, 5), indexing="ij")
    np.testing.assert_allclose(grid.points, np.stack([x.ravel(), y.ravel()], axis=1))
    assert grid.shape == (3, 5) and grid.num_cells == 15 and grid.num_dims == 2
    np.testing.assert_allclose(grid.log_measure, np.log(1.0 * 0.5))


def test_grid_one_number_for_all_dimensions():
    assert pj.Grid.uniform([0.0, 0.0, 0.0], 1.0, 4).shape == (4, 4, 4)
    assert pj.Grid.uniform(0.0, 1.0, 1).num_cells == 1


def test_grid_index_is_the_inverse_of_points(rng):
    grid = pj.Grid.uniform([0.0, -1.0], [2.0, 1.0], [7, 5])
    np.testing.assert_array_equal(grid.index_of(grid.points), np.arange(35))
    jitter = grid.points + rng.uniform(-0.4, 0.4, (35, 2)) * np.array([2 / 6, 2 / 4])
    np.testing.assert_array_equal(grid.index_of(jnp.asarray(jitter)), np.arange(35))


@pytest.mark.parametrize("d", [1, 3])
def test_rewards_against_numpy(rng, d):
    m, x = 3, rng.normal(size=(20, d))
    centers, gamma, height, width = (
        rng.normal(size=(m, d)),
        rng.uniform(0.1, 2, m),
        rng.normal(size=m),
        rng.uniform(0.5, 2, m),
    )
    squared = ((x[:, None] - centers) ** 2).sum(-1)
    points = jnp.asarray(x)
    np.testing.assert_allclose(pj.rewards.quadratic(centers, gamma)(points), -gamma * squared, rtol=1e-12)
    expected = height * np.exp(-squared / (2 * width**2))
    np.testing.assert_allclose(pj.rewards.bump(centers, height, width)(points), expected, rtol=1e-12)
    expected = np.where(squared <= 1.5**2, height, -1.0)
    np.testing.assert_array_equal(pj.rewards.plateau(centers, 1.5, height, floor=-1.0)(points), expected)


def test_table_reward(rng):
    grid = pj.Grid.uniform([0.0, 0.0], [1.0, 3.0], [4, 6])
    values = rng.normal(size=(2, 4, 6)) * 1e4
    np.testing.assert_array_equal(pj.Landscape.on(grid, pj.rewards.table(grid, values)).rewards, values.reshape(2, -1))
    # A bilinear function is interpolated without error.
    x, y = np.meshgrid(np.linspace(0, 1, 4), np.linspace(0, 3, 6), indexing="ij")
    linear = pj.rewards.table(grid, (2 * x - y + x * y)[None], method="linear")
    at = rng.uniform([0, 0], [1, 3], (30, 2))
    expected = 2 * at[:, 0] - at[:, 1] + at[:, 0] * at[:, 1]
    np.testing.assert_allclose(linear(jnp.asarray(at))[:, 0], expected, atol=1e-12)


def test_rewards_are_pytrees_and_do_not_retrace():
    traces = []

    @jax.jit
    def total(reward, x):
        traces.append(1)
        return reward(x).sum()

    for gamma in (0.5, 1.0):
        total(pj.rewards.quadratic([-1.0, 1.0], gamma), jnp.ones((3, 1)))
    assert len(traces) == 1


def test_starts_are_normalized(rng):
    land = pj.Landscape.on(pj.Grid.uniform([-4.0, -3.0], [4.0, 3.0], [40, 30]), pj.rewards.quadratic([[0.0, 0.0]], 1.0))
    np.testing.assert_allclose(np.exp(land.uniform()).sum(), 1.0, rtol=1e-12)
    mean, std = rng.normal(size=2) * 0.3, np.array([0.7, 1.1])
    p = np.exp(np.asarray(land.gaussian(mean, std)))
    x = np.asarray(land.points)
    expected = np.exp(-(((x - mean) / std) ** 2).sum(1) / 2)
    np.testing.assert_allclose(p, expected / expected.sum(), rtol=1e-10)


def test_uniform_follows_the_measure():
    land = pj.Landscape(rewards=[[1.0, 2.0, 3.0]], log_measure=np.log([1.0, 3.0, 0.0 + 1e-300]))
    np.testing.assert_allclose(np.exp(land.uniform())[:2], [0.25, 0.75], rtol=1e-12)


def test_basins_ignore_atoms_outside_the_domain():
    land = pj.Landscape(rewards=[[1.0, 2.0, 9.0]], log_measure=[0.0, 0.0, -np.inf])
    np.testing.assert_array_equal(land.basins(0.5), [[False, True, False]])


def test_dtype_is_the_callers(rng):
    values = rng.normal(size=(2, 5))
    assert pj.Landscape(rewards=values.astype(np.float32)).uniform().dtype == np.float32
    assert pj.Landscape(rewards=values).uniform().dtype == np.float64
    assert pj.Landscape(rewards=[[1, 2], [3, 4]]).rewards.dtype == np.float64


def test_vmap_over_a_parameter():
    grid = pj.Grid.uniform(-1.0, 1.0, 5)

    def best(distance):
        return pj.Landscape.on(grid, pj.rewards.quadratic(jnp.stack([-distance, distance]), 1.0)).rewards

    batch = jax.vmap(best)(jnp.array([0.0, 0.5]))
    np.testing.assert_allclose(batch[1], best(0.5))
