"""A model of n atoms that is refit by counting: exact maximum likelihood, so its rounds are those of the exact densities."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from plural_jax._typing import ArrayLike
from plural_jax.landscape import as_float, check_log_mass, normalize
from plural_jax.model import Model


def histogram(log_p: ArrayLike) -> Model:
    """A probability for each of n atoms; samples are the atoms' numbers.

    `fit`: `p(x) = sum of the weights of samples x / sum of all weights`, the maximum likelihood estimate

    Args:
        log_p: log-masses of the start, [n]; normalized here.

    Returns:
        A model whose parameters are log-masses [n], in the type of the given ones, and whose samples are int32 [num].

    Raises:
        ValueError: log-masses that are not flat, NaN, or without mass.

    Example:
        >>> import jax
        >>> import plural_jax as pj
        >>> model = pj.models.histogram(jnp.zeros(3))
        >>> params = model.fit(jax.random.key(0), None, jnp.array([0, 0, 2, 0]), None)
        >>> print(jnp.exp(params))
        [0.75 0.   0.25]
    """
    shape = np.shape(log_p)
    if len(shape) != 1:
        raise ValueError(f"log_p must hold one log-mass for each atom, got shape {shape}.")
    check_log_mass(log_p, shape[0], "log_p")
    start = normalize(as_float(log_p))
    return Model(
        init=Partial(_init, start), sample=Partial(_sample), fit=Partial(_fit, start), log_prob=Partial(_log_prob)
    )


def _init(start: Array, key: Array) -> Array:
    return start


def _sample(key: Array, log_p: Array, num: int) -> Array:
    ends = jnp.cumsum(jnp.exp(log_p))
    last = ends[-1]
    # A product may round up to the end itself, where no atom lies.
    at = jnp.minimum(jax.random.uniform(key, (num,), ends.dtype) * last, jnp.nextafter(last, jnp.zeros_like(last)))
    return jnp.searchsorted(ends, at, side="right").astype(jnp.int32)


def _fit(start: Array, key: Array, log_p: Any, samples: Array, weights: Array | None) -> Array:
    ones = jnp.ones(samples.shape, start.dtype) if weights is None else weights.astype(start.dtype)
    mass = jnp.zeros_like(start).at[samples].add(ones)
    return jnp.log(mass / jnp.sum(mass))


def _log_prob(log_p: Array, samples: Array) -> Array:
    return log_p[samples]
