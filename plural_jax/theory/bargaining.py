"""The limit as a bargain: the weighted Nash product along the segment between two basins (Thm. 7, Cor. 8)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from plural_jax import _validate
from plural_jax._typing import ArrayLike
from plural_jax.landscape import as_float
from plural_jax.theory.bounds import check_weight


def log_nash_product(weight: ArrayLike, phi: ArrayLike, means: ArrayLike) -> Array:
    """Logarithm of the weighted Nash product of the mixture `lambda P_1 + (1 - lambda) P_2` (Thm. 7).

    `log N(lambda) = phi log(u_1 - d_1) + (1 - phi) log(u_2 - d_2)`, with utilities
    `u_i = lambda mu_i1 + (1 - lambda) mu_i2` and disagreement point `d_1 = mu_12`, `d_2 = mu_21`

    Args:
        weight: lambda, in [0, 1], any shape.
        phi: weight of the first preference, [], in [0, 1].
        means: mu_ij = E_{P_j}[r_i], [2, 2], in units of reward; `basin_means` computes them.

    Returns:
        log N, of lambda's shape, in the floating type of `means`; `-inf` where a preference gains nothing.

    Raises:
        ValueError: a lambda or phi outside [0, 1], or means that are not finite and 2 x 2.

    Example:
        >>> means = [[1.0, 0.0], [0.0, 1.0]]
        >>> print(f"{log_nash_product(0.5, 0.5, means):.4f}")
        -0.6931

    Source: Thm. 7 (Thm. B.7).
    """
    check_weight(weight, "weight")
    check_weight(phi, "phi")
    check_means(means)
    mu = as_float(means)
    return _log_product(jnp.asarray(weight, mu.dtype), jnp.asarray(phi, mu.dtype), mu)


@jax.jit
def _log_product(weight: Array, phi: Array, mu: Array) -> Array:
    first = weight * mu[0, 0] + (1 - weight) * mu[0, 1] - mu[0, 1]
    second = weight * mu[1, 0] + (1 - weight) * mu[1, 1] - mu[1, 0]
    return _power(phi, first) + _power(1 - phi, second)


def _power(exponent: Array, gain: Array) -> Array:
    """Log of gain^exponent with 0^0 = 1."""
    positive = gain > 0
    log = jnp.where(positive, jnp.log(jnp.where(positive, gain, 1)), -jnp.inf)
    return jnp.where(exponent > 0, jnp.where(exponent > 0, exponent, 1) * log, 0)


def nash_weight(phi: ArrayLike, means: ArrayLike) -> Array:
    """The mixture weight with the largest Nash product, in closed form: phi itself (Thm. 7).

    `argmax_lambda (u_1 - d_1)^phi (u_2 - d_2)^(1 - phi) = phi`, because `u_1 - d_1 = lambda (mu_11 - mu_12)` and
    `u_2 - d_2 = (1 - lambda) (mu_22 - mu_21)`

    Args:
        phi: weight of the first preference, any shape, in [0, 1].
        means: mu_ij, [2, 2], as for `log_nash_product`. They matter only through the theorem's condition: each preference must
            favor its own basin, `mu_11 > mu_12` and `mu_22 > mu_21`.

    Returns:
        phi, or NaN where the condition fails, of phi's shape and the floating type of `means`.

    Raises:
        ValueError: what `log_nash_product` refuses.

    Example:
        >>> float(nash_weight(0.25, [[3.0, 1.0], [0.0, 2.0]]))
        0.25

    Source: Thm. 7 (Thm. B.7).
    """
    check_weight(phi, "phi")
    check_means(means)
    mu = as_float(means)
    return _closed_form(jnp.asarray(phi, mu.dtype), mu)


@jax.jit
def _closed_form(phi: Array, mu: Array) -> Array:
    return jnp.where(_favors(mu), phi, jnp.nan)


def _favors(mu: Array) -> Array:
    """Whether each preference favors its own basin, []."""
    return (mu[0, 0] > mu[0, 1]) & (mu[1, 1] > mu[1, 0])


def nash_weight_search(phi: ArrayLike, means: ArrayLike) -> Array:
    """The mixture weight with the largest Nash product, found on the product itself, without the closed form.

    Bisection on the derivative of `log_nash_product`, which falls along the segment because the logarithm is concave.

    Args:
        phi: weight of the first preference, [], in [0, 1].
        means: mu_ij, [2, 2], as for `log_nash_product`.

    Returns:
        lambda, [], to rounding, in the floating type of `means`; NaN where a preference does not favor its own basin.

    Raises:
        ValueError: what `log_nash_product` refuses, or a phi that is not one number.

    Example:
        >>> print(f"{nash_weight_search(0.25, [[3.0, 1.0], [0.0, 2.0]]):.4f}")
        0.2500

    Source: Thm. 7 (Thm. B.7).
    """
    check_weight(phi, "phi")
    if np.ndim(phi) != 0:
        raise ValueError(f"phi must be a single number, got shape {np.shape(phi)}; use jax.vmap for several.")
    check_means(means)
    mu = as_float(means)
    return _search(jnp.asarray(phi, mu.dtype), mu)


@jax.jit
def _search(phi: Array, mu: Array) -> Array:
    slope = jax.grad(_log_product)

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        rising = slope(middle, phi, mu) > 0
        return jnp.where(rising, middle, low), jnp.where(rising, high, middle)

    low, high = jax.lax.fori_loop(0, 60, halve, (jnp.zeros_like(phi), jnp.ones_like(phi)))
    return jnp.where(_favors(mu), (low + high) / 2, jnp.nan)


def check_means(means: ArrayLike) -> None:
    """Refuse basin means that are not finite and 2 x 2."""
    if np.shape(means) != (2, 2):
        raise ValueError(
            f"means must hold mu_ij of two preferences on two basins, [2, 2], got shape {np.shape(means)}."
        )
    _validate.finite(means, "means")
