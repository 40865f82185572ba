"""Where two modes become one: the critical distance between two quadratic preferences."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from plural_jax import _validate
from plural_jax._typing import ArrayLike
from plural_jax.landscape import as_float
from plural_jax.theory.bounds import check_weight


def transition_distance(
    gamma: ArrayLike,
    *,
    phi: ArrayLike = 0.5,
    temperature: ArrayLike = 1.0,
    pool_size: ArrayLike = float("inf"),
) -> Array:
    """The distance up to which all mass in one point, the mean `sum_i phi_i mu_i`, is stable.

    `d = sqrt(K / (K - 2) tau / (2 gamma phi (1 - phi)))` for rewards `r_i = -gamma ||x - mu_i||^2`; for an infinite pool
    and phi = 1/2 it is `sqrt(2 tau / gamma)`

    A little mass a little away from that point grows if `W = sum_i phi_i K e^u_i / (e^u_i + K - 1)` exceeds 1 there, where
    u_i is what reward i gains, divided by the temperature. Along the line of the centers, with displacement s,
    `u_1 = -(gamma / tau) (2 (1 - phi) d s + s^2)`, `u_2 = (gamma / tau) (2 phi d s - s^2)`: the first order cancels and
    the second gives d. For an infinite pool and phi = 1/2 this is exactly where one mode becomes two in the limit. For
    other phi the point is stable up to d, but a second mode can appear sooner, away from it. At K = 2 the point is stable at
    every distance, and so it is where only one preference is asked.

    Args:
        gamma: sharpness of both rewards, not negative (reward per squared unit of x); any shape.
        phi: weight of the first preference, in [0, 1]; any shape.
        temperature: tau of the choice rule, positive, in units of reward.
        pool_size: K, 2 or more; infinity for the large-K limit.

    Returns:
        The distance, in units of x, infinite where the point is always stable; broadcast over the arguments, in the floating
        type of `gamma`.

    Raises:
        ValueError: a negative gamma, a phi outside [0, 1], a temperature that is not positive, a pool smaller than 2.

    Example:
        >>> float(transition_distance(0.5))
        2.0

    Source: derived here from Eq. 5 and Lemma 1; for phi = 1/2 and large K the first bifurcation of a two-point mixture.
    """
    sharp, size = _validate.real_array(gamma, "gamma"), _validate.real_array(pool_size, "pool_size")
    if sharp is not None and not (sharp >= 0).all():
        raise ValueError(f"gamma must not be negative, got {_validate.shown(sharp)}.")
    if size is not None and not (size >= 2).all():
        raise ValueError(f"pool_size must be at least 2 (infinity is allowed), got {_validate.shown(size)}.")
    check_weight(phi, "phi")
    _validate.positive(temperature, "temperature")
    gamma = as_float(gamma)
    return _distance(gamma, *(jnp.asarray(v, gamma.dtype) for v in (phi, temperature, pool_size)))


@jax.jit
def _distance(gamma: Array, phi: Array, tau: Array, k: Array) -> Array:
    # 1 - 2 / K is (K - 2) / K with an infinite K allowed.
    conflict = 2 * gamma * phi * (1 - phi) * (1 - 2 / k)
    some = conflict > 0
    return jnp.where(some, jnp.sqrt(tau / jnp.where(some, conflict, 1)), jnp.inf)
