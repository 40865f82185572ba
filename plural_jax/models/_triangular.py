"""Small triangular matrices, many at once: written out up to dimension four, which is faster there than LAPACK."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from plural_jax import _linalg

#: Up to this dimension the factors are written out.
UNROLLED = 4


def cholesky(covariances: Array) -> Array:
    """Lower factors, [k, d, d]; a matrix that rounding made singular gets the smallest pivot that the type can tell from zero."""
    d = covariances.shape[-1]
    info = jnp.finfo(covariances.dtype)
    if d > UNROLLED:
        scale = jnp.sqrt(jnp.maximum(jnp.diagonal(covariances, axis1=-2, axis2=-1), info.tiny))
        correlations = covariances / scale[:, :, None] / scale[:, None, :]
        ridge = 4 * d * info.eps * jnp.eye(d, dtype=info.dtype)
        return scale[:, :, None] * jax.vmap(_linalg.cholesky)(correlations + ridge)
    zero = jnp.zeros_like(covariances[:, 0, 0])
    rows: list[list[Array]] = []
    for i in range(d):
        row: list[Array] = []
        for j in range(i):
            known = (a * b for a, b in zip(row, rows[j][:j], strict=True))
            row.append((covariances[:, i, j] - sum(known, zero)) / rows[j][j])
        variance = covariances[:, i, i]
        pivot = variance - sum((a * a for a in row), zero)
        row.append(jnp.sqrt(jnp.maximum(pivot, jnp.maximum(info.eps * variance, info.tiny))))
        rows.append(row)
    return _lower(rows)


def inverse_of_lower(factors: Array) -> Array:
    """Inverses of lower triangular matrices, [k, d, d]."""
    d = factors.shape[-1]
    if d > UNROLLED:
        return jax.vmap(_linalg.inverse_of_lower)(factors)
    zero = jnp.zeros_like(factors[:, 0, 0])
    rows: list[list[Array]] = []
    for i in range(d):
        own = 1 / factors[:, i, i]
        known = [sum((factors[:, i, s] * rows[s][j] for s in range(j, i)), zero) for j in range(i)]
        rows.append([*(-own * value for value in known), own])
    return _lower(rows)


def _lower(rows: list[list[Array]]) -> Array:
    """The [k, d, d] matrices with these rows, each up to its diagonal."""
    zero = jnp.zeros_like(rows[0][0])
    full = [row + [zero] * (len(rows) - len(row)) for row in rows]
    return jnp.stack([jnp.stack(row, axis=-1) for row in full], axis=-2)
