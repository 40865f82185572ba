"""Leakage between two basins and the bounds that it puts on their weights (Assumption 1 iv, Lemmas 4 and 5)."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array

from plural_jax import _validate
from plural_jax._typing import ArrayLike
from plural_jax.landscape import Landscape, as_float


def leakage(landscape: Landscape, *, eps: ArrayLike = 0.1, temperature: ArrayLike = 1.0) -> Array:
    """How strongly each preference still likes the other basins.

    `kappa_ij = exp(-(r_i* - max_{S_j} r_i - eps) / tau)` (Assumption 1 iv; kappa_1 = kappa_12 and kappa_2 = kappa_21)

    Args:
        landscape: rewards [m, n].
        eps: width of the basins, in units of reward, not negative.
        temperature: tau, positive, in units of reward.

    Returns:
        kappa, [m, m], in the landscape's floating type. The diagonal compares a basin with itself and is `exp(eps / tau)`.

    Raises:
        ValueError: a negative eps or a temperature that is not positive.

    Example:
        >>> import plural_jax as pj
        >>> land = pj.Landscape(rewards=[[2.0, 0.0], [0.0, 2.0]])
        >>> leakage(land, eps=0.0).round(3).tolist()[0][0]
        1.0
    """
    _validate.positive(temperature, "temperature")
    _validate.finite(eps, "eps")
    dtype = landscape.dtype
    basins = landscape.basins(eps)
    inside = landscape._log_measure > -jnp.inf
    best = jnp.max(jnp.where(inside, landscape.rewards, -jnp.inf), axis=1)
    # cross[i, j] = max over S_j of r_i
    cross = jnp.max(jnp.where(basins[None], landscape.rewards[:, None], -jnp.inf), axis=-1)
    gap = best[:, None] - cross - jnp.asarray(eps, dtype)
    return jnp.exp(-gap / jnp.asarray(temperature, dtype))


def basin_weight_bounds(phi: ArrayLike, kappa: ArrayLike) -> tuple[Array, Array]:
    """Ends of the interval in which the weight of the first of two basins must end up (Lemma 4; Lemma 5 for its limits).

    `a in [ (phi - kappa_1)_+ / (1 - kappa_1), min(1, phi / (1 - kappa_2)) ]`

    Args:
        phi: weight of the first preference, any shape, in [0, 1].
        kappa: leakages (kappa_1, kappa_2), each a number; below 1 for the bounds to say anything.

    Returns:
        Lower and upper bound, each of phi's shape. With a leakage of 1 or more the bound is the trivial 0 or 1.

    Raises:
        ValueError: kappa does not hold two numbers, or phi lies outside [0, 1].

    Example:
        >>> lower, upper = basin_weight_bounds(0.5, [0.0, 0.0])
        >>> float(lower), float(upper)
        (0.5, 0.5)
    """
    if np.shape(kappa) != (2,):
        raise ValueError(f"kappa must hold the two leakages (kappa_1, kappa_2), got shape {np.shape(kappa)}.")
    value = _validate.real_array(phi, "phi")
    if value is not None and not ((value >= 0) & (value <= 1)).all():
        raise ValueError(f"phi must lie between 0 and 1, got {_validate.shown(value)}.")
    kappa = as_float(kappa)
    dtype = kappa.dtype
    phi = jnp.asarray(phi, dtype)
    first, second = (jnp.where(k < 1, k, jnp.zeros((), dtype)) for k in (kappa[0], kappa[1]))
    lower = jnp.where(kappa[0] < 1, jnp.maximum(phi - first, 0) / (1 - first), jnp.zeros((), dtype))
    upper = jnp.where(kappa[1] < 1, jnp.minimum(phi / (1 - second), 1), jnp.ones((), dtype))
    return lower, upper
