"""Leakage between basins and the bounds that it puts on their weights (Assumption 1 iii and iv, Lemmas 3, 4 and 5).

Temperature: choices with rewards r and temperature tau are choices with rewards r / tau and temperature 1, so every
statement of the paper holds with r, eps and the gaps all divided by tau.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from plural_jax import _validate
from plural_jax._typing import ArrayLike
from plural_jax.landscape import Landscape, as_float


def separation_gaps(landscape: Landscape, *, eps: ArrayLike = 0.1) -> Array:
    """The largest gaps for which basins are separated as Assumption 1 (iv) asks.

    `Delta_ij = r_i* - max_{S_j} r_i + eps`, so that `r_i <= r_i* - Delta_ij + eps` on S_j (Delta_1 = Delta_12 and
    Delta_2 = Delta_21)

    On finitely many atoms the basins S_i and S_j are disjoint exactly if both gaps between them exceed 2 eps.

    Args:
        landscape: rewards [m, n].
        eps: width of the basins, in units of reward, not negative.

    Returns:
        Delta, [m, m], in units of reward and the landscape's floating type. The diagonal compares a basin with itself and
        is eps.

    Raises:
        ValueError: a negative or infinite eps.

    Example:
        >>> import plural_jax as pj
        >>> land = pj.Landscape(rewards=[[2.0, 0.5], [0.0, 2.0]])
        >>> separation_gaps(land, eps=0.0).tolist()
        [[0.0, 1.5], [2.0, 0.0]]

    Source: Assumption 1 (iv), Assumption B.5.
    """
    check_eps(eps)
    return _gaps(landscape, landscape.basins(eps), jnp.asarray(eps, landscape.dtype))


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

    Source: Assumption 1 (iv).
    """
    check_eps(eps)
    _validate.positive(temperature, "temperature")
    return leakage_between(landscape, landscape.basins(eps), eps, temperature)


def leakage_between(landscape: Landscape, basins: Array, eps: ArrayLike, temperature: ArrayLike) -> Array:
    """The leakage of `leakage` into given sets of atoms, bool [m, n]; 0 into an empty set."""
    return _leakage(landscape, basins, *(jnp.asarray(v, landscape.dtype) for v in (eps, temperature)))


@jax.jit
def _leakage(landscape: Landscape, basins: Array, eps: Array, temperature: Array) -> Array:
    return jnp.exp(-(_gaps(landscape, basins, eps) - 2 * eps) / temperature)


@jax.jit
def _gaps(landscape: Landscape, basins: Array, eps: Array) -> Array:
    inside = landscape._log_measure > -jnp.inf

    # One preference at a time: m x m x n entries would not fit for fifty preferences on a million atoms.
    def one_preference(rewards: Array) -> Array:
        best = jnp.max(jnp.where(inside, rewards, -jnp.inf))
        return best - jnp.max(jnp.where(basins, rewards, -jnp.inf), axis=1) + eps

    return jax.lax.map(one_preference, landscape.rewards)


def outside_mass_bound(outside_mass: ArrayLike, rho: ArrayLike, num_steps: ArrayLike) -> Array:
    """The most that can be left outside the basins after some rounds of outside domination (Lemma 3).

    `m_t <= rho^t m_0`, where `rho = sup_t sup_{x outside} W_t(x)`

    Args:
        outside_mass: m_0, in [0, 1], any shape.
        rho: sup of the multiplier outside the basins over these rounds, not negative, any shape.
        num_steps: t, not negative, any shape.

    Returns:
        The bound, at most 1 where rho is 1 or more, in the floating type of `rho`.

    Raises:
        ValueError: a mass outside [0, 1], or a negative rho or number of rounds.

    Example:
        >>> print(outside_mass_bound(0.5, 0.5, [0, 1, 2]))
        [0.5   0.25  0.125]

    Source: Lemma 3 (Lemma B.4).
    """
    mass, ratio, steps = (_validate.real_array(v, n) for v, n in _named(outside_mass, rho, num_steps))
    if mass is not None and not ((mass >= 0) & (mass <= 1)).all():
        raise ValueError(f"outside_mass must lie between 0 and 1, got {_validate.shown(outside_mass)}.")
    for value, name in ((ratio, "rho"), (steps, "num_steps")):
        if value is not None and not (value >= 0).all():
            raise ValueError(f"{name} must not be negative, got {_validate.shown(value)}.")
    rho = as_float(rho)
    return _mass_bound(jnp.asarray(outside_mass, rho.dtype), rho, jnp.asarray(num_steps, rho.dtype))


@jax.jit
def _mass_bound(outside_mass: Array, rho: Array, num_steps: Array) -> Array:
    return jnp.minimum(outside_mass * rho**num_steps, 1)


def _named(outside_mass: ArrayLike, rho: ArrayLike, num_steps: ArrayLike) -> list[tuple[ArrayLike, str]]:
    return [(outside_mass, "outside_mass"), (rho, "rho"), (num_steps, "num_steps")]


