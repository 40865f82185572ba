"""Attention between pixels: the sum it says, and the derivatives of JAX's own rule for that sum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plural_jax.models.attention import attend


def plain(q, k, v):
    """The formula, pair by pair."""
    scores = jnp.sum(q[:, :, :, None] * k[:, :, None], axis=-1) / q.shape[-1] ** 0.5
    shares = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    return jnp.sum((shares / shares.sum(axis=-1, keepdims=True))[..., None] * v[:, :, None], axis=3)


@pytest.mark.parametrize("shape", [(2, 3, 7, 4), (1, 1, 1, 2)])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_values_and_derivatives(rng, shape, dtype):
    q, k, v, g = (jnp.asarray(2 * rng.normal(size=shape), dtype) for _ in range(4))

    @jax.jit
    def both(*given):
        return [[y, *back(g)] for y, back in (jax.vjp(f, *given) for f in (plain, attend))]

    tolerance = 1e-12 if dtype == "float64" else 2e-5
    for expected, found in zip(*both(q, k, v), strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def test_in_bfloat16(rng):
    """Types stay, and shares are computed in float32: only the inputs' and results' rounding is left."""
    q, k, v, g = (jnp.asarray(rng.normal(size=(2, 2, 16, 8)), jnp.bfloat16) for _ in range(4))
    y, back = jax.vjp(attend, q, k, v)
    wide = [x.astype(jnp.float32) for x in (q, k, v, g)]
    expected, pull_back = jax.vjp(plain, *wide[:3])
    for found, exact in zip((y, *back(g)), (expected, *pull_back(wide[3])), strict=True):
        assert found.dtype == jnp.bfloat16
        np.testing.assert_allclose(found.astype(jnp.float32), exact, rtol=0.03, atol=0.03)
