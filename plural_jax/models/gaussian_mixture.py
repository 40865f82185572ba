"""Gaussian mixtures with full covariances, refit by expectation maximization (EM) from k-means centres.

Shapes: n points in d dimensions, k components. Inside, data are [d, n]: the long axis last, where arithmetic is contiguous.
The steps are those of scikit-learn's `GaussianMixture` with its defaults, with weights on the points.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from plural_jax import _validate
from plural_jax._pytree import pytree_dataclass, static_field
from plural_jax._typing import ArrayLike
from plural_jax.models.base import Model

#: Up to this dimension the Cholesky factors of all components are written out, which is faster than LAPACK on tiny matrices.
_UNROLLED = 4
#: Up to this many means and coordinates a sample is made in one sweep over the points, without a product for each component.
_FUSED = 16
_HIGHEST = jax.lax.Precision.HIGHEST


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


class _Mixture(NamedTuple):
    """The numbers of a mixture while it is fit."""

    weights: Array  # [k]
    means: Array  # [k, d]
    covariances: Array  # [k, d, d]


@pytree_dataclass
class _Settings:
    """What `gaussian_mixture` was given; its numbers may be traced."""

    num_components: int = static_field()
    dimension: int = static_field()
    num_initial: int = static_field()
    num_restarts: int = static_field()
    mean: Array  # [d]
    std: Array
    one_component_rounds: Array
    reg_covar: Array
    tol: Array
    max_iter: Array


def gaussian_mixture(
    num_components: int = 2,
    dimension: int = 2,
    *,
    mean: ArrayLike = 0.0,
    std: ArrayLike = 1.0,
    num_initial: int = 1000,
    one_component_rounds: ArrayLike = 0,
    reg_covar: ArrayLike = 1e-6,
    tol: ArrayLike = 1e-3,
    max_iter: ArrayLike = 100,
    num_restarts: int = 1,
) -> Model:
    """A mixture of Gaussians with full covariances, refit from scratch by EM.

    `p(x) = sum_k w_k N(x; mu_k, Sigma_k)`

    `init` draws points from N(mean, std^2 I) and fits one component to them. `fit` starts anew from k-means centres, as often as
    `num_restarts` says, and keeps the best. Every number may be traced; the whole ones above it in the list are static.

    Args:
        num_components: k.
        dimension: d.
        mean: centre of the initial points, a number or [d].
        std: standard deviation of the initial points in every direction, positive.
        num_initial: initial points that the first component is fit to.
        one_component_rounds: as many first fits use a single component, in closed form, and those after them all k.
        reg_covar: added to the diagonal of every covariance, non-negative.
        tol: EM ends when a step changes the mean log-likelihood by less.
        max_iter: EM steps at most.
        num_restarts: fits from different k-means seeds, of which the one with the highest likelihood is kept.

    Returns:
        A model with `MixtureParams`, samples [num, d] and a `log_prob`, in the default floating type. Where all weights of a
        fit are zero there is nothing to fit to, and the mixture stays as it was.

    Raises:
        ValueError: a count that is not whole and positive; a mean of the wrong shape; a std that is not positive; a negative
            one_component_rounds, reg_covar or tol. From its functions: no key; samples of the wrong shape, not finite or fewer
            than k; weights that are negative, all zero or not one for each sample.

    Example:
        >>> import jax
        >>> from plural_jax import models
        >>> model = models.gaussian_mixture(num_components=2, dimension=1, num_initial=100)
        >>> points = jnp.array([[-2.1], [-2.0], [-1.9], [2.9], [3.1]])
        >>> params = model.fit(jax.random.key(0), model.init(jax.random.key(1)), points, None)
        >>> order = jnp.argsort(params.means[:, 0])
        >>> [f"{mean:.2f}" for mean in params.means[order, 0]], [f"{weight:.2f}" for weight in params.weights[order]]
        (['-2.00', '3.00'], ['0.60', '0.40'])

    Source: C.4 of the paper, which fits with scikit-learn's `GaussianMixture`; its defaults are those here.
    """
    dtype = jnp.result_type(float)
    dimension = _validate.positive_integer(dimension, "dimension")
    if np.shape(mean) not in ((), (dimension,)):
        raise ValueError(f"mean must be a number or have shape ({dimension},), got shape {np.shape(mean)}.")
    _validate.finite(mean, "mean")
    _single(std, "std")
    _validate.positive(std, "std")
    _whole(one_component_rounds, "one_component_rounds", least=0)
    _check_em(reg_covar, tol, max_iter)
    settings = _Settings(
        num_components=_validate.positive_integer(num_components, "num_components"),
        dimension=dimension,
        num_initial=_validate.positive_integer(num_initial, "num_initial"),
        num_restarts=_validate.positive_integer(num_restarts, "num_restarts"),
        mean=jnp.broadcast_to(jnp.asarray(mean, dtype), (dimension,)),
        std=jnp.asarray(std, dtype),
        one_component_rounds=jnp.asarray(one_component_rounds).astype(jnp.int32),
        reg_covar=jnp.asarray(reg_covar, dtype),
        tol=jnp.asarray(tol, dtype),
        max_iter=jnp.asarray(max_iter).astype(jnp.int32),
    )
    return Model(
        init=Partial(_init, settings), sample=Partial(_sample), fit=Partial(_fit, settings), log_prob=Partial(_log_prob)
    )


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
    first = _Mixture(*(_floating(part) for part in tuple(start)[:3]))
    _check_start(first)
    _check_samples(samples, first.means.shape[1])
    _check_weights(weights, np.shape(samples)[0])
    _check_em(reg_covar, tol, max_iter)
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
    _check_key(key)
    k = _validate.positive_integer(k, "k")
    _check_samples(samples, None, least=k)
    _check_weights(weights, np.shape(samples)[0])
    _check_not_negative(tol, "tol")
    _whole(max_iter, "max_iter", least=1)
    points = _floating(samples)
    dtype = points.dtype
    return _kmeans_of_samples(
        key,
        points,
        None if weights is None else jnp.asarray(weights).astype(dtype),
        k,
        jnp.asarray(tol, dtype),
        jnp.asarray(max_iter).astype(jnp.int32),
    )


# --- The functions of the model: checks, which cost nothing when traced, around compiled functions.


def _init(settings: _Settings, key: Array) -> MixtureParams:
    _check_key(key)
    return _first_params(settings, key)


def _sample(key: Array, params: MixtureParams, num: int) -> Array:
    _check_key(key)
    return _draw(key, params, _validate.positive_integer(num, "num"))


def _fit(
    settings: _Settings, key: Array, params: MixtureParams, samples: ArrayLike, weights: ArrayLike | None = None
) -> MixtureParams:
    _check_key(key)
    _check_samples(samples, settings.dimension, least=settings.num_components)
    _check_weights(weights, np.shape(samples)[0])
    dtype = settings.std.dtype
    return _refit(
        settings,
        key,
        params,
        jnp.asarray(samples).astype(dtype),
        None if weights is None else jnp.asarray(weights).astype(dtype),
    )


def _log_prob(params: MixtureParams, samples: ArrayLike) -> Array:
    _check_samples(samples, params.means.shape[1])
    return _log_density(params, jnp.asarray(samples).astype(params.means.dtype))


@jax.jit
def _first_params(settings: _Settings, key: Array) -> MixtureParams:
    k, d = settings.num_components, settings.dimension
    x = settings.std * jax.random.normal(key, (d, settings.num_initial), settings.std.dtype)
    one = _one_component(x, _shares(None, settings.num_initial, x.dtype), settings.reg_covar, k)
    zero = jnp.zeros((), jnp.int32)
    return MixtureParams(one.weights, one.means + settings.mean, one.covariances, zero, zero, jnp.ones((), bool))


@partial(jax.jit, static_argnums=2)
def _draw(key: Array, params: MixtureParams, num: int) -> Array:
    k, d = params.means.shape
    dtype = params.means.dtype
    for_component, for_point = jax.random.split(key)
    ends = jnp.cumsum(params.weights)
    at = _below(jax.random.uniform(for_component, (num,), dtype) * ends[-1], ends[-1])
    noise = jax.random.normal(for_point, (d, num), dtype)
    factors = _cholesky(params.covariances)
    # Component j has [ends[j-1], ends[j]), which is empty for weight 0.
    if k * d <= _FUSED:
        points = jnp.zeros((d, num), dtype)
        for j in reversed(range(k)):
            terms = (factors[j, :, i, None] * noise[i] for i in range(d))
            points = jnp.where(at < ends[j], sum(terms, params.means[j, :, None]), points)
        return points.T
    own = jnp.sum(ends[:, None] <= at, axis=0) == jnp.arange(k)[:, None]
    points = jnp.einsum("kij,jn->kin", factors, noise, precision=_HIGHEST) + params.means[:, :, None]
    return jnp.sum(jnp.where(own[:, None], points, 0.0), axis=0).T


@jax.jit
def _log_density(params: MixtureParams, samples: Array) -> Array:
    joint, _ = _joint_log_density(_Mixture(*params[:3]), samples.T)
    return jax.nn.logsumexp(joint, axis=0)


@jax.jit
def _refit(
    settings: _Settings, key: Array, params: MixtureParams, samples: Array, weights: Array | None
) -> MixtureParams:
    k = settings.num_components
    x, origin, shares = _centered(samples, weights)
    one = _one_component(x, shares, settings.reg_covar, k)
    if k == 1:
        found, num_iter, converged = one, jnp.zeros((), jnp.int32), jnp.ones((), bool)
    else:
        single = params.num_fits < settings.one_component_rounds
        # With no steps to do the loops below cost nothing, not even under vmap.
        nothing = jnp.zeros((), jnp.int32)
        lloyd_steps = jnp.where(single, nothing, 300)
        em_steps = jnp.where(single, nothing, settings.max_iter)

        def attempt(key: Array) -> tuple[_Mixture, Array, Array, Array]:
            centers, _ = _kmeans(key, x, shares, k, jnp.asarray(1e-4, x.dtype), lloyd_steps)
            first = _maximize(x, _assign(x, centers) * shares, centers, settings.reg_covar)
            found, num_iter, converged = _em(x, shares, first, settings.reg_covar, settings.tol, em_steps)
            return found, num_iter, converged, _mean_log_likelihood(x, shares, found)

        if settings.num_restarts == 1:
            found, num_iter, converged, _ = attempt(key)
        else:
            # One after another: together, all would take as many steps as the slowest.
            *tried, likelihood = jax.lax.map(attempt, jax.random.split(key, settings.num_restarts))
            found, num_iter, converged = jax.tree.map(lambda part: part[jnp.argmax(likelihood)], tuple(tried))
        found = jax.tree.map(lambda a, b: jnp.where(single, a, b), one, found)
        converged = converged | single
    found = found._replace(means=found.means + origin)
    some = jnp.sum(shares) > 0
    found = jax.tree.map(lambda a, b: jnp.where(some, a, b.astype(a.dtype)), found, _Mixture(*params[:3]))
    return MixtureParams(found.weights, found.means, found.covariances, params.num_fits + 1, num_iter, converged)


@jax.jit
def _em_of_samples(
    samples: Array,
    weights: Array | None,
    start: _Mixture,
    num_fits: Array,
    reg_covar: Array,
    tol: Array,
    max_iter: Array,
) -> EMResult:
    x, origin, shares = _centered(samples, weights)
    first = start._replace(means=start.means - origin)
    found, num_iter, converged = _em(x, shares, first, reg_covar, tol, max_iter)
    likelihood = _mean_log_likelihood(x, shares, found)
    means = found.means + origin
    params = MixtureParams(found.weights, means, found.covariances, num_fits + 1, num_iter, converged)
    return EMResult(params, likelihood, num_iter, converged)


@partial(jax.jit, static_argnums=3)
def _kmeans_of_samples(
    key: Array, samples: Array, weights: Array | None, k: int, tol: Array, max_iter: Array
) -> KMeansResult:
    x, origin, shares = _centered(samples, weights)
    centers, num_iter = _kmeans(key, x, shares, k, tol, max_iter)
    distances = _squared_distances(x, centers)
    total = jnp.asarray(x.shape[1], x.dtype) if weights is None else jnp.sum(weights)
    inertia = total * jnp.sum(shares * jnp.min(distances, axis=0))
    return KMeansResult(centers + origin, jnp.argmin(distances, axis=0).astype(jnp.int32), inertia, num_iter)


# --- EM, on data x [d, n] relative to their mean, with shares [n] of the points that sum to one.


def _em(
    x: Array, shares: Array, first: _Mixture, reg_covar: Array, tol: Array, max_iter: Array
) -> tuple[_Mixture, Array, Array]:
    """The mixture, the number of steps and whether the last one was within the tolerance."""

    def unfinished(state: tuple[Any, ...]) -> Array:
        _, _, steps, converged = state
        return ~converged & (steps < max_iter)

    def step(state: tuple[Any, ...]) -> tuple[Any, ...]:
        mixture, before, steps, _ = state
        joint, offsets = _joint_log_density(mixture, x)
        top = jnp.max(joint, axis=0)
        ratio = jnp.exp(joint - top)
        total = jnp.sum(ratio, axis=0)
        likelihood = jnp.dot(shares, top + jnp.log(total), precision=_HIGHEST)
        mixture = _maximize(x, ratio * (shares / total), mixture.means, reg_covar, offsets)
        return mixture, likelihood, steps + 1, jnp.abs(likelihood - before) < tol

    start = first, jnp.asarray(-jnp.inf, x.dtype), jnp.zeros((), jnp.int32), jnp.zeros((), bool)
    mixture, _, steps, converged = jax.lax.while_loop(unfinished, step, start)
    return mixture, steps, converged


def _joint_log_density(mixture: _Mixture, x: Array) -> tuple[Array, Array]:
    """Log of `w_k N(x; mu_k, Sigma_k)`, [k, n], and the offsets `x - mu_k`, [k, d, n]."""
    offsets = x - mixture.means[:, :, None]
    whitener = _inverse_of_lower(_cholesky(mixture.covariances))
    log_det = jnp.sum(jnp.log(jnp.diagonal(whitener, axis1=-2, axis2=-1)), axis=-1)
    white = jnp.einsum("kij,kjn->kin", whitener, offsets, precision=_HIGHEST)
    # Below the largest number, so that a point too far from every component still belongs to some.
    square = jnp.minimum(jnp.sum(white * white, axis=1), jnp.finfo(x.dtype).max / 4)
    present = mixture.weights > 0
    log_weight = jnp.where(present, jnp.log(jnp.where(present, mixture.weights, 1.0)), -jnp.inf)
    constant = log_weight + log_det - 0.5 * math.log(2 * math.pi) * x.shape[0]
    return constant[:, None] - 0.5 * square, offsets


def _maximize(
    x: Array, responsibilities: Array, around: Array, reg_covar: Array, offsets: Array | None = None
) -> _Mixture:
    """The mixture of responsibilities [k, n] that sum to one, with sums taken relative to centres `around` [k, d].

    Relative to centres near the new means no digits of a small covariance are lost.
    """
    k, d = around.shape
    n = x.shape[1]
    if offsets is None:
        offsets = x - around[:, :, None]
    with_one = jnp.concatenate([jnp.ones((k, 1, n), x.dtype), offsets], axis=1)
    first = jnp.einsum("kn,kin->ki", responsibilities, with_one, precision=_HIGHEST)
    mass = first[:, 0] + 10 * jnp.finfo(x.dtype).eps / n  # as in scikit-learn, for empty components
    shift = first[:, 1:] / mass[:, None]
    centered = offsets - shift[:, :, None]
    covariances = _second_moments(responsibilities, centered) / mass[:, None, None]
    return _Mixture(mass / jnp.sum(mass), around + shift, covariances + reg_covar * jnp.eye(d, dtype=x.dtype))


def _second_moments(responsibilities: Array, centered: Array) -> Array:
    """`sum_n r_k(n) c_k(n) c_k(n)^T`, [k, d, d]."""
    d = centered.shape[1]
    if d > _UNROLLED:
        return jnp.einsum("kin,kjn->kij", responsibilities[:, None] * centered, centered, precision=_HIGHEST)
    # Only the pairs i <= j, as one product of a matrix and a vector for each component.
    rows, columns = np.triu_indices(d)
    pairs = jnp.stack([centered[:, i] * centered[:, j] for i, j in zip(rows, columns, strict=True)], axis=1)
    moments = jnp.einsum("kn,kqn->kq", responsibilities, pairs, precision=_HIGHEST)
    where = np.zeros((d, d), int)
    where[rows, columns] = where[columns, rows] = np.arange(len(rows))
    return jnp.stack([jnp.stack([moments[:, q] for q in row], axis=-1) for row in where], axis=-2)


def _one_component(x: Array, shares: Array, reg_covar: Array, k: int) -> _Mixture:
    """One Gaussian in closed form, as the first of k components; the others are copies of weight 0."""
    alone = _maximize(x, shares[None], jnp.zeros((1, x.shape[0]), x.dtype), reg_covar)
    weights = jnp.zeros(k, x.dtype).at[0].set(1.0)
    return _Mixture(weights, jnp.repeat(alone.means, k, axis=0), jnp.repeat(alone.covariances, k, axis=0))


def _mean_log_likelihood(x: Array, shares: Array, mixture: _Mixture) -> Array:
    joint, _ = _joint_log_density(mixture, x)
    return jnp.dot(shares, jax.nn.logsumexp(joint, axis=0), precision=_HIGHEST)


# --- k-means, on the same data.


def _kmeans(key: Array, x: Array, shares: Array, k: int, tol: Array, max_iter: Array) -> tuple[Array, Array]:
    """Centres [k, d] and the number of Lloyd steps."""
    smallest = tol * jnp.mean(jnp.dot(x * x, shares, precision=_HIGHEST))  # the mean of x is zero
    with_one = jnp.concatenate([jnp.ones_like(x[:1]), x])

    def unfinished(state: tuple[Array, Array, Array]) -> Array:
        _, moved, steps = state
        return (moved > smallest) & (steps < max_iter)

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        centers, _, steps = state
        sums = jnp.einsum("kn,in->ki", _assign(x, centers) * shares, with_one, precision=_HIGHEST)
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
        best = jnp.argmin(jnp.dot(distances, shares, precision=_HIGHEST))
        return centers.at[j].set(candidates[best]), distances[best]

    centers, _ = jax.lax.fori_loop(1, k, add, (centers, _squared_distances(x, first)[0]))
    return centers


def _pick(x: Array, mass: Array, uniform: Array) -> Array:
    """Points drawn in proportion to mass [n], one for each uniform number [t]: [t, d]."""
    ends = jnp.cumsum(mass)
    at = _below(uniform * ends[-1], ends[-1])
    index = jnp.sum(ends <= at[:, None], axis=1)
    return jnp.take(x, index, axis=1, mode="clip").T


def _below(value: Array, end: Array) -> Array:
    """The value or, where a product was rounded up to the end, the number before it, so that the last of no mass is not drawn."""
    return jnp.minimum(value, jnp.nextafter(end, jnp.zeros_like(end)))


def _assign(x: Array, centers: Array) -> Array:
    """One for the nearest centre of a point and zero for the others, [k, n]."""
    nearest = jnp.argmin(_squared_distances(x, centers), axis=0)
    return (nearest == jnp.arange(centers.shape[0])[:, None]).astype(x.dtype)


def _squared_distances(x: Array, centers: Array) -> Array:
    """[k, n], from differences: the usual expansion loses the digits of points close together."""
    return jnp.sum((x - centers[:, :, None]) ** 2, axis=1)


def _centered(samples: Array, weights: Array | None) -> tuple[Array, Array, Array]:
    """Data [d, n] relative to their mean, that mean [d], and the points' shares [n], all zero if the weights are."""
    shares = _shares(weights, samples.shape[0], samples.dtype)
    origin = jnp.dot(shares, samples, precision=_HIGHEST)
    return (samples - origin).T, origin, shares