def basin_weight_bounds(phi: ArrayLike, kappa: ArrayLike) -> tuple[Array, Array]:
    """Ends of the interval in which the weight of the first of two basins must end up (Lemma 4; Lemma 5 for its limits).

    `a in [ (phi - kappa_1)_+ / (1 - kappa_1), min(1, phi / (1 - kappa_2)) ]`

    It needs `m_t -> 0` and a positive initial mass in both basins. On finitely many atoms the convergence of a_t that
    Lemma 4 asks for is no further condition: with p* any maximizer of `F(p) = sum_i phi_i log E_p[e^r_i]`,
    `KL(p* || p_{t+1}) <= KL(p* || p_t) - (F* - F(p_t))`, so that p_t converges to one of them.

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

    Source: Lemmas 4 and 5 (B.5 and B.6); the convergence is that of Csiszar and Tusnady (1984).
    """
    if np.shape(kappa) != (2,):
        raise ValueError(f"kappa must hold the two leakages (kappa_1, kappa_2), got shape {np.shape(kappa)}.")
    check_weight(phi, "phi")
    kappa = as_float(kappa)
    return _weight_bounds(jnp.asarray(phi, kappa.dtype), kappa)


@jax.jit
def _weight_bounds(phi: Array, kappa: Array) -> tuple[Array, Array]:
    dtype = kappa.dtype
    first, second = (jnp.where(k < 1, k, jnp.zeros((), dtype)) for k in (kappa[0], kappa[1]))
    lower = jnp.where(kappa[0] < 1, jnp.maximum(phi - first, 0) / (1 - first), jnp.zeros((), dtype))
    upper = jnp.where(kappa[1] < 1, jnp.minimum(phi / (1 - second), 1), jnp.ones((), dtype))
    return lower, upper


def basin_mass_floor(phi: ArrayLike, kappa: ArrayLike, basin_mass: ArrayLike, outside_mass: ArrayLike) -> Array:
    """Lemma 5 at finite times: the least that a basin can hold in each round, from its start and the outside mass.

    `a_{t+1} >= phi a_t / (a_t + kappa (1 - a_t - m_t) + m_t)`, the comparison in the proofs of Lemmas 4 and 5; the right
    side grows with a_t, so that it may be iterated.

    Args:
        phi: weight of the preference whose basin it is, [], in [0, 1].
        kappa: its largest leakage into another basin, [], not negative.
        basin_mass: a_0, [], in [0, 1].
        outside_mass: m_0, ..., m_{T-1}, [T].

    Returns:
        Lower bounds for a_0, ..., a_T, [T + 1], in the floating type of `outside_mass`.

    Raises:
        ValueError: a phi or a mass outside [0, 1], a negative leakage, or an outside mass that is no list.

    Example:
        >>> floor = basin_mass_floor(0.5, 0.1, 0.2, [0.0] * 100)
        >>> print(f"{floor[-1]:.4f}")  # (phi - kappa) / (1 - kappa)
        0.4444

    Source: proofs of Lemmas B.5 and B.6.
    """
    for value, name in ((phi, "phi"), (basin_mass, "basin_mass"), (outside_mass, "outside_mass")):
        check_weight(value, name)
    leak = _validate.real_array(kappa, "kappa")
    if leak is not None and not (leak >= 0).all():
        raise ValueError(f"kappa must not be negative, got {_validate.shown(kappa)}.")
    if np.ndim(outside_mass) != 1:
        raise ValueError(f"outside_mass must hold one mass for each round, [T], got shape {np.shape(outside_mass)}.")
    outside = as_float(outside_mass)
    return _mass_floor(outside, *(jnp.asarray(v, outside.dtype) for v in (phi, kappa, basin_mass)))


@jax.jit
def _mass_floor(outside: Array, phi: Array, kappa: Array, start: Array) -> Array:
    def one_round(a: Array, m: Array) -> tuple[Array, Array]:
        others = a + kappa * jnp.maximum(1 - a - m, 0) + m
        new = jnp.where(a > 0, phi * a / jnp.where(a > 0, others, 1), 0)
        return new, new

    return jnp.concatenate([start[None], jax.lax.scan(one_round, start, outside)[1]])


def check_eps(eps: ArrayLike) -> None:
    """Refuse a width that is negative or infinite."""
    _validate.finite(eps, "eps")
    value = _validate.concrete(eps)
    if value is not None and (value < 0).any():
        raise ValueError(f"eps must not be negative, got {_validate.shown(value)}.")


def check_weight(value: ArrayLike, name: str) -> None:
    """Refuse weights outside [0, 1]."""
    array = _validate.real_array(value, name)
    if array is not None and not ((array >= 0) & (array <= 1)).all():
        raise ValueError(f"{name} must lie between 0 and 1, got {_validate.shown(array)}.")
