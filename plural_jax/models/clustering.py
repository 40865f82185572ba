"""K-means with greedy k-means++ seeds and Lloyd steps, as in scikit-learn, with weights on the points.

Shapes: n points in d dimensions, k centres.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from plural_jax import _validate
from plural_jax._typing import ArrayLike
from plural_jax.models._points import (
    HIGHEST,
    below,
    centered,
    check_key,
    check_not_negative,
    check_samples,
    check_weights,
    check_whole,
    floating,
)


class KMeansResult(NamedTuple):
    """What `kmeans` found.

    Attributes:
        centers: [k, d].
        labels: number of the nearest centre of every point, int32 [n].
        inertia: sum of the weighted squared distances to it, [].
        num_iter: Lloyd steps, int32 [].
    """

    centers: Array
    labels: Array
    inertia: Array
    num_iter: Array


def kmeans(
    key: Array,
    samples: ArrayLike,
    weights: ArrayLike | None,
    k: int,
    *,
    tol: ArrayLike = 1e-4,
    max_iter: ArrayLike = 300,
) -> KMeansResult:
    """k-means: greedy k-means++ seeds, then Lloyd's steps.

    `min over c of sum_x w(x) min_k ||x - c_k||^2`, to a local minimum

    Args:
        key: a PRNG key, for the seeds.
        samples: points, [n, d].
        weights: of the points, non-negative, [n]; None for all equal.
        k: number of centres, static, at most n.
        tol: the end is reached when a step moves the centres by no more than this share of the mean variance, squared and
            summed.
        max_iter: steps at most.

    Returns:
        A `KMeansResult` in the floating type of the samples. A centre that loses all its points stays where it is, which for
        k = 2 does not happen unless all points coincide.

    Raises:
        ValueError: no key; samples or weights of the wrong shape or not finite; weights that are negative or all zero; more
            centres than points; a negative tol; a max_iter that is not whole and positive.

    Example:
        >>> import jax
        >>> from plural_jax import models
        >>> result = models.kmeans(jax.random.key(0), jnp.array([[0.0], [0.2], [5.0]]), None, k=2)
        >>> sorted(f"{center:.1f}" for center in result.centers[:, 0])
        ['0.1', '5.0']

    Source: Arthur and Vassilvitskii (2007), with 2 + int(log k) trials for each seed, as scikit-learn has it; Lloyd (1982).
    """
    k = _validate.positive_integer(k, "k")
    check_samples(samples, None, least=k)
    check_weights(weights, np.shape(samples)[0])
    check_not_negative(tol, "tol")
    check_whole(max_iter, "max_iter", least=1)
    check_key(key)
    points = floating(samples)
    dtype = points.dtype
    return _kmeans_of_samples(
        key,
        points,
        None if weights is None else jnp.asarray(weights).astype(dtype),
        k,
        jnp.asarray(tol, dtype),
        jnp.asarray(max_iter).astype(jnp.int32),
    )


@partial(jax.jit, static_argnums=3)
def _kmeans_of_samples(
    key: Array, samples: Array, weights: Array | None, k: int, tol: Array, max_iter: Array
) -> KMeansResult:
    x, origin, shares = centered(samples, weights)
    centers, num_iter = find_centers(key, x, shares, k, tol, max_iter)
    distances = _squared_distances(x, centers)
    total = jnp.asarray(x.shape[1], x.dtype) if weights is None else jnp.sum(weights)
    inertia = total * jnp.sum(shares * jnp.min(distances, axis=0))
    return KMeansResult(centers + origin, jnp.argmin(distances, axis=0).astype(jnp.int32), inertia, num_iter)


def find_centers(key: Array, x: Array, shares: Array, k: int, tol: Array, max_iter: Array) -> tuple[Array, Array]:
    """Centres [k, d] and the number of Lloyd steps."""
    smallest = tol * jnp.mean(jnp.dot(x * x, shares, precision=HIGHEST))  # the mean of x is zero
    with_one = jnp.concatenate([jnp.ones_like(x[:1]), x])

    def unfinished(state: tuple[Array, Array, Array]) -> Array:
        _, moved, steps = state
        return (moved > smallest) & (steps < max_iter)

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        centers, _, steps = state
        sums = jnp.einsum("kn,in->ki", assign(x, centers) * shares, with_one, precision=HIGHEST)
        mass = sums[:, :1]
        moved = jnp.where(mass > 0, sums[:, 1:] / jnp.where(mass > 0, mass, 1.0), centers)
        return moved, jnp.sum((moved - centers) ** 2), steps + 1

    start = _seeds(key, x, shares, k), jnp.asarray(jnp.inf, x.dtype), jnp.zeros((), jnp.int32)
    centers, _, steps = jax.lax.while_loop(unfinished, step, start)
    return centers, steps


def _seeds(key: Array, x: Array, shares: Array, k: int) -> Array:
    """Greedy k-means++: points drawn in proportion to the squared distance from the seeds so far, the best of some trials."""
    trials = 2 + int(math.log(k))
    uniform = jax.random.uniform(key, (k, trials), x.dtype)
    first = _pick(x, shares, uniform[0, :1])  # [1, d]
    centers = jnp.zeros((k, x.shape[0]), x.dtype).at[0].set(first[0])

    def add(j: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        centers, nearest = state
        mass = shares * nearest
        # Where every point is a seed already, any will do.
        mass = jnp.where(jnp.sum(mass) > 0, mass, shares)
        candidates = _pick(x, mass, uniform[j])
        distances = jnp.minimum(nearest, _squared_distances(x, candidates))
        best = jnp.argmin(jnp.dot(distances, shares, precision=HIGHEST))
        return centers.at[j].set(candidates[best]), distances[best]

    centers, _ = jax.lax.fori_loop(1, k, add, (centers, _squared_distances(x, first)[0]))
    return centers


def _pick(x: Array, mass: Array, uniform: Array) -> Array:
    """Points drawn in proportion to mass [n], one for each uniform number [t]: [t, d]."""
    ends = jnp.cumsum(mass)
    at = below(uniform * ends[-1], ends[-1])
    index = jnp.sum(ends <= at[:, None], axis=1)
    return jnp.take(x, index, axis=1, mode="clip").T


def assign(x: Array, centers: Array) -> Array:
    """One for the nearest centre of a point and zero for the others, [k, n]."""
    nearest = jnp.argmin(_squared_distances(x, centers), axis=0)
    return (nearest == jnp.arange(centers.shape[0])[:, None]).astype(x.dtype)


def _squared_distances(x: Array, centers: Array) -> Array:
    """[k, n], from differences: the usual expansion loses the digits of points close together."""
    return jnp.sum((x - centers[:, :, None]) ** 2, axis=1)
