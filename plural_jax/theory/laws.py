"""What a limit looks like: the mixture over basins and the means and variances of its rewards (Thms. 3, 5, 6, Prop. 4).

Shapes: m preferences and their m basins, n atoms. `means[i, j]` is `mu_ij = E_{P_j}[r_i]`, where P_j is the density on basin j.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from plural_jax import _validate
from plural_jax._typing import ArrayLike
from plural_jax.density.core import dot
from plural_jax.landscape import Landscape, as_float, check_log_mass, check_weights, normalize
from plural_jax.theory.bounds import check_eps, check_weight
from plural_jax.theory.partition import basin_partition


class Decomposition(NamedTuple):
    """A density as a mixture over basins.

    Attributes:
        weights: p(S_j), [m]; a and b of the paper for m = 2.
        log_conditionals: log-mass of every atom under P_j = p( . | S_j), [m, n]; `-inf` throughout where the basin has no mass.
        outside_mass: mass of no basin, [].
    """

    weights: Array
    log_conditionals: Array
    outside_mass: Array


def decompose(landscape: Landscape, log_p: ArrayLike, *, eps: ArrayLike = 0.1) -> Decomposition:
    """Split a density into basin weights, basin-conditionals and the rest (Thm. 3).

    `p = sum_j w_j P_j + m P_outside`, with `w_j = p(S_j)` and `P_j = p( . | S_j)`

    Where basins overlap, the parts of `basin_partition` take their place, so that the weights and the rest sum to one.

    Args:
        landscape: rewards [m, n].
        log_p: log-masses, [n]; normalized here.
        eps: width of the basins, in units of reward, not negative.

    Returns:
        A `Decomposition` in the landscape's floating type.

    Raises:
        ValueError: log-masses of the wrong length, NaN or without mass; a negative eps.

    Example:
        >>> import plural_jax as pj
        >>> land = pj.Landscape(rewards=[[2.0, 0.0, 0.0], [0.0, 0.0, 2.0]])
        >>> [f"{w:.3f}" for w in decompose(land, jnp.log(jnp.array([0.2, 0.5, 0.3]))).weights]
        ['0.200', '0.300']

    Source: Thm. 3 (Thm. B.2).
    """
    check_eps(eps)
    check_log_mass(log_p, landscape.num_atoms, "log_p")
    return _decompose(basin_partition(landscape, eps=eps), jnp.asarray(log_p, landscape.dtype))


@jax.jit
def _decompose(parts: Array, log_p: Array) -> Decomposition:
    log_p = normalize(log_p)
    inside = jnp.where(parts, log_p, -jnp.inf)
    log_weight = jax.nn.logsumexp(inside, axis=1)
    shift = jnp.where(log_weight > -jnp.inf, log_weight, 0)
    outside = jax.nn.logsumexp(jnp.where(parts.any(axis=0), -jnp.inf, log_p))
    return Decomposition(jnp.exp(log_weight), inside - shift[:, None], jnp.exp(outside))


def basin_means(landscape: Landscape, log_conditionals: ArrayLike) -> Array:
    """Mean of every reward on every basin.

    `mu_ij = E_{P_j}[r_i]` (Thm. 5)

    Args:
        landscape: rewards [m, n].
        log_conditionals: log-masses of the P_j, [k, n], as `decompose` returns them.

    Returns:
        mu, [m, k], in units of reward and the landscape's floating type; NaN for a P_j without mass.

    Raises:
        ValueError: log-masses of another length.

    Example:
        >>> import plural_jax as pj
        >>> land = pj.Landscape(rewards=[[2.0, 0.0], [0.0, 3.0]])
        >>> basin_means(land, decompose(land, land.uniform()).log_conditionals).tolist()
        [[2.0, 0.0], [0.0, 3.0]]

    Source: Thm. 5 (Thm. B.4).
    """
    if np.ndim(log_conditionals) != 2 or np.shape(log_conditionals)[1] != landscape.num_atoms:
        raise ValueError(
            f"log_conditionals must hold one log-mass for each of the {landscape.num_atoms} atoms, [k, n], got shape "
            f"{np.shape(log_conditionals)}."
        )
    return _basin_means(landscape, jnp.asarray(log_conditionals, landscape.dtype))


@jax.jit
def _basin_means(landscape: Landscape, log_conditionals: Array) -> Array:
    p = jnp.exp(log_conditionals)
    # About the best reward, so that an offset of 1e4 costs no digits.
    top = jnp.max(landscape.rewards, axis=1, keepdims=True)
    means = top + dot(landscape.rewards - top, p.T)
    return jnp.where(jnp.any(p > 0, axis=1), means, jnp.nan)


def mixture_means(weights: ArrayLike, means: ArrayLike) -> Array:
    """Expected rewards of a mixture over basins.

    `E[r_i] = sum_j w_j mu_ij`; for two basins `a mu_i1 + (1 - a) mu_i2` (Thm. 5)

    Args:
        weights: w, [m], summing to one; for two basins (a, 1 - a).
        means: mu, [m, m], in units of reward.

    Returns:
        E[r_i], [m], in the floating type of `means`.

    Raises:
        ValueError: weights outside [0, 1], or shapes that do not fit.

    Example:
        >>> mixture_means([0.25, 0.75], [[4.0, 0.0], [0.0, 4.0]]).tolist()
        [1.0, 3.0]

    Source: Thm. 5 (Thm. B.4).
    """
    weights, means = _mixture(weights, means)
    return dot(means, weights)


def between_basin_variance(weights: ArrayLike, means: ArrayLike) -> Array:
    """The inter-basin part of each reward's variance, a floor under all of it (Thm. 6).

    `Var[r_i] >= sum_j w_j (mu_ij - sum_k w_k mu_ik)^2`; for two basins `a (1 - a) (mu_i1 - mu_i2)^2`

    What it leaves out is the variance within the basins. A density with outside mass m has at least `(1 - m)` times this
    variance, with the weights w_j / (1 - m) and its own means.

    Args:
        weights: w, [m], summing to one.
        means: mu, [m, m], in units of reward.

    Returns:
        The floor, [m], in squared units of reward and the floating type of `means`.

    Raises:
        ValueError: weights outside [0, 1], or shapes that do not fit.

    Example:
        >>> between_basin_variance([0.5, 0.5], [[4.0, 0.0], [0.0, 2.0]]).tolist()
        [4.0, 1.0]

    Source: Thm. 6 (Thm. B.6).
    """
    return _between(*_mixture(weights, means))


@jax.jit
def _between(weights: Array, means: Array) -> Array:
    deviation = means - dot(means, weights)[:, None]
    return dot(deviation * deviation, weights)


def variance_gap_floor(weight: ArrayLike, gaps: ArrayLike, *, eps: ArrayLike = 0.1) -> Array:
    """The coarser form of Thm. 6, from the gaps alone: two basins.

    `Var[r_i] >= a (1 - a) (Delta_i - 2 eps)_+^2`

    Args:
        weight: a, in [0, 1], [].
        gaps: (Delta_1, Delta_2), [2], in units of reward; entries [0, 1] and [1, 0] of `separation_gaps`.
        eps: width of the basins, in units of reward, not negative.

    Returns:
        The floor, [2], in squared units of reward and the floating type of `gaps`.

    Raises:
        ValueError: a weight outside [0, 1], other than two gaps, a negative eps.

    Example:
        >>> variance_gap_floor(0.5, [2.0, 4.0], eps=0.0).tolist()
        [1.0, 4.0]

    Source: Thm. 6 (Thm. B.6).
    """
    check_weight(weight, "weight")
    check_eps(eps)
    if np.shape(gaps) != (2,):
        raise ValueError(f"gaps must hold (Delta_1, Delta_2), got shape {np.shape(gaps)}.")
    delta = as_float(gaps)
    return _gap_floor(*(jnp.asarray(v, delta.dtype) for v in (weight, delta, eps)))


@jax.jit
def _gap_floor(weight: Array, gaps: Array, eps: Array) -> Array:
    return weight * (1 - weight) * jnp.maximum(gaps - 2 * eps, 0) ** 2


def plateau_spread(landscape: Landscape, *, eps: ArrayLike = 0.1) -> Array:
    """How far rewards are from constant on each basin: zero throughout is the setting of Prop. 4.

    `spread_ij = max_{S_j} r_i - min_{S_j} r_i`

    In one large-K round no ratio of masses within basin j changes by more than `exp(max_i spread_ij / tau)`; where rewards are
    constant on the basin, the density within it never changes.

    Args:
        landscape: rewards [m, n].
        eps: width of the basins, in units of reward, not negative. Basins that overlap are taken as `basin_partition` does.

    Returns:
        The spread, [m, m], in units of reward and the landscape's floating type; 0 on an empty part.

    Raises:
        ValueError: a negative or infinite eps.

    Example:
        >>> import plural_jax as pj
        >>> plateau_spread(pj.Landscape(rewards=[[2.0, 2.0, 0.0], [0.5, 0.0, 2.0]])).tolist()
        [[0.0, 0.0], [0.5, 0.0]]

    Source: Prop. 4 (Prop. B.3), Assumption B.6.
    """
    return _spread(landscape, basin_partition(landscape, eps=eps))


@jax.jit
def _spread(landscape: Landscape, parts: Array) -> Array:
    def one_preference(rewards: Array) -> Array:
        top = jnp.max(jnp.where(parts, rewards, -jnp.inf), axis=1)
        return jnp.where(parts.any(axis=1), top - jnp.min(jnp.where(parts, rewards, jnp.inf), axis=1), 0)

    return jax.lax.map(one_preference, landscape.rewards)


def conditional_drift(before: Decomposition, after: Decomposition) -> Array:
    """How far the density within each basin has moved between two states (Prop. 4: not at all on plateaus).

    `TV(P_j, P_j') = 1/2 sum_x |P_j(x) - P_j'(x)|`

    Args:
        before: `decompose` of the first state.
        after: `decompose` of the second one, on the same landscape.

    Returns:
        Total variation for each basin, [m], in [0, 1]; 0 where the basin has mass in neither state.

    Example:
        >>> import plural_jax as pj
        >>> land = pj.Landscape(rewards=[[2.0, 2.0, 0.0], [0.0, 0.0, 2.0]])
        >>> process = pj.density.large_pool(land, phi=[0.2, 0.8])
        >>> final, _ = pj.run(process, process.init(), num_steps=20)
        >>> drift = conditional_drift(decompose(land, land.uniform()), decompose(land, final.log_p))
        >>> bool((drift < 1e-6).all())
        True

    Source: Prop. 4 (Prop. B.3).
    """
    return _total_variation(before.log_conditionals, after.log_conditionals)


@jax.jit
def _total_variation(before: Array, after: Array) -> Array:
    return jnp.sum(jnp.abs(jnp.exp(before) - jnp.exp(after)), axis=1) / 2


def plateau_weight(phi: ArrayLike, kappa: ArrayLike) -> Array:
    """The exact limit weight of the first of two plateaus, where Lemma 4 gives an interval.

    `a = phi + k (2 phi - 1) / (1 - k)` for equal leakages, and in general
    `a = (phi (1 - k_1 k_2) / (1 - k_2) - k_1) / (1 - k_1)`, clipped to [0, 1]

    With rewards constant on both basins the fixed point asks that W = 1 on each: `x + k_2 y = 1` and `k_1 x + y = 1` for
    `x = phi / (a + k_1 (1 - a))`, `y = (1 - phi) / (k_2 a + 1 - a)`. Where the solution lies outside [0, 1] one basin takes all.

    Args:
        phi: weight of the first preference, any shape, in [0, 1].
        kappa: exact leakages (k_1, k_2), `k_i = exp(-(r_i* - r_i on the other plateau) / tau)`, each below 1: `leakage` with
            eps = 0.

    Returns:
        The weight, of phi's shape, in the floating type of `kappa`; NaN for a leakage of 1 or more.

    Raises:
        ValueError: a phi outside [0, 1], or other than two leakages.

    Example:
        >>> [f"{a:.3f}" for a in plateau_weight([0.1, 0.3, 0.5], [0.25, 0.25])]
        ['0.000', '0.167', '0.500']

    Source: derived here from Eq. 5 (the setting of Prop. 4 and Cor. 8).
    """
    check_weight(phi, "phi")
    if np.shape(kappa) != (2,):
        raise ValueError(f"kappa must hold the two leakages (k_1, k_2), got shape {np.shape(kappa)}.")
    k = as_float(kappa)
    return _plateau_weight(jnp.asarray(phi, k.dtype), k)


@jax.jit
def _plateau_weight(phi: Array, k: Array) -> Array:
    first, second = (jnp.where(x < 1, x, 0) for x in (k[0], k[1]))
    weight = (phi * (1 - first * second) / (1 - second) - first) / (1 - first)
    return jnp.where(jnp.all(k < 1), jnp.clip(weight, 0, 1), jnp.nan)


def fair_share_floor(landscape: Landscape, phi: ArrayLike, *, temperature: ArrayLike = 1.0) -> Array:
    """What every preference is sure to have in the limit, whatever the rewards.

    `log Z_i >= log phi_i + max_x r_i(x) / tau`, `Z_i = E_{p_inf}[exp(r_i / tau)]`, because W <= 1 on every atom that the start
    gives mass; before the limit, `log max W_t` has to be subtracted.

    Args:
        landscape: rewards [m, n].
        phi: weights of the preferences, [m], non-negative, summing to one.
        temperature: tau, positive, in units of reward.

    Returns:
        The floor under log Z_i (`DensityInfo.log_z`), [m], in the landscape's floating type; `-inf` where phi_i = 0.

    Raises:
        ValueError: a phi that is no set of weights, a temperature that is not positive.

    Example:
        >>> import plural_jax as pj
        >>> [f"{z:.3f}" for z in fair_share_floor(pj.Landscape(rewards=[[2.0, 0.0], [0.0, 1.0]]), [0.5, 0.5])]
        ['1.307', '0.307']

    Source: derived here from the optimality condition of `max_p sum_i phi_i log Z_i`.
    """
    check_weights(landscape, phi)
    _validate.positive(temperature, "temperature")
    return _share_floor(landscape, *(jnp.asarray(v, landscape.dtype) for v in (phi, temperature)))


@jax.jit
def _share_floor(landscape: Landscape, phi: Array, temperature: Array) -> Array:
    inside = landscape._log_measure > -jnp.inf
    best = jnp.max(jnp.where(inside, landscape.rewards, -jnp.inf), axis=1)
    log_phi = jnp.where(phi > 0, jnp.log(jnp.where(phi > 0, phi, 1)), -jnp.inf)
    return log_phi + best / temperature


def _mixture(weights: ArrayLike, means: ArrayLike) -> tuple[Array, Array]:
    check_weight(weights, "weights")
    if np.ndim(means) != 2 or np.shape(weights) != np.shape(means)[1:]:
        raise ValueError(
            f"weights must hold one number for each column of means, got shapes {np.shape(weights)} and {np.shape(means)}."
        )
    means = as_float(means)
    return jnp.asarray(weights, means.dtype), means
