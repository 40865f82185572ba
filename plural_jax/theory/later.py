"""What one density proves about every later round of an infinite pool.

Every large-K round increases `F(p) = sum_i phi_i log Z_i`. So with any density q as a reference, every later density p_t has
normalizer ratios `u_i = Z_i(t) / Z_i(q)` with

    sum_i phi_i u_i = E_{p_t}[W_q] <= e^g,    g = log max W_q over the atoms that can have mass,
    sum_i phi_i log u_i >= -d,                d = F(q) - F(p_T).

Both together leave little room where g + d is small: for fixed u_i the other ratios serve the second condition best if they are
all equal (Jensen), which bounds u_i from both sides by the two roots of a concave function. From this follow

  * a ceiling on `W_t(x) = sum_i (phi_i e^r_i(x) / Z_i(q)) / u_i` for every t >= T. In `log u` the sum is convex, so that for two
    preferences its maximum over the allowed set is at one of its two corners; for more, every u_i is put at its lower end;
  * the outside mass: `e^-d <= sum_i phi_i u_i = E_{p_t}[W_q] <= (1 - m_t) max_S W_q + m_t max_outside W_q` for every t >= T.

This turns a run of T rounds into statements about all rounds. One reference is always p_T itself; a better maximizer of F can
sharpen what it says.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from plural_jax._typing import ArrayLike
from plural_jax.density.core import Problem, log_normalizers, mix_log, problem
from plural_jax.landscape import Landscape, check_log_mass, normalize


class LaterRounds(NamedTuple):
    """What holds for every round t >= T of an infinite pool, and for the limit.

    Attributes:
        log_w_ceiling: an upper bound on log W_t(x), [n].
        log_z_lower, log_z_upper: bounds on log Z_i(t) = log E_{p_t}[exp(r_i / tau)], [m]; infinite where phi_i = 0.
        outside_lower, outside_upper: bounds on the outside mass m_t, [].
        slack: g + d, [], at least the amount by which F can still grow.
    """

    log_w_ceiling: Array
    log_z_lower: Array
    log_z_upper: Array
    outside_lower: Array
    outside_upper: Array
    slack: Array


def later_rounds(
    landscape: Landscape,
    phi: ArrayLike,
    log_p: ArrayLike,
    *,
    reference: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    eps: ArrayLike = 0.1,
) -> LaterRounds:
    """Bound the multiplier, the normalizers and the outside mass of all large-K rounds from a density on.

    `phi_i log u_i + (1 - phi_i) log((e^g - phi_i u_i) / (1 - phi_i)) >= -d` for `u_i = Z_i(t) / Z_i(q)` and every t >= T

    Args:
        landscape: rewards [m, n].
        phi: weights of the preferences, [m], non-negative, summing to one.
        log_p: log-masses of p_T, [n]; normalized here. What has no mass here has none in any later round.
        reference: log-masses of q, [n], used beside p_T; a density near the maximum of F makes the bounds sharper.
        temperature: tau, positive, in units of reward.
        eps: width of the basins, in units of reward, not negative.

    Returns:
        A `LaterRounds` in the landscape's floating type. The bounds are widened by the rounding that a few hundred operations
        can leave.

    Raises:
        ValueError: a phi that is no set of weights, log-masses of the wrong length or without mass, a temperature that is not
            positive, a negative eps.

    Example:
        >>> import plural_jax as pj
        >>> land = pj.Landscape(rewards=[[4.0, 0.0, 0.0], [0.0, 0.0, 4.0]])
        >>> process = pj.density.large_pool(land, phi=[0.4, 0.6])
        >>> final, _ = pj.run(process, process.init(), num_steps=50)
        >>> later = later_rounds(land, [0.4, 0.6], final.log_p)
        >>> bool(later.log_w_ceiling[1] < -3)  # the middle atom loses more than 95 % of its mass in every round to come
        True

    Source: derived here; F is the objective of Cover's (1984) algorithm, which Eq. 5 is.
    """
    check_log_mass(log_p, landscape.num_atoms, "log_p")
    if reference is not None:
        check_log_mass(reference, landscape.num_atoms, "reference")
    shared = problem(landscape, phi, temperature, eps)
    log_p = jnp.asarray(log_p, landscape.dtype)
    return later_rounds_of(shared, log_p, log_p if reference is None else jnp.asarray(reference, landscape.dtype))


@jax.jit
def later_rounds_of(problem: Problem, log_p: Array, reference: Array) -> LaterRounds:
    """`later_rounds` for a problem and arrays: the kernel. The better of what p_T says by itself and of the reference."""
    both = jax.vmap(_with_reference, (None, None, 0))(problem, log_p, jnp.stack([log_p, reference]))
    ceiling, low, high, outside_low, outside_high, slack = both
    return LaterRounds(ceiling.min(0), low.max(0), high.min(0), outside_low.max(0), outside_high.min(0), slack.min(0))


def _with_reference(problem: Problem, log_p: Array, reference: Array) -> LaterRounds:
    phi, live = problem.phi, log_p > -jnp.inf
    log_z_now, log_z = (log_normalizers(problem, normalize(x)) for x in (log_p, reference))
    log_h = problem.log_tilt - log_z[:, None]
    log_w = mix_log(phi, log_h)
    used = phi > 0
    # What the sums above can have lost: a few units in the last place of their largest terms.
    scale = jnp.max(jnp.where(used, jnp.maximum(jnp.abs(log_z), jnp.abs(log_z_now)), 0))
    rounding = float(np.finfo(log_p.dtype).eps) * (64 + 4 * scale)
    g = jnp.max(jnp.where(live, log_w, -jnp.inf)) + rounding
    d = jnp.sum(jnp.where(used, phi * (log_z - log_z_now), 0)) + rounding
    slack = jnp.maximum(g + d, rounding)
    below, above = _roots(phi, slack)
    low, high = (jnp.where(used, g + x, s * jnp.inf) for x, s in ((below, -1), (above, 1)))
    ceiling = mix_log(phi, jnp.where(used[:, None], log_h - low[:, None], -jnp.inf))
    if phi.shape[0] == 2:
        corners = [jnp.stack([low[0], high[1]]), jnp.stack([high[0], low[1]])]
        at = [mix_log(phi, jnp.where(used[:, None], log_h - s[:, None], -jnp.inf)) for s in corners]
        # With one preference in use there are no corners.
        ceiling = jnp.where(used.all(), jnp.maximum(*at), ceiling)
    outside = live & (problem.outside > 0)
    in_basins = live & (problem.outside == 0)
    # Relative to e^g, so that nothing overflows.
    w_out, w_in = (jnp.exp(jnp.max(jnp.where(where, log_w, -jnp.inf)) - g) for where in (outside, in_basins))
    least = jnp.exp(-slack)
    upper = jnp.where(w_out < least, (w_in - least) / jnp.where(w_out < least, w_in - w_out, 1), 1)
    lower = jnp.where(w_in < least, (least - w_in) / jnp.where(w_in < least, w_out - w_in, 1), 0)
    offset = problem.best[:, 0] / problem.temperature + log_z
    return LaterRounds(
        log_w_ceiling=ceiling + rounding,
        log_z_lower=low + offset,
        log_z_upper=high + offset,
        outside_lower=jnp.clip(lower, 0, 1),
        outside_upper=jnp.where(outside.any(), jnp.clip(upper, 0, 1), 0),
        slack=slack,
    )


def _roots(phi: Array, slack: Array) -> tuple[Array, Array]:
    """Ends of the x with `slack + phi x + (1 - phi) log((1 - phi e^x) / (1 - phi)) >= 0`, where x = log u - g; [m] each."""
    alone = phi >= 1
    safe = jnp.where(alone | (phi <= 0), 0.5, phi)

    def allowed(x: Array) -> Array:
        rest = -safe * jnp.expm1(x) / (1 - safe)
        log_rest = jnp.where(rest > -1, jnp.log1p(jnp.where(rest > -1, rest, 0)), -jnp.inf)
        return slack + safe * x + (1 - safe) * log_rest >= 0

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        inner, outer = ends
        middle = (inner + outer) / 2
        good = allowed(middle)
        return jnp.where(good, middle, inner), jnp.where(good, outer, middle)

    zero = jnp.zeros_like(phi)
    # Each search starts with an allowed end, x = 0, and one that is not.
    ends = (-(slack - (1 - safe) * jnp.log1p(-safe)) / safe, -jnp.log(safe))
    below, above = (jax.lax.fori_loop(0, 80, halve, (zero, end))[1] for end in ends)
    return jnp.where(alone, -slack, below), jnp.where(alone, zero, above)
