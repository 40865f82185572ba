"""Moving the atoms of a limit off the grid, by Newton's method on the optimality conditions.

On the whole space an atom of the limit sits where `W(x) = sum_i u_i e_i(x)` has a maximum of 1. So masses w_k, places x_k and
multipliers u_i solve

    W(x_k) = 1,   grad W(x_k) = 0,   u_i sum_k w_k e_i(x_k) = phi_i.

The limit on the grid is next to the solution: atoms between which W has no valley are the same one, seen through the grid.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from plural_jax.density.core import Problem, dot
from plural_jax.density.limit_atoms import solve_linear

_MAX_ITERATIONS = 30


class _Free(NamedTuple):
    """The unknowns: masses [m], places [m, d], multipliers [m]."""

    w: Array
    x: Array
    u: Array


def refined(landscape: Any, given: Problem, limit: Any, inside: Array) -> Any:
    """The limit with its atoms moved off the grid; unchanged but not `converged` where Newton's method fails.

    Args:
        landscape: with points and a reward.
        given: the problem that the limit solves.
        limit: the limit on the grid.
        inside: the atoms that may get mass, bool [n]. Atoms may move within the box that they span.

    Returns:
        A `Limit` whose `support` holds the grid atom nearest to each moved one, so that `support`, `weights` and `points`
        still speak of the same atoms slot by slot.
    """
    return _refined(landscape, given, limit, inside)


@jax.jit
def _refined(landscape: Any, given: Problem, limit: Any, inside: Array) -> Any:
    phi = given.phi
    asked = phi > 0
    reward, temperature = landscape.reward, given.temperature
    # Multipliers and tilts relative to the limit's own normalizers: everything is of order one.
    level = jax.lax.stop_gradient(limit.log_z)
    stopped = jax.lax.stop_gradient(limit)
    lowest = jnp.min(jnp.where(inside[:, None], landscape.points, jnp.inf), axis=0)
    highest = jnp.max(jnp.where(inside[:, None], landscape.points, -jnp.inf), axis=0)

    def tilts(x: Array) -> Array:
        """e_i(x) / Z_i for x [d], [m]; capped, so that a step too far stays finite."""
        r = reward(x[None])[0].astype(level.dtype)
        return jnp.where(asked, jnp.exp(jnp.minimum(r / temperature - level, 60.0)), 0.0)

    def height(u: Array, x: Array) -> Array:
        return dot(u, tilts(x))

    w, x = _merge(stopped.weights, stopped.points, lambda x: height(phi, x))
    slot = w > 0
    slope = jax.vmap(jax.grad(height, argnums=1), (None, 0))(phi, x)
    # At the edge of the domain W may have its maximum with a slope.
    held = ((x >= highest) & (slope > 0)) | ((x <= lowest) & (slope < 0)) | ~slot[:, None]
    start = _Free(w, x, phi)

    def residual(free: _Free) -> _Free:
        w, x, u = free
        table = jax.vmap(tilts, out_axes=1)(x)
        slopes = jax.vmap(jax.grad(height, argnums=1), (None, 0))(u, x)
        return _Free(
            jnp.where(slot, dot(u, table) - 1.0, w),
            jnp.where(held, x - start.x, slopes),
            jnp.where(asked, u * dot(table, w) - phi, u),
        )

    def newton(c: tuple[_Free, Array]) -> tuple[_Free, Array]:
        free, k = c
        flat, back = ravel_pytree(free)
        matrix = jax.jacfwd(lambda v: ravel_pytree(residual(back(v)))[0])(flat)
        # Least squares: where the reward is flat, W does not say where to go, and the smallest step is none.
        step = jnp.linalg.lstsq(matrix, -ravel_pytree(residual(free))[0])[0]
        return back(flat + jnp.where(jnp.isfinite(step), step, 0.0)), k + 1

    def size(free: _Free) -> Array:
        return jnp.max(jnp.abs(ravel_pytree(residual(free))[0]))

    # Where to stop, what to accept (slopes of W round off with the reward's), and the certificate that `Limit` promises.
    tolerance, accepted, promised = (1e-13, 1e-11, 1e-10) if jnp.finfo(level.dtype).bits == 64 else (2e-6, 1e-4, 1e-5)

    def find(_: Any, start: _Free) -> _Free:
        going = lambda c: (size(c[0]) > tolerance) & (c[1] < _MAX_ITERATIONS)  # noqa: E731
        return jax.lax.while_loop(going, newton, (start, jnp.zeros((), jnp.int32)))[0]

    free = jax.lax.custom_root(residual, start, find, solve_linear)
    w, x, _ = free
    table = jax.vmap(lambda x: reward(x[None])[0].astype(level.dtype), out_axes=1)(x) / temperature
    log_z = jax.nn.logsumexp(table, axis=1, b=jnp.where(slot, w, 0.0))
    log_z = jnp.where(asked, log_z, limit.log_z)
    on_grid = jnp.exp(jnp.minimum(landscape.rewards / temperature - log_z[:, None], 60.0))
    everywhere = jnp.where(inside, dot(phi, on_grid), 0.0)
    gap = jnp.maximum(
        jnp.log(
            jnp.maximum(jnp.max(everywhere), jnp.max(jnp.where(slot, dot(phi, jnp.exp(table - log_z[:, None])), 0.0)))
        ),
        0.0,
    )
    objective = jnp.sum(jnp.where(asked, phi * log_z, 0.0))
    good = (size(free) <= accepted) & jnp.all(jnp.where(slot, w, 1.0) > 0) & (gap <= promised)
    good = good & jnp.all(x >= lowest) & jnp.all(x <= highest)

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(good, new, old)

    def nearest(place: Array) -> Array:
        squared = jnp.sum((landscape.points - place) ** 2, axis=1)
        return jnp.argmin(jnp.where(inside, squared, jnp.inf)).astype(limit.support.dtype)

    # One atom at a time: the distances of all of them would be m tables of the size of the grid.
    support = jnp.where(slot, jax.lax.map(nearest, jax.lax.stop_gradient(x)), -1)
    order = jnp.argsort(jnp.where(slot, support, landscape.num_atoms))  # empty slots last, as on the grid
    return limit._replace(
        support=choose(support[order], limit.support),
        points=choose(x[order], limit.points),
        weights=choose(jnp.where(slot, w, 0.0)[order], limit.weights),
        log_z=choose(log_z, limit.log_z),
        objective=choose(objective, limit.objective),
        gap=choose(jax.lax.stop_gradient(gap), limit.gap),
        converged=limit.converged & good,
    )


def _merge(w: Array, x: Array, height: Any) -> tuple[Array, Array]:
    """Atoms between which W has no valley are one: the heavier keeps the mass of both, at their mean."""
    m = w.shape[0]
    ends = jax.vmap(height)(x)
    steps = jnp.linspace(0.0, 1.0, 9, dtype=x.dtype)[1:-1, None, None, None]
    between = jax.vmap(jax.vmap(jax.vmap(height)))(steps * x[:, None] + (1.0 - steps) * x[None])
    slack = 4 * float(jnp.finfo(w.dtype).eps)
    no_valley = jnp.min(between, axis=0) >= jnp.minimum(ends[:, None], ends) - slack
    one = no_valley & (w[:, None] > 0) & (w > 0)
    # Chains of neighbors belong together: the relation's transitive closure.
    reach = one | jnp.eye(m, dtype=bool)
    for _ in range(max(1, (m - 1).bit_length())):
        reach = dot(reach.astype(w.dtype), reach.astype(w.dtype)) > 0
    leader = jnp.argmax(jnp.where(reach, w, -1.0), axis=1)
    member = (leader[:, None] == jnp.arange(m)).astype(w.dtype) * w[:, None]  # [atom, group]
    total = jnp.sum(member, axis=0)
    mean = dot(member.T, x) / jnp.where(total > 0, total, 1.0)[:, None]
    return total, jnp.where(total[:, None] > 0, mean, x)
