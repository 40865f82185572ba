"""Where the large-K dynamics end: the exact limit, with a certificate.

Eq. 5 never decreases `F(p) = sum_i phi_i log E_p[exp(r_i / tau)]`, and its limits are the maxima of F. Finding one by
tilting needs about 1 / gap rounds; here it is solved for (`limit_atoms` says how), and the certificate
`F* - F(p) <= log max W` comes with every answer.

The normalizers `Z_i` of the limit are unique. Its density need not be: where several atoms look the same to all preferences,
or their tilts are affinely dependent, there is a face of limits, and the dynamics choose by where they start.
`log_p` is the one that they reach from `initial`:

  * atoms of equal tilts keep their initial shares of whatever mass they get together (Prop. 4);
  * on any other face the dynamics are followed until the normalizers are close to their limits. From there on `log W` is
    linear in the tilts to first order, so what is left is an exponential tilt `p exp(lambda . e)` onto the face.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from plural_jax._linalg import cholesky, solve_factored
from plural_jax._typing import ArrayLike
from plural_jax.density.core import Problem, dot, problem
from plural_jax.density.limit_atoms import find_atoms, smallest, solve_linear
from plural_jax.density.limit_refine import refined
from plural_jax.density.tilt import large_pool_log_multiplier
from plural_jax.landscape import Landscape, check_log_mass, normalize

#: Rounds of the dynamics that may be followed where the limit depends on the start.
_MAX_ROUNDS = 2000
#: Atoms with W = 1 whose scaled tilts differ by less are the same maximum of W.
_NEAR = 0.05


class _Digits(NamedTuple):
    """What a floating type allows.

    Attributes:
        gap: certificate at which the solver stops.
        tie: an atom whose W is within this of 1 may carry mass.
        normalizers: relative distance of the normalizers from their limits at which the dynamics need not be followed
            further; what is left out is of second order in it.
    """

    gap: float
    tie: float
    normalizers: float

    @classmethod
    def of(cls, dtype: Any) -> _Digits:
        return cls(1e-11, 2e-11, 1e-6) if jnp.finfo(dtype).bits == 64 else cls(2e-6, 4e-6, 1e-3)


class Limit(NamedTuple):
    """A limit of the large-K dynamics.

    Attributes:
        log_p: log-mass of every atom, [n]; the limit that the dynamics reach from `initial`.
        support: the atoms of a smallest limit, [m] int32; -1 in slots that are not needed. An atom that looks the same to
            all preferences as others stands for all of them.
        weights: masses of these atoms, [m]; zero in slots that are not needed.
        log_z: log Z_i = log E_p[exp(r_i / temperature)], [m]; the same for all limits.
        objective: F(p) = sum_i phi_i log Z_i, [].
        gap: certificate log max W, []: no density on these atoms has an objective that is larger by more.
        num_steps: passes over all atoms that the solver took, [].
        converged: whether `gap` is at most 1e-10 in float64 and 1e-5 in float32, [].
        unique: whether no other density is a limit, to rounding, []. Where false, `log_p` depends on `initial`.
        points: coordinates of the atoms of `support`, [m, d] (with `refine`, off the grid); None without points. Slots
            that are not needed hold some point of the grid.
    """

    log_p: Array
    support: Array
    weights: Array
    log_z: Array
    objective: Array
    gap: Array
    num_steps: Array
    converged: Array
    unique: Array
    points: Array | None = None


def solve_limit(
    landscape: Landscape,
    phi: ArrayLike,
    *,
    initial: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    refine: bool = False,
) -> Limit:
    """The exact limit of the large-K dynamics, without running them.

    `p = argmax_p sum_i phi_i log E_p[exp(r_i / tau)]` over densities on the atoms where `initial` has mass

    Pure: works under `jit`, `vmap` (over phi and over parameters of a landscape) and `grad`. Derivatives are implicit, through
    the optimality conditions on the support; atoms of a grid do not move, so they are those of the problem on this grid.
    Where `unique` is false for another reason than atoms of equal rewards, derivatives of `log_p` are NaN.

    Args:
        landscape: rewards [m, n].
        phi: probability of each preference, [m], non-negative, summing to one.
        initial: log-masses of the start, [n]; default: uniform. Atoms without mass (`-inf`) can never get any.
        temperature: tau of the choice rule, positive, in units of reward.
        refine: move the atoms off the grid, to where the limit has them among all x. Needs a landscape made by
            `Landscape.on` from a reward that is a smooth function; where it is flat, atoms stay. `points`, `weights`, `log_z`
            and `objective` are then of the moved atoms, and their derivatives take the moving into account; `support` holds
            the grid atoms nearest to them and `log_p` remains that of the grid.

    Returns:
        A `Limit` in the landscape's floating type. It is `converged` with a gap of at most 1e-10 in float64 and 1e-5 in
        float32.

    Raises:
        ValueError: a phi that is negative, has the wrong length or does not sum to one; an `initial` without mass; a
            temperature that is not positive; `refine` for a landscape without a reward function.

    Example:
        >>> import plural_jax as pj
        >>> grid = pj.Grid.uniform(-5.0, 5.0, 101)
        >>> land = pj.Landscape.on(grid, pj.rewards.quadratic([-2.0, 2.0], gamma=0.5))
        >>> limit = pj.density.solve_limit(land, phi=[0.25, 0.75])
        >>> bool(limit.converged), land.points[limit.support, 0].round(1).tolist()
        (True, [-2.0, 2.0])

    Source: Cover (1984), for the program whose multiplicative algorithm Eq. 5 is; Lindsay (1983), for its few atoms.
    """
    given = problem(landscape, phi, temperature, 0.0)
    if initial is None:
        initial = landscape.uniform()
    else:
        check_log_mass(initial, landscape.num_atoms, "initial")
    if refine and landscape.reward is None:
        raise ValueError("refine=True needs a landscape made by Landscape.on, which knows its reward function.")
    limit = _solve(given, jnp.asarray(initial, landscape.dtype))
    if landscape.points is None:
        return limit
    limit = limit._replace(points=landscape.points[limit.support])
    return refined(landscape, given, limit, jnp.asarray(initial) > -jnp.inf) if refine else limit


@jax.jit
def _solve(given: Problem, initial: Array) -> Limit:
    digits = _Digits.of(initial.dtype)
    live = initial > -jnp.inf
    initial = normalize(initial)
    best = jnp.max(jnp.where(live, given.rewards, -jnp.inf), axis=1, keepdims=True)
    given = given._replace(best=best)
    phi = given.phi
    asked = phi > 0  # a preference that is never asked has no say
    tilt = jnp.where(live & asked[:, None], jnp.exp(given.log_tilt), 0.0)

    fixed, fixed_phi = jax.lax.stop_gradient((tilt, phi))
    atoms = find_atoms(fixed, fixed_phi, jnp.asarray(digits.gap, initial.dtype))
    few, weight = smallest(fixed[:, atoms.atom], fixed_phi, atoms.weight, digits.gap)
    index = atoms.atom[few]
    weight = _with_derivatives(tilt[:, index], phi, weight)

    log_p, unique = _reached(given, initial, fixed, index, weight, digits)
    p = jnp.exp(jax.lax.stop_gradient(log_p))
    w = dot(jnp.where(asked, fixed_phi / dot(fixed, p), 0.0), fixed)
    gap = jnp.log(jnp.max(w) * jnp.sum(p))

    log_tilt = given.log_tilt
    # From the support, with derivatives, for all that are asked: the same for every limit. The others depend on log_p.
    log_z = jax.nn.logsumexp(log_tilt[:, index], axis=1, b=weight)
    others = lambda: jax.nn.logsumexp(log_tilt + log_p, axis=1)  # noqa: E731
    log_z = jnp.where(asked, log_z, jax.lax.cond(asked.all(), lambda: log_z, others))
    log_z = log_z + best[:, 0] / given.temperature
    used = weight > 0
    order = jnp.argsort(jnp.where(used, index, tilt.shape[1]))
    return Limit(
        log_p=log_p,
        support=jnp.where(used, index, -1)[order],
        weights=weight[order],
        log_z=log_z,
        objective=jnp.sum(jnp.where(asked, phi * log_z, 0.0)),
        gap=jnp.maximum(gap, 0.0),
        num_steps=atoms.num_passes,
        converged=gap <= (1e-10 if digits.gap < 1e-10 else 1e-5),
        unique=unique,
    )


def _with_derivatives(table: Array, phi: Array, weight: Array) -> Array:
    """The given masses, as the implicit function of (table, phi) that the optimality conditions define.

    `u_i (B w)_i = phi_i` and `B^T u = 1` on atoms with mass; `w_k = 0` on the others.
    """
    asked, slot = phi > 0, weight > 0
    u = jnp.where(asked, phi / jnp.where(asked, dot(table, weight), 1.0), 0.0)

    def residual(x: tuple[Array, Array]) -> tuple[Array, Array]:
        w, u = x
        return jnp.where(slot, dot(u, table) - 1.0, w), jnp.where(asked, u * dot(table, w) - phi, u)

    w, _ = jax.lax.custom_root(residual, jax.lax.stop_gradient((weight, u)), lambda _, x: x, solve_linear)
    return w


# --- which of many limits -----------------------------------------------------------------------------------------------


def _reached(
    given: Problem, initial: Array, tilt: Array, index: Array, weight: Array, digits: _Digits
) -> tuple[Array, Array]:
    """Log-masses of the limit that the dynamics from `initial` reach, [n], and whether it is the only one.

    Atoms that may carry mass are those with W = 1. Compared with the atoms of the support, each is one of them, or equal to
    one in all tilts, or next to one (W has a smooth maximum, at a transition a very flat one, and rounding cannot tell
    where), or different. Only in the last case the dynamics have to be followed.
    """
    phi = jax.lax.stop_gradient(given.phi)
    fixed_weight = jax.lax.stop_gradient(weight)
    used = fixed_weight > 0
    z = dot(tilt[:, index], fixed_weight)
    u = jnp.where(phi > 0, phi / jnp.where(phi > 0, z, 1.0), 0.0)
    may = dot(u, tilt) >= 1.0 - digits.tie
    # Two projections of the scaled tilts stand in for a comparison of all m of them.
    m = phi.shape[0]
    directions = 1.0 + np.modf(np.outer([np.sqrt(2.0), np.sqrt(3.0)], np.arange(1, m + 1)))[0]
    keys = dot(jnp.asarray(directions, tilt.dtype) * u, tilt)

    def within(distance: float) -> Array:
        """Whether atom x is that close to atom k of the support, [m, n]."""
        return used[:, None] & may & jnp.all(jnp.abs(keys[:, index][:, :, None] - keys[:, None]) <= distance, axis=0)

    itself = (jnp.arange(tilt.shape[1], dtype=index.dtype) == index[:, None]) & used[:, None]
    # Whether the tilts are equal but for rounding is asked of all of them, where there is anybody to ask.
    eps = float(jnp.finfo(tilt.dtype).eps)

    def compared() -> Array:
        def equal(k: Array) -> Array:
            own = tilt[:, k, None]
            return jnp.all(jnp.abs(tilt - own) <= 32 * eps * own, axis=0)

        return itself | (jax.lax.map(equal, index) & may & used[:, None])

    others = jnp.any(within(256 * eps) & ~itself)
    same = jax.lax.cond(others, compared, lambda: itself)
    near = jnp.any(within(_NEAR) | same, axis=0)
    different = jnp.any(may & ~near)
    unique = ~different & jnp.all(jnp.sum(same, axis=1) <= 1)

    # Equal atoms share what the start gave them.
    start = jax.nn.logsumexp(jnp.where(same, initial, -jnp.inf), axis=1)
    share = jnp.where(used, jnp.log(jnp.where(used, weight, 1.0)) - jnp.where(used, start, 0.0), -jnp.inf)
    shared = initial + jnp.max(jnp.where(same, share[:, None], -jnp.inf), axis=0)

    log_p = _followed(given, initial, z, u[:, None] * tilt, may, different, shared, digits)
    # Where it has to be followed its derivatives are not known; rather none than wrong ones.
    return jnp.where(different, _without_derivative(log_p, shared), shared), unique


def _followed(
    given: Problem, initial: Array, z: Array, scaled: Array, may: Array, wanted: Array, shared: Array, digits: _Digits
) -> Array:
    """Follow the dynamics to where the normalizers are nearly z, then tilt onto the face of limits; only if `wanted`."""
    given, initial = jax.lax.stop_gradient((given, initial))
    phi = given.phi
    asked = phi > 0

    def off(log_p: Array) -> Array:
        now = dot(scaled, jnp.exp(log_p))
        return jnp.max(jnp.abs(jnp.where(asked, now - phi, 0.0)) / jnp.where(asked, phi, 1.0))

    def tilt_once(c: tuple[Array, Array]) -> tuple[Array, Array]:
        log_p, t = c
        return normalize(log_p + large_pool_log_multiplier(given, log_p)), t + 1

    log_p, _ = jax.lax.while_loop(
        lambda c: wanted & (c[1] < _MAX_ROUNDS) & (off(c[0]) > digits.normalizers),
        tilt_once,
        (initial, jnp.zeros((), jnp.int32)),
    )
    on_face = normalize(jnp.where(may, log_p, -jnp.inf))

    # Newton's method for lambda with E_p[scaled] = phi under p = on_face exp(lambda . scaled).
    def tilted(v: Array) -> Array:
        return normalize(on_face + dot(v, scaled))

    def newton(c: tuple[Array, Array]) -> tuple[Array, Array]:
        v, k = c
        p = jnp.exp(tilted(v))
        mean = dot(scaled, p)
        covariance = dot(scaled * p, scaled.T) - mean[:, None] * mean
        ridge = 10 * float(jnp.finfo(p.dtype).eps) * jnp.eye(phi.shape[0], dtype=p.dtype)
        factor = cholesky(covariance + ridge)
        return v + solve_factored(factor, jnp.where(asked, phi - mean, 0.0)), k + 1

    v, _ = jax.lax.while_loop(
        lambda c: wanted & (c[1] < 30) & (off(tilted(c[0])) > 0.1 * digits.gap),
        newton,
        (jnp.zeros_like(phi), jnp.zeros((), jnp.int32)),
    )
    projected = tilted(v)
    # Where that fails, the limit is at the edge of the face: on the atoms of the support and nowhere else.
    return jnp.where(off(projected) <= 10 * digits.gap, projected, shared)


@jax.custom_jvp
def _without_derivative(value: Array, like: Array) -> Array:
    """`value`, with NaN for every derivative with respect to what `like` depends on."""
    del like
    return value


@_without_derivative.defjvp
def _no_derivative(primals: Any, tangents: Any) -> Any:
    return primals[0], jnp.full_like(tangents[1], jnp.nan) + tangents[1]
