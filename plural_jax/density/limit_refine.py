"""Moving the atoms of a limit off the grid, by Newton's method on the optimality conditions.

On the whole space an atom of the limit sits where `W(x) = sum_i u_i e_i(x)` has a maximum of 1. So masses w_k, places x_k and
multipliers u_i solve

    W(x_k) = 1,   grad W(x_k) = 0,   u_i sum_k w_k e_i(x_k) = phi_i.

The limit on the grid is next to the solution: atoms between which W has no valley are the same one, seen through the grid.
On a coarse grid an atom may be missing, because a narrow peak of W passes between the grid's points. So each solution is
examined: W is climbed from many places, and where a top is above 1 it joins the atoms and everything is solved again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from plural_jax._linalg import eigh, least_squares
from plural_jax.density.core import Problem, dot
from plural_jax.density.limit_atoms import local_maxima, smallest, solve_linear, solve_on

_MAX_ITERATIONS = 30
_MAX_PASSES = 8
#: Steps of a climb. Newton's method from a tenth of a standard deviation needs five; those that come from far need more.
_CLIMB = 40


class _Digits(NamedTuple):
    """What a floating type allows.

    Attributes:
        tolerance: residual at which Newton's method stops.
        accepted: residual of a solution; slopes of W round off with the reward's.
        gap: certificate that a `Limit` promises.
    """

    tolerance: float
    accepted: float
    gap: float

    @classmethod
    def of(cls, dtype: Any) -> _Digits:
        return cls(1e-13, 1e-11, 1e-10) if jnp.finfo(dtype).bits == 64 else cls(2e-6, 1e-4, 1e-5)


class _Free(NamedTuple):
    """The unknowns: masses [m], places [m, d], multipliers [m]."""

    w: Array
    x: Array
    u: Array


class _Search(NamedTuple):
    """The state of the search.

    Attributes:
        free: masses, places, multipliers.
        held: coordinates that the equations keep where they are, bool [m, d], and `at` where, [m, d].
        good: whether `free` solves the equations of its atoms.
        done: whether no top of W above 1 was found.
        num_passes: solutions examined.
    """

    free: _Free
    held: Array
    at: Array
    good: Array
    done: Array
    num_passes: Array


class _Surface(NamedTuple):
    """The tilts as functions of x, in units of the grid limit's normalizers, so that everything is of order one."""

    reward: Any
    temperature: Array
    phi: Array
    level: Array

    @property
    def asked(self) -> Array:
        return self.phi > 0

    def log_tilts(self, x: Array) -> Array:
        """r_i(x) / tau for places [s, d], [m, s]."""
        return self.reward(x).astype(self.level.dtype).T / self.temperature

    def tilts(self, x: Array) -> Array:
        """e_i(x) / Z_i, [m, s]; capped, so that a step too far stays finite, and zero for those that are not asked."""
        capped = jnp.exp(jnp.minimum(self.log_tilts(x) - self.level[:, None], 60.0))
        return jnp.where(self.asked[:, None], capped, 0.0)

    def height(self, u: Array, x: Array) -> Array:
        """W at one place x [d]."""
        return dot(u, self.tilts(x[None]))[0]

    def slopes(self, u: Array, x: Array) -> Array:
        return jax.vmap(jax.grad(self.height, argnums=1), (None, 0))(u, x)

    def multipliers(self, table: Array, w: Array) -> Array:
        """u_i = phi_i / Z_i of masses on atoms with these tilts."""
        return jnp.where(self.asked, self.phi / jnp.where(self.asked, dot(table, w), 1.0), 0.0)

    def residual(self, slot: Array, held: Array, at: Array) -> Callable[[_Free], _Free]:
        """What is zero at the solution: as many numbers as there are unknowns."""

        def of(free: _Free) -> _Free:
            w, x, u = free
            table = self.tilts(x)
            return _Free(
                jnp.where(slot, dot(u, table) - 1.0, w),
                jnp.where(held, x - at, self.slopes(u, x)),
                jnp.where(self.asked, u * dot(table, w) - self.phi, u),
            )

        return of


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
    surface = _Surface(landscape.reward, given.temperature, phi, jax.lax.stop_gradient(limit.log_z))
    fixed = jax.lax.stop_gradient(surface)
    search = _search(fixed, *jax.lax.stop_gradient((landscape.points, landscape.rewards, limit)), inside)

    # The same equations once more, now as an implicit function of everything that they contain.
    slot = search.free.w > 0
    residual = surface.residual(slot, search.held, search.at)
    w, x, _ = jax.lax.custom_root(residual, search.free, lambda _, found: found, solve_linear)
    table = surface.log_tilts(x)
    log_z = jax.nn.logsumexp(table, axis=1, b=jnp.where(slot, w, 0.0))
    log_z = jnp.where(asked, log_z, limit.log_z)
    on_grid = jnp.exp(jnp.minimum(landscape.rewards / given.temperature - log_z[:, None], 60.0))
    everywhere = jnp.where(inside, dot(phi, on_grid), 0.0)
    at_atoms = jnp.where(slot, dot(phi, jnp.exp(table - log_z[:, None])), 0.0)
    gap = jnp.maximum(jnp.log(jnp.maximum(jnp.max(everywhere), jnp.max(at_atoms))), 0.0)
    objective = jnp.sum(jnp.where(asked, phi * log_z, 0.0))
    good = search.good & search.done & (gap <= _Digits.of(w.dtype).gap)

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


