"""Factorizations of small matrices that may run on several CPU devices at once.

jaxlib 0.10 hands a batch of LAPACK calls to the thread pool that also runs the devices' programs, and waits for it there. With
two host devices on two cores both threads can wait, and nobody is left to work (seen with batched singular values under
`shard_map`). One matrix at a time is never handed on, so on a CPU `vmap` becomes a loop here; elsewhere it remains a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_batching import sequential_vmap
from jax.scipy.linalg import cho_solve


def _one_at_a_time(function: Callable[..., Any]) -> Callable[..., Any]:
    looped = sequential_vmap(function)
    return lambda *args: looped(*args) if jax.default_backend() == "cpu" else function(*args)


@_one_at_a_time
def cholesky(matrix: Array) -> Array:
    """The lower factor, [n, n]; NaN where the matrix is not positive definite."""
    return jnp.linalg.cholesky(matrix)


@_one_at_a_time
def solve_factored(factor: Array, right: Array) -> Array:
    """Solve `L L^T x = right` for right [n]."""
    return cho_solve((factor, True), right)


@_one_at_a_time
def least_squares(matrix: Array, right: Array) -> Array:
    """The shortest of the vectors that minimize `||matrix x - right||`."""
    return jnp.linalg.lstsq(matrix, right)[0]


@_one_at_a_time
def last_singular_vector(matrix: Array) -> Array:
    """The right singular vector of the smallest singular value of a matrix with at least as many rows as columns."""
    return jnp.linalg.svd(matrix, full_matrices=False)[2][-1]


@_one_at_a_time
def eigh(matrix: Array) -> tuple[Array, Array]:
    """Eigenvalues and vectors of a symmetric matrix."""
    return jnp.linalg.eigh(matrix)


@_one_at_a_time
def inverse_of_lower(factor: Array) -> Array:
    """The inverse of a lower triangular matrix."""
    identity = jnp.eye(factor.shape[0], dtype=factor.dtype)
    return jax.lax.linalg.triangular_solve(factor, identity, left_side=True, lower=True)
