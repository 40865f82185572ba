"""Gaussian mixtures with full covariances as a `Model`, refit by expectation maximization (EM) from k-means centres.

Shapes: n points in d dimensions, k components. The defaults are those of scikit-learn's `GaussianMixture`.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from plural_jax import _validate
from plural_jax._pytree import pytree_dataclass, static_field
from plural_jax._typing import ArrayLike
from plural_jax.model import Model
from plural_jax.models._points import (
    HIGHEST,
    below,
    centered,
    check_key,
    check_samples,
    check_single,
    check_weights,
    check_whole,
    shares_of,
)
from plural_jax.models._triangular import cholesky
from plural_jax.models.clustering import assign, find_centers
from plural_jax.models.maximization import (
    Mixture,
    MixtureParams,
    check_em,
    joint_log_density,
    maximize,
    mean_log_likelihood,
    one_component,
    run_em,
)

#: Up to this many means and coordinates a sample is made in one sweep over the points, without a product for each component.
_FUSED = 16


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
    check_single(std, "std")
    _validate.positive(std, "std")
    check_whole(one_component_rounds, "one_component_rounds", least=0)
    check_em(reg_covar, tol, max_iter)
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


def _init(settings: _Settings, key: Array) -> MixtureParams:
    check_key(key)
    return _first_params(settings, key)


def _sample(key: Array, params: MixtureParams, num: int) -> Array:
    num = _validate.positive_integer(num, "num")
    check_key(key)
    return _draw(key, params, num)


def _fit(
    settings: _Settings, key: Array, params: MixtureParams, samples: ArrayLike, weights: ArrayLike | None = None
) -> MixtureParams:
    check_samples(samples, settings.dimension, least=settings.num_components)
    check_weights(weights, np.shape(samples)[0])
    check_key(key)
    dtype = settings.std.dtype
    return _refit(
        settings,
        key,
        params,
        jnp.asarray(samples).astype(dtype),
        None if weights is None else jnp.asarray(weights).astype(dtype),
    )


def _log_prob(params: MixtureParams, samples: ArrayLike) -> Array:
    check_samples(samples, params.means.shape[1])
    return _log_density(params, jnp.asarray(samples).astype(params.means.dtype))


@jax.jit
def _first_params(settings: _Settings, key: Array) -> MixtureParams:
    k, d = settings.num_components, settings.dimension
    x = settings.std * jax.random.normal(key, (d, settings.num_initial), settings.std.dtype)
    one = one_component(x, shares_of(None, settings.num_initial, x.dtype), settings.reg_covar, k)
    zero = jnp.zeros((), jnp.int32)
    return MixtureParams(one.weights, one.means + settings.mean, one.covariances, zero, zero, jnp.ones((), bool))


@partial(jax.jit, static_argnums=2)
def _draw(key: Array, params: MixtureParams, num: int) -> Array:
    k, d = params.means.shape
    dtype = params.means.dtype
    for_component, for_point = jax.random.split(key)
    ends = jnp.cumsum(params.weights)
    at = below(jax.random.uniform(for_component, (num,), dtype) * ends[-1], ends[-1])
    noise = jax.random.normal(for_point, (d, num), dtype)
    factors = cholesky(params.covariances)
    # Component j has [ends[j-1], ends[j]), which is empty for weight 0.
    if k * d <= _FUSED:
        points = jnp.zeros((d, num), dtype)
        for j in reversed(range(k)):
            terms = (factors[j, :, i, None] * noise[i] for i in range(d))
            points = jnp.where(at < ends[j], sum(terms, params.means[j, :, None]), points)
        return points.T
    own = jnp.sum(ends[:, None] <= at, axis=0) == jnp.arange(k)[:, None]
    points = jnp.einsum("kij,jn->kin", factors, noise, precision=HIGHEST) + params.means[:, :, None]
    return jnp.sum(jnp.where(own[:, None], points, 0.0), axis=0).T


@jax.jit
def _log_density(params: MixtureParams, samples: Array) -> Array:
    joint, _ = joint_log_density(Mixture(*params[:3]), samples.T)
    return jax.nn.logsumexp(joint, axis=0)


@jax.jit
def _refit(
    settings: _Settings, key: Array, params: MixtureParams, samples: Array, weights: Array | None
) -> MixtureParams:
    k = settings.num_components
    x, origin, shares = centered(samples, weights)
    one = one_component(x, shares, settings.reg_covar, k)
    if k == 1:
        found, num_iter, converged = one, jnp.zeros((), jnp.int32), jnp.ones((), bool)
    else:
        single = params.num_fits < settings.one_component_rounds
        # With no steps to do the loops below cost nothing, not even under vmap.
        nothing = jnp.zeros((), jnp.int32)
        lloyd_steps = jnp.where(single, nothing, 300)
        em_steps = jnp.where(single, nothing, settings.max_iter)

        def attempt(key: Array) -> tuple[Mixture, Array, Array, Array]:
            centers, _ = find_centers(key, x, shares, k, jnp.asarray(1e-4, x.dtype), lloyd_steps)
            first = maximize(x, assign(x, centers) * shares, centers, settings.reg_covar)
            found, num_iter, converged = run_em(x, shares, first, settings.reg_covar, settings.tol, em_steps)
            return found, num_iter, converged, mean_log_likelihood(x, shares, found)

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
    found = jax.tree.map(lambda a, b: jnp.where(some, a, b.astype(a.dtype)), found, Mixture(*params[:3]))
    return MixtureParams(found.weights, found.means, found.covariances, params.num_fits + 1, num_iter, converged)
