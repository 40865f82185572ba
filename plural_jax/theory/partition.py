"""More than two preferences: a partition where basins overlap, leakages, and how far weights can be from phi (B.4).

The bound, with its constant. Let the limit p have no mass outside the basins, w_i the mass of part i of the partition,
kappa_ij the leakage of preference i into part j and `k_i = max_j!=i kappa_ij < 1`. On part i, `r_i >= r_i* - eps`; on part j,
`e^r_i <= kappa_ij e^(r_i* - eps)`. So the tilt by preference i puts at least `w_i / (w_i + k_i (1 - w_i))` of its mass on its own
part, and since p is a fixed point,

    w_i >= phi_i w_i / (w_i + k_i (1 - w_i)).

1. If w_i > 0 this says `w_i >= L_i = (phi_i - k_i)_+ / (1 - k_i)`. And if k_i < phi_i then w_i = 0 cannot happen: with m_t the
   outside mass, each round multiplies the part's mass by at least `phi_i / (w_i + k_i (1 - w_i - m_t) + m_t)` (outside,
   `r_i < r_i* - eps`), which near w_i = 0 and m_t = 0 is more than 1.
2. The weights sum to one: `w_i <= 1 - sum_{j != i} L_j = U_i`.
3. `phi_i - L_i <= k_i (1 - phi_i) / (1 - k_i)`: an equality if k_i <= phi_i, and else the right side exceeds k_i > phi_i. With
   k the largest of the k_i, therefore

       phi_i - w_i <= k (1 - phi_i) / (1 - k),
       w_i - phi_i <= sum_{j != i} (phi_j - L_j) <= k (m - 2 + phi_i) / (1 - k),

   so `|w_i - phi_i| <= C k` with `C = max_i max(1 - phi_i, m - 2 + phi_i) / (1 - k) <= (m - 1) / (1 - k)` for m >= 2.

C needs no lower bound on the limit's masses, which the paper's constant depends on. For m = 2 the interval [L_1, U_1] is that of
Lemma 4.

Where basins overlap, the paper's separation can never hold: an atom of S_i and S_j that the partition gives to j has
`r_i >= r_i* - eps`, so kappa_ij >= 1. A statement that survives is one about groups (`merged_weight_bounds`): the argument above,
word for word, for the union of all basins that overlap.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from plural_jax import _validate
from plural_jax._typing import ArrayLike
from plural_jax.density.core import dot
from plural_jax.landscape import Landscape, as_float, check_weights
from plural_jax.theory.bounds import check_eps, leakage_between


def basin_partition(landscape: Landscape, *, eps: ArrayLike = 0.1) -> Array:
    """The basins with every atom in at most one of them (B.4).

    An atom in several basins goes to the preference for which it is nearest to the optimum: the highest `r_i - r_i*`, and
    among equals the lowest index. Basins that do not overlap stay as they are.

    Args:
        landscape: rewards [m, n].
        eps: width of the basins, in units of reward, not negative.

    Returns:
        Membership, bool [m, n], with at most one True in each column. A part may be empty.

    Raises:
        ValueError: a negative or infinite eps.

    Example:
        >>> import plural_jax as pj
        >>> land = pj.Landscape(rewards=[[2.0, 1.9, 0.0], [0.0, 2.0, 2.0]])
        >>> basin_partition(land, eps=0.2).tolist()
        [[True, False, False], [False, True, True]]

    Source: Appendix B.4.
    """
    check_eps(eps)
    return _partition(landscape, jnp.asarray(eps, landscape.dtype))


@jax.jit
def _partition(landscape: Landscape, eps: Array) -> Array:
    basins = landscape.basins(eps)
    inside = landscape._log_measure > -jnp.inf
    best = jnp.max(jnp.where(inside, landscape.rewards, -jnp.inf), axis=1, keepdims=True)
    owner = jnp.argmax(jnp.where(basins, landscape.rewards - best, -jnp.inf), axis=0)
    return basins & (jnp.arange(basins.shape[0])[:, None] == owner)


def partition_leakage(landscape: Landscape, *, eps: ArrayLike = 0.1, temperature: ArrayLike = 1.0) -> Array:
    """The leakages of B.4, into the parts of `basin_partition`.

    `kappa_ij = exp(-(r_i* - max_{part j} r_i - eps) / tau)`

    Args:
        landscape: rewards [m, n].
        eps: width of the basins, in units of reward, not negative.
        temperature: tau, positive, in units of reward.

    Returns:
        kappa, [m, m], in the landscape's floating type; 0 into an empty part. The diagonal is at most `exp(eps / tau)` and
        enters no bound.

    Raises:
        ValueError: a negative eps or a temperature that is not positive.

    Example:
        >>> import plural_jax as pj
        >>> land = pj.Landscape(rewards=[[2.0, 1.9, 0.0], [0.0, 2.0, 2.0]])
        >>> bool(partition_leakage(land, eps=0.2)[0, 1] >= 1)  # overlapping basins are never separated
        True

    Source: Appendix B.4.
    """
    check_eps(eps)
    _validate.positive(temperature, "temperature")
    return leakage_between(landscape, basin_partition(landscape, eps=eps), eps, temperature)


def partition_weight_bounds(phi: ArrayLike, kappa: ArrayLike) -> tuple[Array, Array]:
    """Between which weights each of m basins must end up (B.4, with Lemma 4 as m = 2).

    `w_i >= L_i = (phi_i - k_i)_+ / (1 - k_i)` with `k_i = max_{j != i} kappa_ij`, and `w_i <= 1 - sum_{j != i} L_j`

    It needs `m_t -> 0` and a positive initial mass in every part. The proof stands at the head of the module.

    Args:
        phi: weights of the preferences, [m], non-negative, summing to one.
        kappa: leakages, [m, m]; the diagonal is not used.

    Returns:
        Lower and upper bounds, [m] each, in the floating type of `kappa`; the trivial 0 where a leakage is 1 or more.

    Raises:
        ValueError: a phi that is no set of weights, or a kappa of another shape or with negative entries.

    Example:
        >>> lower, upper = partition_weight_bounds([0.2, 0.3, 0.5], [[0.1] * 3] * 3)
        >>> [f"{l:.3f} to {u:.3f}" for l, u in zip(lower, upper)]
        ['0.111 to 0.333', '0.222 to 0.444', '0.444 to 0.667']

    Source: Appendix B.4; Lemma 4 (B.5).
    """
    return _weight_bounds(*_checked(phi, kappa))


@jax.jit
def _weight_bounds(phi: Array, kappa: Array) -> tuple[Array, Array]:
    largest = _largest_leakage(kappa)
    separated = largest < 1
    safe = jnp.where(separated, largest, 0)
    lower = jnp.where(separated, jnp.maximum(phi - safe, 0) / (1 - safe), 0)
    return lower, jnp.minimum(1 - (jnp.sum(lower) - lower), 1)


def partition_constant(phi: ArrayLike, kappa: ArrayLike) -> Array:
    """An explicit constant for B.4's `|w_i - phi_i| <= C max_ij kappa_ij`.

    `C = max_i max(1 - phi_i, m - 2 + phi_i) / (1 - max_{i != j} kappa_ij)`, 0 for one preference

    The paper's constant depends on the smallest mass of the limit; this one does not. The proof stands at the head of the
    module. `partition_weight_bounds` is never wider.

    Args:
        phi: weights of the preferences, [m], non-negative, summing to one.
        kappa: leakages, [m, m]; the diagonal is not used.

    Returns:
        C, [], in the floating type of `kappa`; infinite where a leakage is 1 or more.

    Raises:
        ValueError: a phi that is no set of weights, or a kappa of another shape or with negative entries.

    Example:
        >>> float(partition_constant([0.5, 0.5], [[1.0, 0.5], [0.5, 1.0]]))
        1.0

    Source: Appendix B.4; the constant is derived here.
    """
    return _constant(*_checked(phi, kappa))


@jax.jit
def _constant(phi: Array, kappa: Array) -> Array:
    if phi.shape[0] == 1:
        return jnp.zeros((), kappa.dtype)
    most = jnp.max(_largest_leakage(kappa))
    reach = jnp.max(jnp.maximum(1 - phi, phi.shape[0] - 2 + phi))
    return jnp.where(most < 1, reach / jnp.where(most < 1, 1 - most, 1), jnp.inf)


def merged_weight_bounds(
    landscape: Landscape, phi: ArrayLike, *, eps: ArrayLike = 0.1, temperature: ArrayLike = 1.0
) -> tuple[Array, Array, Array]:
    """Between which weights each group of overlapping basins must end up.

    For a group G, the union S_G of basins that overlap, directly or through others, with `phi_G = sum_{i in G} phi_i`:
    `w_G >= (phi_G - kappa_G)_+ / (1 - kappa_G)`,
    `kappa_G = max_{i in G, phi_i > 0} exp((max_{other groups} r_i - min_{S_G} r_i) / tau)`, and `w_G <= 1 - sum of the others'`

    It needs `m_t -> 0` and a positive initial mass in every group. The proof is that of `partition_weight_bounds`, with the
    lowest reward on S_G in the place of r_i* - eps; for basins that do not overlap it is at least as sharp, and sharper where
    the basins are flatter than eps.

    Args:
        landscape: rewards [m, n].
        phi: weights of the preferences, [m], non-negative, summing to one.
        eps: width of the basins, in units of reward, not negative.
        temperature: tau, positive, in units of reward.

    Returns:
        The group of each preference, int [m], named by its first preference; and lower and upper bounds on the weight of
        each preference's group, [m] each, in the landscape's floating type.

    Raises:
        ValueError: a phi that is no set of weights, a negative eps, a temperature that is not positive.

    Example:
        >>> import plural_jax as pj
        >>> land = pj.Landscape(rewards=[[5.0, 5.0, 0.0], [4.9, 5.0, 0.0], [0.0, 0.0, 5.0]])
        >>> groups, lower, upper = merged_weight_bounds(land, [0.3, 0.2, 0.5])
        >>> groups.tolist(), lower.round(2).tolist()
        ([0, 0, 2], [0.5, 0.5, 0.5])

    Source: derived here, from the proof of Lemma B.5.
    """
    check_weights(landscape, phi)
    check_eps(eps)
    _validate.positive(temperature, "temperature")
    dtype = landscape.dtype
    return _merged(landscape, *(jnp.asarray(v, dtype) for v in (phi, eps, temperature)))


@jax.jit
def _merged(landscape: Landscape, phi: Array, eps: Array, temperature: Array) -> tuple[Array, Array, Array]:
    basins = landscape.basins(eps)
    m = phi.shape[0]
    linked = dot(basins.astype(phi.dtype), basins.T.astype(phi.dtype)) > 0
    for _ in range(max(m - 1, 1).bit_length()):  # each turn doubles the length of the chains that are followed
        linked = dot(linked.astype(phi.dtype), linked.astype(phi.dtype)) > 0
    same = linked.astype(phi.dtype)

    def one_preference(arguments: tuple[Array, Array]) -> Array:
        rewards, mine = arguments
        own = jnp.any(basins & mine[:, None], axis=0)
        others = jnp.any(basins & ~mine[:, None], axis=0)
        top = jnp.max(jnp.where(others, rewards, -jnp.inf))
        return jnp.exp((top - jnp.min(jnp.where(own, rewards, jnp.inf))) / temperature)

    kappa = jax.lax.map(one_preference, (landscape.rewards, linked))
    kappa = jnp.max(jnp.where(linked & (phi > 0), kappa, 0), axis=1)
    separated = kappa < 1
    safe = jnp.where(separated, kappa, 0)
    total = jnp.minimum(dot(same, phi), 1)
    lower = jnp.where(separated, jnp.maximum(total - safe, 0) / (1 - safe), 0)
    group = jnp.argmax(linked, axis=1)
    first = group == jnp.arange(m)
    upper = jnp.minimum(1 - (jnp.sum(jnp.where(first, lower, 0)) - lower), 1)
    return group, lower, upper


def _checked(phi: ArrayLike, kappa: ArrayLike) -> tuple[Array, Array]:
    m = np.shape(kappa)[0] if np.ndim(kappa) else 0
    if m == 0 or np.shape(kappa) != (m, m):
        raise ValueError(f"kappa must be a table of leakages, [m, m], got shape {np.shape(kappa)}.")
    value = _validate.real_array(kappa, "kappa")
    if value is not None and not (value >= 0).all():
        raise ValueError(f"kappa must not be negative, got {_validate.shown(value)}.")
    _validate.simplex(phi, "phi", m)
    kappa = as_float(kappa)
    return jnp.asarray(phi, kappa.dtype), kappa


def _largest_leakage(kappa: Array) -> Array:
    """k_i = max over j != i of kappa_ij, [m]; 0 for one preference."""
    return jnp.max(jnp.where(jnp.eye(kappa.shape[0], dtype=bool), 0, kappa), axis=1)
