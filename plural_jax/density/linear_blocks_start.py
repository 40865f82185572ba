"""What blocks of rounds begin with: convenient numbers of cells and configurations, tilts, a bound on W.

Arrays are `[G, n, C]`: landscapes, cells, configurations; see `linear_blocks`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from plural_jax.density import linear_blocks_prefix as prefix
from plural_jax.density.core import Problem


def fill_up(problem: Problem, phi: Array, log_p: Array, fewest: int) -> tuple[Problem, Array, Array]:
    """Add cells without mass up to a convenient number, and on a CPU copies of the last configuration."""
    cells = -log_p.shape[1] % prefix.multiple(log_p.shape[1])
    columns = phi.shape[2]
    copies = fewest - columns if 2 < columns < fewest and jax.default_backend() == "cpu" else 0

    def pad(x: Array, axis: int, extra: int, **how: Any) -> Array:
        width = [(0, 0)] * x.ndim
        width[axis] = (0, extra)
        return jnp.pad(x, width, **how) if extra else x

    problem = problem._replace(
        rewards=pad(problem.rewards, 2, cells, mode="edge"),
        basins=pad(problem.basins, 2, cells),
        outside=pad(problem.outside, 1, cells),
    )
    log_p = pad(log_p, 1, cells, constant_values=-jnp.inf)
    if log_p.shape[2] > 1:
        log_p = pad(log_p, 2, copies, mode="edge")
    return problem, pad(phi, 2, copies, mode="edge"), log_p


def extremes(phi: Array) -> Array:
    """Some of the columns of phi [G, m, C], among which each `sum_i phi_i a_i` is smallest.

    Two preferences have one free weight, in which a sum is linear; with more, all columns.
    """
    if phi.shape[1] != 2:
        return phi
    ends = jnp.stack([jnp.min(phi[:, 0], axis=1), jnp.max(phi[:, 0], axis=1)], axis=1)
    return jnp.stack([ends, 1 - ends], axis=1)


def tilts(problem: Problem, live: Array) -> tuple[Problem, Array]:
    """The problem with r_i* taken over cells that have mass in some configuration, and its tilts, [G, m, n].

    So no tilt is above one, whatever the rewards are where there is no mass.
    """
    best = jnp.max(jnp.where(live[:, None], problem.rewards, -jnp.inf), axis=2, keepdims=True)
    problem = problem._replace(best=best)
    return problem, jnp.where(live[:, None], jnp.exp(jax.vmap(lambda p: p.log_tilt)(problem)), 0.0)
