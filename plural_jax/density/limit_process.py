"""The limit as a process whose first round goes all the way, so that whatever works on processes works on limits."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from plural_jax._typing import ArrayLike
from plural_jax.density.core import Problem, dot, problem
from plural_jax.density.limit import Limit, solve_limit
from plural_jax.landscape import Landscape, check_log_mass, normalize
from plural_jax.process import Process


class LimitState(NamedTuple):
    """A density.

    Attributes:
        log_p: log-mass of every atom, [n].
    """

    log_p: Array


class LimitInfo(NamedTuple):
    """A limit in numbers. The share of preference i in an atom is `phi_i e^{r_i(x)/tau} / Z_i`; shares sum to one there.

    An atom is a preference's own where its share is nearer to 1 than to phi_i, which is what it would have where all mass is
    in a single atom.

    Attributes:
        num_modes: atoms that carry the limit, []. On a grid, neighbors that carry one mode together count one by one;
            with `refine` they are one.
        mode_mass: masses of these atoms, [m]; zero in slots that are not needed.
        mode_point: their coordinates, [m, d]; NaN in slots that are not needed. None without points.
        own_mass: mass of the atoms that are preference i's own, [m].
        own_mode: whether there is such an atom, [m].
        compromise_mass: mass of atoms that are nobody's own, [].
        nash_distance: max_i |own_mass_i - phi_i|, []: how far the limit is from the Nash point of Thm. 7.
        reward_mean: E_p[r_i], [m], in units of reward.
        log_z: log E_p[exp(r_i / tau)], [m].
        objective: F(p), [].
        gap: certificate log max W, [].
        converged: whether the certificate is small enough, [].
        unique: whether the limit depends on nothing but the landscape and phi, [].
    """

    num_modes: Array
    mode_mass: Array
    mode_point: Array | None
    own_mass: Array
    own_mode: Array
    compromise_mass: Array
    nash_distance: Array
    reward_mean: Array
    log_z: Array
    objective: Array
    gap: Array
    converged: Array
    unique: Array


def to_limit(landscape: Landscape, phi: ArrayLike, *, temperature: ArrayLike = 1.0, refine: bool = False) -> Process:
    """The exact limit of the large-K dynamics as a process of one round.

    With `pj.sweep` it makes phase diagrams: limits over phi, distance, sharpness, ... in one batched call.

    Args:
        landscape: rewards [m, n].
        phi: probability of each preference, [m], non-negative, summing to one.
        temperature: tau of the choice rule, positive, in units of reward.
        refine: move the atoms off the grid; see `solve_limit`.

    Returns:
        A process with `LimitState` and `LimitInfo`. `init(log_p)` takes the start, by default uniform; every round gives the
        limit of the dynamics from there.

    Raises:
        ValueError: as of `solve_limit`.

    Example:
        >>> import plural_jax as pj
        >>> grid = pj.Grid.uniform(-5.0, 5.0, 101)
        >>> def make(phi, distance):
        ...     centers = jnp.stack([-distance / 2, distance / 2])
        ...     land = pj.Landscape.on(grid, pj.rewards.quadratic(centers, gamma=0.5))
        ...     return pj.density.to_limit(land, jnp.stack([phi, 1 - phi]), refine=True)
        >>> ds = pj.sweep(make, phi=[0.5], distance=[1.5, 3.0], num_steps=1)
        >>> ds.num_modes.values.ravel().tolist()
        [1, 2]
    """
    if refine and landscape.reward is None:
        raise ValueError("refine=True needs a landscape made by Landscape.on, which knows its reward function.")
    given = problem(landscape, phi, temperature, 0.0)
    return Process(
        init=Partial(_init, given.log_uniform),
        step=Partial(_refined_step if refine else _step, landscape if refine else landscape.without_reward(), given),
    )


def _init(uniform: Array, log_p: ArrayLike | None = None) -> LimitState:
    if log_p is None:
        return LimitState(uniform)
    check_log_mass(log_p, uniform.shape[0], "log_p")
    return LimitState(normalize(jnp.asarray(log_p, uniform.dtype)))


def _step(landscape: Landscape, given: Problem, key: Array | None, state: LimitState) -> tuple[LimitState, LimitInfo]:
    del key
    limit = solve_limit(landscape, given.phi, initial=state.log_p, temperature=given.temperature)
    used = limit.weights > 0
    log_tilt = landscape.rewards[:, limit.support] / given.temperature
    mean = dot(landscape.rewards - given.best, jnp.exp(limit.log_p)) + given.best[:, 0]
    return LimitState(limit.log_p), _info(given, limit, log_tilt, used, mean)


def _refined_step(
    landscape: Landscape, given: Problem, key: Array | None, state: LimitState
) -> tuple[LimitState, LimitInfo]:
    del key
    limit = solve_limit(landscape, given.phi, initial=state.log_p, temperature=given.temperature, refine=True)
    used = limit.weights > 0
    rewards = landscape.reward(limit.points).T.astype(limit.weights.dtype)
    mean = dot(rewards - given.best, limit.weights) + given.best[:, 0]
    return LimitState(limit.log_p), _info(given, limit, rewards / given.temperature, used, mean)


def _info(given: Problem, limit: Limit, log_tilt: Array, used: Array, mean: Array) -> LimitInfo:
    phi = given.phi
    exponent = jnp.where(used & (phi[:, None] > 0), log_tilt - limit.log_z[:, None], -jnp.inf)
    share = phi[:, None] * jnp.exp(exponent)
    own = used & (share > 0.5 * (1.0 + phi[:, None]))
    own_mass = jnp.sum(jnp.where(own, limit.weights, 0.0), axis=1)
    points = limit.points
    return LimitInfo(
        num_modes=jnp.sum(used).astype(jnp.int32),
        mode_mass=limit.weights,
        mode_point=None if points is None else jnp.where(used[:, None], points, jnp.nan),
        own_mass=own_mass,
        own_mode=own.any(axis=1),
        compromise_mass=jnp.sum(jnp.where(own.any(axis=0), 0.0, limit.weights)),
        nash_distance=jnp.max(jnp.abs(own_mass - phi)),
        reward_mean=mean,
        log_z=limit.log_z,
        objective=limit.objective,
        gap=limit.gap,
        converged=limit.converged,
        unique=limit.unique,
    )
