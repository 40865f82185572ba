"""How far a finite pool is from an infinite one (Lemma B.3)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from plural_jax import _validate
from plural_jax._typing import ArrayLike
from plural_jax.density.core import Problem, log_normalizers
from plural_jax.density.finite import finite_pool
from plural_jax.density.quadrature import Nodes, log_bradley_terry
from plural_jax.landscape import Landscape, check_log_mass, normalize


class PoolDeviation(NamedTuple):
    """Finite against infinite pool, for each preference.

    Attributes:
        deviation: `sup_x |H_K^i(x) - H_inf^i(x)|` over the atoms of the domain, [m].
        constant: `deviation / sqrt(log K / K)`, [m]: the smallest C for which Lemma B.3 holds at this K.
    """

    deviation: Array
    constant: Array


def pool_deviation(
    landscape: Landscape, log_p: ArrayLike, *, pool_size: ArrayLike, temperature: ArrayLike = 1.0
) -> PoolDeviation:
    """Measure the constant of Lemma B.3 at one density and one K.

    `sup_x |H_K^i(x; p) - H_inf^i(x; p)| <= C sqrt(log K / K)` (Lemma B.3)

    The lemma's rate comes from Hoeffding's inequality. A Taylor expansion of `K A / (A + A_2 + ... + A_K)` gives 1 / K at a
    fixed density, so the measured constant falls with K.

    Args:
        landscape: rewards [m, n].
        log_p: log-masses, [n]; normalized here.
        pool_size: K, a real number from 2 on, finite.
        temperature: tau of the choice rule, positive, in units of reward.

    Returns:
        A `PoolDeviation` in the landscape's floating type.

    Raises:
        ValueError: log-masses of the wrong length or without mass, a pool smaller than 2 or infinite, a temperature that is
            not positive.

    Example:
        >>> import plural_jax as pj
        >>> land = pj.Landscape(rewards=[[0.0, 1.0, 2.0]])
        >>> d10, d100 = (pool_deviation(land, land.uniform(), pool_size=k).deviation[0] for k in (10.0, 100.0))
        >>> 9 < d10 / d100 < 11
        Array(True, dtype=bool)

    Source: Lemma B.3; Remark 1.
    """
    check_log_mass(log_p, landscape.num_atoms, "log_p")
    size = _validate.real_array(pool_size, "pool_size")
    if size is not None and np.isinf(size).any():
        raise ValueError(f"pool_size must be finite, got {_validate.shown(size)}.")
    m = landscape.num_preferences
    process = finite_pool(landscape, np.full(m, 1 / m), pool_size=pool_size, temperature=temperature)
    problem, multiplier = process.init.args  # type: ignore[attr-defined]  # a Partial over both
    return _measure(problem, *multiplier.args, jnp.asarray(log_p, landscape.dtype))


@jax.jit
def _measure(problem: Problem, nodes: Nodes, log_p: Array) -> PoolDeviation:
    log_p = normalize(log_p)
    finite = log_bradley_terry(nodes, log_p)
    infinite = problem.log_tilt - log_normalizers(problem, log_p)[:, None]
    inside = problem.log_uniform > -jnp.inf
    gap = jnp.max(jnp.where(inside, jnp.abs(jnp.exp(finite) - jnp.exp(infinite)), 0), axis=1)
    k = nodes.pool_size
    return PoolDeviation(gap, gap / jnp.sqrt(jnp.log(k) / k))