def _search(surface: _Surface, points: Array, rewards: Array, limit: Any, inside: Array) -> _Search:
    """Solve for the atoms, climb W from many places, and solve again with what was found above 1 until nothing is."""
    m, digits = limit.weights.shape[0], _Digits.of(limit.weights.dtype)
    asked = surface.asked
    lowest = jnp.min(jnp.where(inside[:, None], points, jnp.inf), axis=0)
    highest = jnp.max(jnp.where(inside[:, None], points, -jnp.inf), axis=0)
    log_tilt = rewards / surface.temperature - surface.level[:, None]
    tilt = jnp.where(inside & asked[:, None], jnp.exp(jnp.minimum(log_tilt, 60.0)), 0.0)
    always = jnp.concatenate([points[jnp.argmax(tilt, axis=1)], limit.points])
    pairs = jnp.triu_indices(m, 1)

    def one_pass(c: _Search) -> _Search:
        w, x, _ = c.free
        u = surface.multipliers(surface.tilts(x), w)
        own = points[local_maxima(u, tilt, jnp.zeros((), w.dtype))[0]]
        middle = 0.5 * (x[pairs[0]] + x[pairs[1]])
        tops = _climb(lambda x: surface.height(u, x), jnp.concatenate([always, own, middle]), lowest, highest)
        tops, above = _highest_apart(tops, dot(u, surface.tilts(tops)), 1.0 + 0.5 * digits.gap, m)
        done = (c.num_passes > 0) & ~above.any()

        # The best masses on the old atoms and the new ones, and the equations from there.
        places = jnp.concatenate([x, tops])
        used = jnp.concatenate([w > 0, above])
        table = jnp.where(used, surface.tilts(places), 0.0)
        masses = solve_on(
            table, surface.phi, jnp.concatenate([w, jnp.zeros_like(w)]), jnp.asarray(0.01 * digits.gap, w.dtype)
        )
        few, masses = smallest(table, surface.phi, masses, digits.gap)
        start = _Free(masses, places[few], surface.multipliers(table[:, few], masses))
        start = _merge(start, dot(u, table)[few], lambda x: surface.height(start.u, x))
        slot = start.w > 0
        slope = surface.slopes(start.u, start.x)
        # At the edge of the domain W may have its maximum with a slope.
        held = ((start.x >= highest) & (slope > 0)) | ((start.x <= lowest) & (slope < 0)) | ~slot[:, None]
        residual = surface.residual(slot, held, start.x)
        free = _newton(residual, start, digits.tolerance)
        free = free._replace(w=jnp.where(slot, free.w, 0.0))  # zero to rounding is not empty
        good = (_size(residual(free)) <= digits.accepted) & jnp.all(jnp.where(slot, free.w, 1.0) > 0)
        good = good & jnp.all(free.x >= lowest) & jnp.all(free.x <= highest)
        # Where Newton's method fails, an atom more may help.
        free = jax.tree.map(lambda new, old: jnp.where(good, new, old), free, start)
        new = _Search(free, held, start.x, good, done, c.num_passes + 1)
        return jax.tree.map(lambda old, new: jnp.where(done, old, new), c._replace(done=done), new)

    no = jnp.zeros((), bool)
    start = _Free(limit.weights, limit.points, surface.phi)
    first = _Search(start, jnp.zeros(start.x.shape, bool), start.x, no, no, jnp.zeros((), jnp.int32))
    return jax.lax.while_loop(lambda c: ~c.done & (c.num_passes < _MAX_PASSES), one_pass, first)


