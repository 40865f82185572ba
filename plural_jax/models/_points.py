"""Weighted points: what clustering, maximization and the mixture share, and the checks of what they are given.

Inside, data are [d, n], the long axis last, relative to their mean, with shares [n] of the points that sum to one.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from plural_jax import _validate
from plural_jax._typing import ArrayLike

HIGHEST = jax.lax.Precision.HIGHEST


def centered(samples: Array, weights: Array | None) -> tuple[Array, Array, Array]:
    """Data [d, n] relative to their mean, that mean [d], and the points' shares [n], all zero if the weights are."""
    shares = shares_of(weights, samples.shape[0], samples.dtype)
    origin = jnp.dot(shares, samples, precision=HIGHEST)
    return (samples - origin).T, origin, shares


def shares_of(weights: Array | None, n: int, dtype: Any) -> Array:
    if weights is None:
        return jnp.full(n, 1 / n, dtype)
    total = jnp.sum(weights)
    return weights / jnp.where(total > 0, total, 1.0)


def below(value: Array, end: Array) -> Array:
    """The value or, where a product was rounded up to the end, the number before it, so that the last of no mass is not drawn."""
    return jnp.minimum(value, jnp.nextafter(end, jnp.zeros_like(end)))


def floating(value: ArrayLike) -> Array:
    array = jnp.asarray(value)
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(jnp.result_type(float))


def check_key(key: Any) -> None:
    _validate.key(key)


def check_single(value: ArrayLike, name: str) -> None:
    if np.ndim(value) != 0:
        raise ValueError(f"{name} must be a single number, got shape {np.shape(value)}.")


def check_whole(value: ArrayLike, name: str, least: int) -> None:
    check_single(value, name)
    number = _validate.real_array(value, name)
    if number is not None and not (least <= number < 2**31 and number == np.floor(number)):
        raise ValueError(f"{name} must be a whole number of at least {least}, got {number}.")


def check_not_negative(value: ArrayLike, name: str) -> None:
    check_single(value, name)
    _validate.finite(value, name)
    number = _validate.real_array(value, name)
    if number is not None and number < 0:
        raise ValueError(f"{name} must not be negative, got {number}.")


def check_samples(samples: ArrayLike, dimension: int | None, least: int = 1) -> None:
    shape = np.shape(samples)
    if len(shape) != 2 or dimension not in (None, shape[1]):
        wanted = "(n, d)" if dimension is None else f"(n, {dimension})"
        raise ValueError(f"samples must have shape {wanted}, got shape {shape}.")
    if shape[0] < least:
        raise ValueError(f"samples must hold at least {least} points, got {shape[0]}.")
    _validate.finite(samples, "samples")


def check_weights(weights: ArrayLike | None, count: int) -> None:
    if weights is None:
        return
    shape = np.shape(weights)
    if shape != (count,):
        raise ValueError(f"weights must hold one number for each of the {count} samples, got shape {shape}.")
    _validate.finite(weights, "weights")
    check_some_mass(weights, "weights")


def check_some_mass(weights: ArrayLike, name: str) -> None:
    array = _validate.real_array(weights, name)
    if array is not None and ((array < 0).any() or not (array > 0).any()):
        raise ValueError(f"{name} must not be negative and not all zero, got {_validate.shown(array)}.")
