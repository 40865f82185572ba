"""Assignments on a GPU's chip, run by XLA on the CPU: against SciPy's, and lowered for a GPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from plural_jax import _pallas
from plural_jax.models import assignment, flow_matching
from tests import oracles


@jax.jit
def assign(cost):
    return assignment.assign(cost, interpret=True)


def prices(cost, columns):
    """Sum of the chosen costs of each matrix, in float64; every column must be chosen once."""
    size = cost.shape[1]
    np.testing.assert_array_equal(np.sort(columns, axis=1), np.broadcast_to(np.arange(size), columns.shape))
    return np.take_along_axis(cost.astype(np.float64), np.asarray(columns)[:, :, None], 2).sum((1, 2))


def best(cost):
    return [one[scipy.optimize.linear_sum_assignment(one)].sum() for one in cost.astype(np.float64)]


@pytest.mark.parametrize("size", [1, 5, 32, 33])
def test_it_is_the_best_assignment(rng, size):
    cost = rng.normal(size=(4, size, size)).astype(np.float32)
    np.testing.assert_allclose(prices(cost, assign(cost)), best(cost), rtol=1e-5, atol=1e-5)


def test_among_equal_prices_any_will_do(rng):
    cost = rng.integers(0, 3, (4, 33, 33)).astype(np.float32)
    cost[0] = 7.0
    np.testing.assert_array_equal(prices(cost, assign(cost)), best(cost))


def test_costs_that_are_not_finite_end_in_some_assignment(rng):
    cost = rng.normal(size=(4, 33, 33)).astype(np.float32)
    cost[0, 3], cost[1, :, 2], cost[2] = np.nan, np.inf, -np.inf
    cost[3] = np.finfo(np.float32).max * np.sign(cost[3])
    prices(np.zeros_like(cost), assign(cost))


def test_under_vmap(rng):
    cost = jnp.asarray(rng.normal(size=(2, 2, 5, 5)), jnp.float32)
    np.testing.assert_array_equal(jax.vmap(assign)(cost), jnp.stack([assign(x) for x in cost]))


def test_couplings_on_a_gpu_are_compiled_to_triton(rng, monkeypatch):
    pytest.importorskip("jax.experimental.pallas.triton", reason="this JAX has no Triton lowering any more")
    noise = jnp.asarray(rng.normal(size=(2, 100, 4)), jnp.float32)
    function = jax.jit(lambda noise: flow_matching.couple_many(noise, noise))
    for there in (True, False):
        monkeypatch.setattr(_pallas, "available", lambda there=there: there)
        jax.clear_caches()
        with oracles.a_hopper():
            text = function.trace(noise).lower(lowering_platforms=("cuda",)).as_text()
        assert ("triton" in text and "assignments" in text) == there