def _newton(residual: Callable[[_Free], _Free], start: _Free, tolerance: float) -> _Free:
    def step(c: tuple[_Free, Array]) -> tuple[_Free, Array]:
        free, k = c
        flat, back = ravel_pytree(free)
        matrix = jax.jacfwd(lambda v: ravel_pytree(residual(back(v)))[0])(flat)
        # Least squares: where the reward is flat, W does not say where to go, and the smallest step is none.
        change = least_squares(matrix, -ravel_pytree(residual(free))[0])
        return back(flat + jnp.where(jnp.isfinite(change), change, 0.0)), k + 1

    going = lambda c: (_size(residual(c[0])) > tolerance) & (c[1] < _MAX_ITERATIONS)  # noqa: E731
    return jax.lax.while_loop(going, step, (start, jnp.zeros((), jnp.int32)))[0]


def _size(residual: _Free) -> Array:
    return jnp.max(jnp.abs(ravel_pytree(residual)[0]))


def _merge(free: _Free, before: Array, height: Any) -> _Free:
    """Atoms between which W has no valley are one: the mass of all of them, where W was the highest `before`.

    The place is not between them: from there Newton's method may find a saddle of W. Where W was the same, the mean.
    """
    w, x, u = free
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
    member = leader[:, None] == jnp.arange(m)  # [atom, group]
    total = jnp.sum(jnp.where(member, w[:, None], 0.0), axis=0)
    top = jnp.max(jnp.where(member, before[:, None], -jnp.inf), axis=0)
    weight = jnp.where(member & (before[:, None] >= top - 4 * slack), w[:, None], 0.0)
    share = jnp.sum(weight, axis=0)
    # Relative to the leader: an atom alone, at the edge of the domain, stays exactly there.
    away = jnp.sum(weight[:, :, None] * (x[:, None] - x), axis=0) / jnp.where(share > 0, share, 1.0)[:, None]
    return _Free(total, x + away, u)


def _climb(height: Any, x: Array, lowest: Array, highest: Array) -> Array:
    """Tops of a function in a box that are reached from places x [s, d], by Newton's method with a trust region (Levenberg)."""
    tiny, eps = float(jnp.finfo(x.dtype).tiny), float(jnp.finfo(x.dtype).eps)
    still = jnp.sqrt(eps) * (highest - lowest)

    def step(x: Array, damping: Array) -> tuple[Array, Array, Array]:
        slope, curvature = jax.grad(height)(x), jax.hessian(height)(x)
        slope = jnp.where(((x >= highest) & (slope > 0)) | ((x <= lowest) & (slope < 0)), 0.0, slope)
        values, vectors = _eigh(curvature)
        bend = jnp.max(jnp.abs(values))
        # Uphill along every direction, whatever the curvature's sign.
        scale = jnp.abs(values) + damping * bend + tiny
        new = jnp.clip(x + dot(vectors, dot(vectors.T, slope) / scale), lowest, highest)
        better = height(new) >= height(x)
        moving = jnp.any(jnp.abs(new - x) > still)
        return jnp.where(better, new, x), jnp.where(better, 0.2 * damping, 4.0 * damping + 0.05), moving

    def climb(c: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        return *jax.vmap(step)(c[0], c[1]), c[3] + 1

    going = lambda c: c[2].any() & (c[3] < _CLIMB)  # noqa: E731
    count = x.shape[0]
    start = (x, jnp.full((count,), 0.1, x.dtype), jnp.ones((count,), bool), jnp.zeros((), jnp.int32))
    return jax.lax.while_loop(going, climb, start)[0]


def _eigh(matrix: Array) -> tuple[Array, Array]:
    """Eigenvalues and vectors of a symmetric matrix [d, d]; without the library's routine where d is one or two."""
    d = matrix.shape[0]
    if d == 1:
        return matrix[0], jnp.ones_like(matrix)
    if d > 2:
        return eigh(matrix)
    mean, half, off = 0.5 * (matrix[0, 0] + matrix[1, 1]), 0.5 * (matrix[0, 0] - matrix[1, 1]), matrix[0, 1]
    radius, angle = jnp.hypot(half, off), 0.5 * jnp.arctan2(off, half)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([mean + radius, mean - radius]), jnp.stack([jnp.stack([cos, -sin]), jnp.stack([sin, cos])])


def _highest_apart(x: Array, height: Array, least: float, count: int) -> tuple[Array, Array]:
    """The `count` highest places that are above `least` and apart from each other, and which of the slots are in use."""
    apart = 1e-4 * (jnp.max(jnp.abs(x)) + 1.0)

    def highest(left: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
        k = jnp.argmax(left)
        close = jnp.max(jnp.abs(x - x[k]), axis=1) < apart
        return jnp.where(close, -jnp.inf, left), (x[k], left[k])

    _, (places, values) = jax.lax.scan(highest, height, length=count)
    return places, values > least