def _shares(weights: Array | None, n: int, dtype: Any) -> Array:
    if weights is None:
        return jnp.full(n, 1 / n, dtype)
    total = jnp.sum(weights)
    return weights / jnp.where(total > 0, total, 1.0)


# --- Small triangular matrices.


def _cholesky(covariances: Array) -> Array:
    """Lower factors, [k, d, d]; a matrix that rounding made singular gets the smallest pivot that the type can tell from zero."""
    d = covariances.shape[-1]
    info = jnp.finfo(covariances.dtype)
    if d > _UNROLLED:
        scale = jnp.sqrt(jnp.maximum(jnp.diagonal(covariances, axis1=-2, axis2=-1), info.tiny))
        correlations = covariances / scale[:, :, None] / scale[:, None, :]
        return scale[:, :, None] * jnp.linalg.cholesky(
            correlations + 4 * d * info.eps * jnp.eye(d, dtype=info.dtype), symmetrize_input=False
        )
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


def _inverse_of_lower(factors: Array) -> Array:
    """Inverses of lower triangular matrices, [k, d, d]."""
    d = factors.shape[-1]
    if d > _UNROLLED:
        identity = jnp.broadcast_to(jnp.eye(d, dtype=factors.dtype), factors.shape)
        return jax.lax.linalg.triangular_solve(factors, identity, left_side=True, lower=True)
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


