"""A pool of K candidates: the exact round of Lemma 1, at any real K."""

from __future__ import annotations

import numpy as np
from jax.tree_util import Partial

from plural_jax import _validate
from plural_jax._typing import ArrayLike
from plural_jax.density.core import check_pool_size, density_process, problem
from plural_jax.density.matrix_blocks import rounds
from plural_jax.density.quadrature import any_pool_log_multiplier, finite_pool_log_multiplier, quadrature_nodes
from plural_jax.density.tilt import large_pool
from plural_jax.landscape import Landscape
from plural_jax.process import Process


def finite_pool(
    landscape: Landscape,
    phi: ArrayLike,
    *,
    pool_size: ArrayLike,
    temperature: ArrayLike = 1.0,
    eps: ArrayLike = 0.1,
    reward_range: float | None = None,
) -> Process:
    """Exact retraining dynamics with a pool of K candidates.

    `p_{t+1}(x) = p_t(x) sum_i phi_i H_K^i(x; p_t)`,
    `H_K^i(x; p) = E_{X_2..X_K ~ p}[K A_i(x) / (A_i(x) + A_i(X_2) + ... + A_i(X_K))]`, `A_i = exp(r_i/tau)` (Lemma 1, Def. 1)

    Args:
        landscape: rewards [m, n] and base measure.
        phi: probability of each preference, [m], non-negative, summing to one.
        pool_size: K, any real number from 2 on (the integral is defined for all); infinity gives `large_pool`. May be traced.
        temperature: tau of the choice rule, positive, in units of reward.
        eps: width of the near-optimal basins, in units of reward. It changes only what is reported.
        reward_range: what `max_x r_i(x) - min_x r_i(x)` is at most, in units of reward. Only for rewards that are traced, as in a
            sweep over distances, where it saves time: 16 nodes of the quadrature in float32 for a range of 5, and 147 where
            nothing is known. Default: the attribute of this name that the landscape's reward function may have, as
            `pj.rewards.bump` and `plateau` do. Rewards that range further take longer; no number is wrong.

    Returns:
        A process with `DensityState` and `DensityInfo` in the landscape's floating type. Relative error of H: about 1e-14
        in float64; in float32 about 1e-6, growing to K * 1e-7 for pools of thousands. Forward-mode derivatives need
        a landscape and a temperature that are not traced; reverse mode has no such limit.

    Raises:
        ValueError: a pool smaller than 2, a range that is not a finite number of at least 0, or what `large_pool` refuses.

    Example:
        >>> import plural_jax as pj
        >>> grid = pj.Grid.uniform(-5.0, 5.0, 100)
        >>> land = pj.Landscape.on(grid, pj.rewards.bump([-3.0, 3.0], height=5.0, width=1.0))
        >>> process = pj.density.finite_pool(land, phi=[0.25, 0.75], pool_size=10.0)
        >>> final, trace = pj.run(process, process.init(), num_steps=50)
        >>> print(f"{trace.basin_mass[-1, 0]:.3f}")
        0.220

    Source: Lemma 1 and Def. 1 of the paper; the integral form is the Laplace transform of a ratio of sums.
    """
    size = check_pool_size(pool_size)
    if reward_range is not None:
        _check_range(reward_range)
    elif not _validate.is_traced(hint := getattr(landscape.reward, "reward_range", None)):
        reward_range = hint
    if size is not None and np.isinf(size):
        return large_pool(landscape, phi, temperature=temperature, eps=eps)
    shared = problem(landscape, phi, temperature, eps)
    nodes = quadrature_nodes(landscape, shared, temperature, pool_size, reward_range)
    multiplier = any_pool_log_multiplier if size is None else finite_pool_log_multiplier
    return density_process(shared, Partial(multiplier, nodes), rounds)


def _check_range(value: float) -> None:
    if _validate.is_traced(value):
        raise ValueError(
            "reward_range must be a number that is known while tracing, since the number of nodes depends on it; got a tracer."
        )
    _validate.finite(value, "reward_range")
    if np.ndim(value) != 0 or not np.asarray(value) >= 0:
        raise ValueError(f"reward_range must be a single number of at least 0, got {_validate.shown(value)}.")
