"""The baselines of E9: other ways to choose what the next round is trained on.

Each has the step API of `large_pool` and reports the same numbers for all m preferences, whatever it selects by, so that their
infos can be set side by side. `phi` is the one that `objective` is taken with.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from plural_jax import _validate
from plural_jax._typing import ArrayLike
from plural_jax.density.core import (
    DensityInfo,
    DensityState,
    Problem,
    check_pool_size,
    density_process,
    dot,
    parts,
    problem,
    summarize,
)
from plural_jax.density.finite import finite_pool
from plural_jax.landscape import Landscape, check_weights, normalize
from plural_jax.process import Process


class Ranks(NamedTuple):
    """What greedy selection knows of the rewards.

    Attributes:
        pool_size: K, [].
        rank: number of distinct rewards below that of an atom, int32 [m, n]; equal rewards share a rank.
    """

    pool_size: Array
    rank: Array


def single_reward(
    landscape: Landscape,
    phi: ArrayLike,
    preference: ArrayLike,
    *,
    pool_size: ArrayLike = float("inf"),
    temperature: ArrayLike = 1.0,
    eps: ArrayLike = 0.1,
) -> Process:
    """Curation by one preference j alone.

    `p_{t+1}(x) = p_t(x) H_K^j(x; p_t)`, for K = infinity `p_t(x) exp(r_j(x)/tau) / E_{p_t}[exp(r_j/tau)]`

    Args:
        landscape: rewards [m, n] and base measure.
        phi: weights that `objective` is reported with, [m]; they do not change the dynamics.
        preference: j, its number from 0 on. May be traced.
        pool_size: K, as for `finite_pool`; infinity by default.
        temperature: tau of the choice rule, positive, in units of reward.
        eps: width of the near-optimal basins, in units of reward. It changes only what is reported.

    Returns:
        A process with `DensityState` and `DensityInfo`, all m preferences in it, in the landscape's floating type.

    Raises:
        ValueError: a preference that is not one of the m, or what `finite_pool` refuses.

    Example:
        >>> import plural_jax as pj
        >>> land = pj.Landscape(rewards=[[0.0, 1.0, 5.0], [5.0, 1.0, 0.0]])
        >>> process = pj.density.single_reward(land, phi=[0.3, 0.7], preference=0)
        >>> final, trace = pj.run(process, process.init(), num_steps=5)
        >>> [f"{mass:.3f}" for mass in trace.basin_mass[-1]]
        ['1.000', '0.000']

    Source: the single-reward retraining that the paper compares with (E1, E9); Ferbach et al. (2024).
    """
    check_weights(landscape, phi)
    m = landscape.num_preferences
    if np.ndim(preference) != 0:
        raise ValueError(f"preference must be a single number, got shape {np.shape(preference)}.")
    value = _validate.real_array(preference, "preference")
    if value is not None and not (0 <= value < m and value == np.floor(value)):
        raise ValueError(f"preference must be a whole number from 0 to {m - 1}, got {value}.")
    row = jnp.asarray(preference).astype(jnp.int32)
    return _by_one_reward(landscape, landscape.rewards[row], phi, pool_size, temperature, eps)


def averaged_reward(
    landscape: Landscape,
    phi: ArrayLike,
    *,
    pool_size: ArrayLike = float("inf"),
    temperature: ArrayLike = 1.0,
    eps: ArrayLike = 0.1,
) -> Process:
    """Curation by the average of all rewards, the usual scalarization.

    `p_{t+1}(x) = p_t(x) exp(rbar(x)/tau) / E_{p_t}[exp(rbar/tau)]`, `rbar = sum_i phi_i r_i` (H_K of rbar at finite K)

    It ends in the best compromise, a single point: with the rewards mixed inside the exponential there is one preference only.

    Args:
        landscape: rewards [m, n] and base measure.
        phi: weight of each preference, [m], non-negative, summing to one.
        pool_size: K, as for `finite_pool`; infinity by default.
        temperature: tau of the choice rule, positive, in units of reward.
        eps: width of the near-optimal basins, in units of reward. It changes only what is reported.

    Returns:
        A process with `DensityState` and `DensityInfo` in the landscape's floating type.

    Raises:
        ValueError: what `finite_pool` refuses.

    Example:
        >>> import plural_jax as pj
        >>> land = pj.Landscape(rewards=[[0.0, 3.0, 5.0], [5.0, 3.0, 0.0]])
        >>> process = pj.density.averaged_reward(land, phi=[0.5, 0.5])
        >>> final, trace = pj.run(process, process.init(), num_steps=30)
        >>> print(jnp.exp(final.log_p).round(3))  # nobody's favorite
        [0. 1. 0.]

    Source: E9 of the paper.
    """
    shared = problem(landscape, phi, temperature, eps)
    # Relative to the best rewards, which changes nothing but keeps the digits of rewards with large offsets.
    average = dot(shared.phi, shared.rewards - shared.best)
    return _by_one_reward(landscape, average, phi, pool_size, temperature, eps)


def reward_per_round(
    landscape: Landscape,
    phi: ArrayLike,
    *,
    pool_size: ArrayLike = float("inf"),
    temperature: ArrayLike = 1.0,
    eps: ArrayLike = 0.1,
) -> Process:
    """One preference, drawn anew in each round, curates the whole round.

    `i_t ~ phi`, `p_{t+1}(x) = p_t(x) H_K^{i_t}(x; p_t)`, for K = infinity `p_t(x) exp(r_{i_t}(x)/tau) / Z_{i_t}(t)`

    On average over i_t a round is one of `finite_pool`; but rounds multiply, so for K = infinity the density after T rounds is
    `p_0 exp(sum_i n_i r_i / tau)` normalized, n_i the rounds that i curated: that of the averaged reward with weights n_i / T.

    Args:
        landscape: rewards [m, n] and base measure.
        phi: probability of each preference in a round, [m], non-negative, summing to one.
        pool_size: K, as for `finite_pool`; infinity by default.
        temperature: tau of the choice rule, positive, in units of reward.
        eps: width of the near-optimal basins, in units of reward. It changes only what is reported.

    Returns:
        A stochastic process, which needs a key, with `DensityState` and `DensityInfo`. `log_w`, and what the info derives from
        it, is the multiplier averaged over the next round's preference.

    Raises:
        ValueError: what `finite_pool` refuses. From a step: no key.

    Example:
        >>> import jax
        >>> import plural_jax as pj
        >>> land = pj.Landscape(rewards=[[0.0, 1.0, 5.0], [5.0, 1.0, 0.0]])
        >>> process = pj.density.reward_per_round(land, phi=[0.3, 0.7])
        >>> final, trace = pj.run(process, process.init(), num_steps=50, key=jax.random.key(0))
        >>> [f"{mass:.3f}" for mass in trace.basin_mass[-1]]  # the one that was asked more often has it all
        ['0.000', '1.000']

    Source: E9 of the paper.
    """
    inner = finite_pool(landscape, phi, pool_size=pool_size, temperature=temperature, eps=eps)
    return Process(init=inner.init, step=Partial(_reward_per_round_step, *parts(inner)))


def no_curation(landscape: Landscape, phi: ArrayLike, *, temperature: ArrayLike = 1.0, eps: ArrayLike = 0.1) -> Process:
    """No selection: the model is refit to its own samples as they come.

    `p_{t+1}(x) = p_t(x)`; with `finite_set` the neutral drift of a model that is retrained on N samples of itself

    Args:
        landscape: rewards [m, n] and base measure.
        phi: weights that `objective` is reported with, [m].
        temperature: tau that log Z_i and `objective` are reported with, positive, in units of reward.
        eps: width of the near-optimal basins, in units of reward. It changes only what is reported.

    Returns:
        A process with `DensityState` and `DensityInfo` in the landscape's floating type.

    Raises:
        ValueError: what `large_pool` refuses.

    Example:
        >>> import plural_jax as pj
        >>> land = pj.Landscape(rewards=[[0.0, 1.0, 5.0], [5.0, 1.0, 0.0]])
        >>> process = pj.density.no_curation(land, phi=[0.3, 0.7])
        >>> bool(jnp.allclose(process.init().log_p, pj.run(process, process.init(), num_steps=5)[0].log_p))
        True

    Source: E9 of the paper; Shumailov et al. (2024) for its collapse with finite sets.
    """
    return density_process(problem(landscape, phi, temperature, eps), Partial(_no_log_multiplier))


def greedy(
    landscape: Landscape,
    phi: ArrayLike,
    *,
    pool_size: ArrayLike,
    temperature: ArrayLike = 1.0,
    eps: ArrayLike = 0.1,
) -> Process:
    """The best of K candidates, instead of a choice in proportion to exp(r): the limit tau -> 0 of `finite_pool`.

    `p_{t+1}(x) = p_t(x) sum_i phi_i (F_i(r_i(x))^K - F_i(r_i(x)-)^K) / P_{p_t}(r_i = r_i(x))`, `F_i(s) = P_{p_t}(r_i <= s)`

    F(s-) is the probability of less than s. Candidates of equal reward are equally likely to be taken. For K = infinity
    preference i takes only the atoms with its highest reward among those with mass, in proportion to their masses.

    Args:
        landscape: rewards [m, n] and base measure. Ties are rewards that are equal as floating-point numbers.
        phi: probability of each preference, [m], non-negative, summing to one.
        pool_size: K, any real number from 2 on, or infinity. May be traced.
        temperature: tau that log Z_i and `objective` are reported with, positive. It does not change the selection.
        eps: width of the near-optimal basins, in units of reward. It changes only what is reported.

    Returns:
        A process with `DensityState` and `DensityInfo` in the landscape's floating type.

    Raises:
        ValueError: a pool smaller than 2, or what `large_pool` refuses.

    Example:
        >>> import plural_jax as pj
        >>> land = pj.Landscape(rewards=[[0.0, 1.0]])
        >>> process = pj.density.greedy(land, phi=[1.0], pool_size=3)
        >>> final, trace = pj.run(process, process.init(), num_steps=1)
        >>> [f"{p:.3f}" for p in jnp.exp(final.log_p)]  # the worse atom is taken where all three candidates are it
        ['0.125', '0.875']

    Source: E9 of the paper; order statistics of a discrete law.
    """
    check_pool_size(pool_size)
    shared = problem(landscape, phi, temperature, eps)
    ranks = Ranks(jnp.asarray(pool_size, shared.rewards.dtype), _dense_ranks(shared.rewards))
    return density_process(shared, Partial(greedy_log_multiplier, ranks))


def greedy_log_multiplier(ranks: Ranks, problem: Problem, log_p: Array) -> Array:
    """Log of the multiplier of `greedy`, [n]: the kernel, with every number an argument."""
    log_h = jax.vmap(lambda rank: _log_best_of(ranks.pool_size, rank, log_p))(ranks.rank)
    return jax.nn.logsumexp(log_h, axis=0, b=problem.phi[:, None])


def _log_best_of(k: Array, rank: Array, log_p: Array) -> Array:
    """Log H for one preference, [n]. Everything between is per rank, [n] again, as there may be that many.

    With b the mass up to a rank and u the part of b on this rank, `(b^K - (b - u b)^K) / (u b) = b^(K-1) (1 - (1-u)^K) / u`.
    """
    n = log_p.shape[0]
    top = jax.ops.segment_max(log_p, rank, n)
    shift = jnp.where(top > -jnp.inf, top, jnp.zeros((), top.dtype))
    log_mass = shift + jnp.log(jax.ops.segment_sum(jnp.exp(log_p - shift[rank]), rank, n))
    has_mass = log_mass > -jnp.inf
    # Near one, log b is in the mass above; far below, only log-space has the range.
    mass = jnp.exp(log_mass)
    above = jnp.append(jax.lax.cumsum(mass, reverse=True)[1:], jnp.zeros((), mass.dtype))
    log_b = jnp.where(above < 0.5, jnp.log1p(-jnp.minimum(above, 0.5)), jax.lax.cumlogsumexp(log_mass))
    share = jnp.where(has_mass, jnp.exp(jnp.minimum(log_mass - log_b, 0.0)), 0.0)
    finite_k = jnp.where(jnp.isinf(k), 2.0, k)
    positive = share > 0
    u = jnp.where(positive, share, 0.5)
    # At u = 1 the logarithm is minus infinity and the ratio is one.
    ratio = jnp.where(positive, -jnp.expm1(finite_k * jnp.log1p(-u)) / u, finite_k)
    log_h = (finite_k - 1) * log_b + jnp.log(ratio)
    better = jax.lax.cumsum(has_mass.astype(jnp.int32), reverse=True) - has_mass.astype(jnp.int32)
    only_best = jnp.where(has_mass & (better == 0), -log_mass, -jnp.inf)
    return jnp.where(jnp.isinf(k), only_best, log_h)[rank]


@jax.jit
def _dense_ranks(rewards: Array) -> Array:
    def one(r: Array) -> Array:
        order = jnp.argsort(r)
        ascending = r[order]
        steps = jnp.cumsum((ascending[1:] > ascending[:-1]).astype(jnp.int32))
        return jnp.zeros(r.shape, jnp.int32).at[order].set(jnp.concatenate([jnp.zeros(1, jnp.int32), steps]))

    return jax.vmap(one)(rewards)


def _by_one_reward(
    landscape: Landscape, reward: Array, phi: ArrayLike, pool_size: ArrayLike, temperature: ArrayLike, eps: ArrayLike
) -> Process:
    """Curation by one reward [n], reported for all preferences of the landscape."""
    alone = Landscape(rewards=reward[None], log_measure=landscape.log_measure)
    inner = finite_pool(alone, [1.0], pool_size=pool_size, temperature=temperature)
    return density_process(problem(landscape, phi, temperature, eps), Partial(_inner_log_multiplier, *parts(inner)))


def _inner_log_multiplier(inner: Problem, multiplier: Any, problem: Problem, log_p: Array) -> Array:
    del problem  # what is reported is not what selects
    return multiplier(inner, log_p)


def _no_log_multiplier(problem: Problem, log_p: Array) -> Array:
    del problem
    return jnp.zeros_like(log_p)


def _reward_per_round_step(
    problem: Problem, multiplier: Any, key: Array | None, state: DensityState
) -> tuple[DensityState, DensityInfo]:
    key = _validate.key(key, "each round's preference is drawn at random")
    drawn = jax.random.categorical(key, jnp.log(problem.phi))
    only = (jnp.arange(problem.phi.shape[0]) == drawn).astype(problem.phi.dtype)
    log_p = normalize(state.log_p + multiplier(problem._replace(phi=only), state.log_p))
    new = DensityState(log_p, multiplier(problem, log_p))
    return new, summarize(problem, new)