# --- Checks.


def _floating(value: ArrayLike) -> Array:
    array = jnp.asarray(value)
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(jnp.result_type(float))


def _check_key(key: Any) -> None:
    if key is None:
        raise ValueError("key must be a PRNG key, got None.")


def _single(value: ArrayLike, name: str) -> None:
    if np.ndim(value) != 0:
        raise ValueError(f"{name} must be a single number, got shape {np.shape(value)}.")


def _whole(value: ArrayLike, name: str, least: int) -> None:
    _single(value, name)
    number = _validate.real_array(value, name)
    if number is not None and not (least <= number < 2**31 and number == np.floor(number)):
        raise ValueError(f"{name} must be a whole number of at least {least}, got {number}.")


def _check_not_negative(value: ArrayLike, name: str) -> None:
    _single(value, name)
    _validate.finite(value, name)
    number = _validate.real_array(value, name)
    if number is not None and number < 0:
        raise ValueError(f"{name} must not be negative, got {number}.")


def _check_em(reg_covar: ArrayLike, tol: ArrayLike, max_iter: ArrayLike) -> None:
    _check_not_negative(reg_covar, "reg_covar")
    _check_not_negative(tol, "tol")
    _whole(max_iter, "max_iter", least=1)


def _check_samples(samples: ArrayLike, dimension: int | None, least: int = 1) -> None:
    shape = np.shape(samples)
    if len(shape) != 2 or dimension not in (None, shape[1]):
        wanted = "(n, d)" if dimension is None else f"(n, {dimension})"
        raise ValueError(f"samples must have shape {wanted}, got shape {shape}.")
    if shape[0] < least:
        raise ValueError(f"samples must hold at least {least} points, got {shape[0]}.")
    _validate.finite(samples, "samples")


def _check_weights(weights: ArrayLike | None, count: int) -> None:
    if weights is None:
        return
    shape = np.shape(weights)
    if shape != (count,):
        raise ValueError(f"weights must hold one number for each of the {count} samples, got shape {shape}.")
    _validate.finite(weights, "weights")
    _check_some_mass(weights, "weights")


def _check_some_mass(weights: ArrayLike, name: str) -> None:
    array = _validate.real_array(weights, name)
    if array is not None and ((array < 0).any() or not (array > 0).any()):
        raise ValueError(f"{name} must not be negative and not all zero, got {_validate.shown(array)}.")


def _check_start(start: _Mixture) -> None:
    shape = np.shape(start.means)
    if len(shape) != 2 or np.shape(start.weights) != shape[:1] or np.shape(start.covariances) != (*shape, shape[1]):
        shapes = ", ".join(str(np.shape(part)) for part in start)
        raise ValueError(f"start must hold weights [k], means [k, d] and covariances [k, d, d], got shapes {shapes}.")
    for name, part in zip(start._fields, start, strict=True):
        _validate.finite(part, f"{name} of the start")
    _check_some_mass(start.weights, "weights of the start")
