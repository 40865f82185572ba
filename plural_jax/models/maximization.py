"""Expectation maximization (EM) of Gaussian mixtures with full covariances, with weights on the points.

Shapes: n points in d dimensions, k components. The steps are those of scikit-learn's `GaussianMixture`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from plural_jax import _validate
from plural_jax._typing import ArrayLike
from plural_jax.models._points import (
    HIGHEST,
    centered,
    check_not_negative,
    check_samples,
    check_some_mass,
    check_weights,
    check_whole,
    floating,
)
from plural_jax.models._triangular import UNROLLED, cholesky, inverse_of_lower


class MixtureParams(NamedTuple):
    """A Gaussian mixture, and how it was found.

    Attributes:
        weights: non-negative, summing to one, [k]. A component of weight 0 is there but never drawn from.
        means: [k, d].
        covariances: [k, d, d].
        num_fits: fits so far, int32 [].
        num_iter: EM steps of the last fit, int32 []; 0 for a fit in closed form.
        converged: whether the last fit ended within its tolerance, bool [].
    """

    weights: Array
    means: Array
    covariances: Array
    num_fits: Array
    num_iter: Array
    converged: Array


class EMResult(NamedTuple):
    """What `em` found.

    Attributes:
        params: the mixture, `MixtureParams`; `num_fits` is one more than that of the start.
        log_likelihood: mean of log p over the points under these params, [].
        num_iter: EM steps, int32 [].
        converged: whether the last step changed the mean log-likelihood by less than `tol`, bool [].
    """

    params: MixtureParams
    log_likelihood: Array
    num_iter: Array
    converged: Array


class Mixture(NamedTuple):
    """The numbers of a mixture while it is fit."""

    weights: Array  # [k]
    means: Array  # [k, d]
    covariances: Array  # [k, d, d]


def em(
    samples: ArrayLike,
    weights: ArrayLike | None,
    start: MixtureParams | tuple[ArrayLike, ArrayLike, ArrayLike],
    *,
    reg_covar: ArrayLike = 1e-6,
    tol: ArrayLike = 1e-3,
    max_iter: ArrayLike = 100,
) -> EMResult:
    """Expectation maximization from a given mixture.

    `r_k(x) = w_k N(x; mu_k, Sigma_k) / p(x)`, then `w_k = E[r_k]`, `mu_k = E[r_k x] / w_k`,
    `Sigma_k = E[r_k (x - mu_k)(x - mu_k)^T] / w_k + reg_covar I`, with E the weighted mean over the points

    Args:
        samples: points, [n, d].
        weights: of the points, non-negative, [n], in any scale; None for all equal.
        start: the first mixture, `MixtureParams` or its (weights [k], means [k, d], covariances [k, d, d]).
        reg_covar: added to the diagonal of every covariance, non-negative.
        tol: the end is reached when a step changes the mean log-likelihood by less.
        max_iter: steps at most.

    Returns:
        An `EMResult` in the floating type of the start. A component that loses all its points keeps its mean, with weight
        about 0 and covariance `reg_covar` I.

    Raises:
        ValueError: samples, weights or a start of the wrong shape or not finite; weights that are negative or all zero; a
            negative reg_covar or tol; a max_iter that is not whole and positive.

    Example:
        >>> from plural_jax import models
        >>> points = jnp.array([[-2.1], [-2.0], [-1.9], [2.9], [3.1]])
        >>> start = jnp.array([0.5, 0.5]), jnp.array([[-1.0], [1.0]]), jnp.ones((2, 1, 1))
        >>> result = models.em(points, None, start)
        >>> [f"{mean:.2f}" for mean in result.params.means[:, 0]], bool(result.converged)
        (['-2.00', '3.00'], True)

    Source: Dempster, Laird and Rubin (1977); the order of the steps and the stopping rule are scikit-learn's.
    """
    first = Mixture(*(floating(part) for part in tuple(start)[:3]))
    _check_start(first)
    check_samples(samples, first.means.shape[1])
    check_weights(weights, np.shape(samples)[0])
    check_em(reg_covar, tol, max_iter)
    dtype = first.means.dtype
    num_fits = start.num_fits if isinstance(start, MixtureParams) else jnp.zeros((), jnp.int32)
    return _em_of_samples(
        jnp.asarray(samples).astype(dtype),
        None if weights is None else jnp.asarray(weights).astype(dtype),
        jax.tree.map(lambda part: part.astype(dtype), first),
        num_fits,
        jnp.asarray(reg_covar, dtype),
        jnp.asarray(tol, dtype),
        jnp.asarray(max_iter).astype(jnp.int32),
    )


def check_em(reg_covar: ArrayLike, tol: ArrayLike, max_iter: ArrayLike) -> None:
    check_not_negative(reg_covar, "reg_covar")
    check_not_negative(tol, "tol")
    check_whole(max_iter, "max_iter", least=1)


def _check_start(start: Mixture) -> None:
    shape = np.shape(start.means)
    if len(shape) != 2 or np.shape(start.weights) != shape[:1] or np.shape(start.covariances) != (*shape, shape[1]):
        shapes = ", ".join(str(np.shape(part)) for part in start)
        raise ValueError(f"start must hold weights [k], means [k, d] and covariances [k, d, d], got shapes {shapes}.")
    for name, part in zip(start._fields, start, strict=True):
        _validate.finite(part, f"{name} of the start")
    check_some_mass(start.weights, "weights of the start")


@jax.jit
def _em_of_samples(
    samples: Array,
    weights: Array | None,
    start: Mixture,
    num_fits: Array,
    reg_covar: Array,
    tol: Array,
    max_iter: Array,
) -> EMResult:
    x, origin, shares = centered(samples, weights)
    first = start._replace(means=start.means - origin)
    found, num_iter, converged = run_em(x, shares, first, reg_covar, tol, max_iter)
    likelihood = mean_log_likelihood(x, shares, found)
    means = found.means + origin
    params = MixtureParams(found.weights, means, found.covariances, num_fits + 1, num_iter, converged)
    return EMResult(params, likelihood, num_iter, converged)


def run_em(
    x: Array, shares: Array, first: Mixture, reg_covar: Array, tol: Array, max_iter: Array
) -> tuple[Mixture, Array, Array]:
    """The mixture, the number of steps and whether the last one was within the tolerance."""

    def unfinished(state: tuple[Any, ...]) -> Array:
        _, _, steps, converged = state
        return ~converged & (steps < max_iter)

    def step(state: tuple[Any, ...]) -> tuple[Any, ...]:
        mixture, before, steps, _ = state
        joint, offsets = joint_log_density(mixture, x)
        top = jnp.max(joint, axis=0)
        ratio = jnp.exp(joint - top)
        total = jnp.sum(ratio, axis=0)
        likelihood = jnp.dot(shares, top + jnp.log(total), precision=HIGHEST)
        mixture = maximize(x, ratio * (shares / total), mixture.means, reg_covar, offsets)
        return mixture, likelihood, steps + 1, jnp.abs(likelihood - before) < tol

    start = first, jnp.asarray(-jnp.inf, x.dtype), jnp.zeros((), jnp.int32), jnp.zeros((), bool)
    mixture, _, steps, converged = jax.lax.while_loop(unfinished, step, start)
    return mixture, steps, converged


def joint_log_density(mixture: Mixture, x: Array) -> tuple[Array, Array]:
    """Log of `w_k N(x; mu_k, Sigma_k)`, [k, n], and the offsets `x - mu_k`, [k, d, n]."""
    offsets = x - mixture.means[:, :, None]
    whitener = inverse_of_lower(cholesky(mixture.covariances))
    log_det = jnp.sum(jnp.log(jnp.diagonal(whitener, axis1=-2, axis2=-1)), axis=-1)
    white = jnp.einsum("kij,kjn->kin", whitener, offsets, precision=HIGHEST)
    # Below the largest number, so that a point too far from every component still belongs to some.
    square = jnp.minimum(jnp.sum(white * white, axis=1), jnp.finfo(x.dtype).max / 4)
    present = mixture.weights > 0
    log_weight = jnp.where(present, jnp.log(jnp.where(present, mixture.weights, 1.0)), -jnp.inf)
    constant = log_weight + log_det - 0.5 * math.log(2 * math.pi) * x.shape[0]
    return constant[:, None] - 0.5 * square, offsets


def maximize(
    x: Array, responsibilities: Array, around: Array, reg_covar: Array, offsets: Array | None = None
) -> Mixture:
    """The mixture of responsibilities [k, n] that sum to one, with sums taken relative to centres `around` [k, d].

    Relative to centres near the new means no digits of a small covariance are lost.
    """
    k, d = around.shape
    n = x.shape[1]
    if offsets is None:
        offsets = x - around[:, :, None]
    with_one = jnp.concatenate([jnp.ones((k, 1, n), x.dtype), offsets], axis=1)
    first = jnp.einsum("kn,kin->ki", responsibilities, with_one, precision=HIGHEST)
    mass = first[:, 0] + 10 * jnp.finfo(x.dtype).eps / n  # as in scikit-learn, for empty components
    shift = first[:, 1:] / mass[:, None]
    centered = offsets - shift[:, :, None]
    covariances = _second_moments(responsibilities, centered) / mass[:, None, None]
    return Mixture(mass / jnp.sum(mass), around + shift, covariances + reg_covar * jnp.eye(d, dtype=x.dtype))


def _second_moments(responsibilities: Array, centered: Array) -> Array:
    """`sum_n r_k(n) c_k(n) c_k(n)^T`, [k, d, d]."""
    d = centered.shape[1]
    if d > UNROLLED:
        return jnp.einsum("kin,kjn->kij", responsibilities[:, None] * centered, centered, precision=HIGHEST)
    # Only the pairs i <= j, as one product of a matrix and a vector for each component.
    rows, columns = np.triu_indices(d)
    pairs = jnp.stack([centered[:, i] * centered[:, j] for i, j in zip(rows, columns, strict=True)], axis=1)
    moments = jnp.einsum("kn,kqn->kq", responsibilities, pairs, precision=HIGHEST)
    where = np.zeros((d, d), int)
    where[rows, columns] = where[columns, rows] = np.arange(len(rows))
    return jnp.stack([jnp.stack([moments[:, q] for q in row], axis=-1) for row in where], axis=-2)


def one_component(x: Array, shares: Array, reg_covar: Array, k: int) -> Mixture:
    """One Gaussian in closed form, as the first of k components; the others are copies of weight 0."""
    alone = maximize(x, shares[None], jnp.zeros((1, x.shape[0]), x.dtype), reg_covar)
    weights = jnp.zeros(k, x.dtype).at[0].set(1.0)
    return Mixture(weights, jnp.repeat(alone.means, k, axis=0), jnp.repeat(alone.covariances, k, axis=0))


def mean_log_likelihood(x: Array, shares: Array, mixture: Mixture) -> Array:
    joint, _ = joint_log_density(mixture, x)
    return jnp.dot(shares, jax.nn.logsumexp(joint, axis=0), precision=HIGHEST)
