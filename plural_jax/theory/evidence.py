"""The run behind an audit: every number that its verdicts rest on, measured once and brought to the host."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from plural_jax.density.core import Problem, dot, log_normalizers, mix_log
from plural_jax.landscape import Landscape, normalize
from plural_jax.theory.bounds import _gaps
from plural_jax.theory.later import later_rounds_of
from plural_jax.theory.laws import _basin_means, _decompose, _spread, _total_variation
from plural_jax.theory.partition import _merged, _partition
from plural_jax.theory.report import Cell


class Round(NamedTuple):
    """One density of the run, t = 0..T; in `Evidence` with a leading axis over t.

    Attributes:
        log_outside: log m_t, [].
        log_sup_outside: log of the largest W_t on atoms outside the basins that have mass, [].
        cell: where that is, int [].
        weights: masses of the parts of `basin_partition`, [m].
        log_z: log E_{p_t}[exp((r_i - r_i*) / tau)], [m].
        log_max_w: log max W_t over atoms with mass, [].
    """

    log_outside: Array
    log_sup_outside: Array
    cell: Array
    weights: Array
    log_z: Array
    log_max_w: Array


class Evidence(NamedTuple):
    """Everything that was measured; after `collect`, NumPy arrays in double precision (integers and booleans as they are).

    Shapes: m preferences, n atoms, T rounds.

    Attributes:
        rounds: `Round` with a leading axis T + 1.
        log_start, log_end: log-masses p_0 and p_T, [n].
        best: r_i* over the domain, [m].
        lowest: min r_i over the domain, [m].
        log_basin_start, log_basin_end: log-masses of the basins themselves, [m].
        log_part_start: log-masses of the parts of the partition at the start, [m].
        shared: number of atoms that basins i and j have in common, [m, m].
        overlap: atoms in several basins: their number and their log-mass in p_0 and p_T, [3].
        any_outside: whether an atom outside the basins has mass, [].
        log_ceiling_outside: an upper bound on log W_t outside for every t >= T, [].
        outside_lower, outside_upper: bounds on m_t for every t >= T, [].
        slack: of `later_rounds`, [].
        gaps, part_gaps: Delta_ij between basins, and between the parts of the partition, [m, m].
        groups, group_lower, group_upper: `merged_weight_bounds`, [m].
        log_group_start: log-mass of each preference's group at the start, [m].
        group_end: its mass at the end, [m].
        spread: `plateau_spread`, [m, m].
        drift: total variation of each basin-conditional between p_0 and p_T, [m].
        means: mu_ij at p_T, [m, m].
        reward_mean, reward_variance: of p_T, [m].
        log_best_with_mass: max of (r_i - r_i*) / tau over atoms with mass, [m].
    """

    rounds: Round
    log_start: Array
    log_end: Array
    best: Array
    lowest: Array
    log_basin_start: Array
    log_basin_end: Array
    log_part_start: Array
    shared: Array
    overlap: Array
    any_outside: Array
    log_ceiling_outside: Array
    outside_lower: Array
    outside_upper: Array
    slack: Array
    gaps: Array
    part_gaps: Array
    groups: Array
    group_lower: Array
    group_upper: Array
    log_group_start: Array
    group_end: Array
    spread: Array
    drift: Array
    means: Array
    reward_mean: Array
    reward_variance: Array
    log_best_with_mass: Array


def collect(
    landscape: Landscape, problem: Problem, log_p: Array, eps: Array, reference: Array | None, num_steps: int
) -> Evidence:
    """Run `num_steps` rounds and measure."""
    other = log_p if reference is None else reference  # not used where there is none: one compilation for both
    # Without its points and its reward function, which are not used: a new function would compile everything again.
    landscape = Landscape(rewards=landscape.rewards, log_measure=landscape.log_measure)
    found = _measure(landscape, problem, log_p, eps, other, jnp.asarray(reference is not None), num_steps)

    def to_host(x: Any) -> np.ndarray:
        array = np.asarray(x)
        return array.astype(np.float64) if array.dtype.kind not in "biu" else array

    return jax.tree.map(to_host, found)


@partial(jax.jit, static_argnames="num_steps")
def _measure(
    landscape: Landscape,
    problem: Problem,
    log_p: Array,
    eps: Array,
    reference: Array,
    has_reference: Array,
    num_steps: int,
) -> Evidence:
    basins = problem.basins > 0
    parts = _partition(landscape, eps)
    inside = problem.log_uniform > -jnp.inf

    def observe(log_p: Array) -> tuple[Round, Array]:
        log_z = log_normalizers(problem, log_p)
        log_w = mix_log(problem.phi, problem.log_tilt - log_z[:, None])
        live = log_p > -jnp.inf
        outside = jnp.where(live & (problem.outside > 0), log_w, -jnp.inf)
        seen = Round(
            log_outside=_log_mass(problem.outside > 0, log_p),
            log_sup_outside=jnp.max(outside),
            cell=jnp.argmax(outside),
            weights=dot(parts.astype(log_p.dtype), jnp.exp(log_p)),
            log_z=log_z,
            log_max_w=jnp.max(jnp.where(live, log_w, -jnp.inf)),
        )
        return seen, log_w

    def one_round(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], Round]:
        log_p = carry[1]
        seen, log_w = observe(log_p)
        return (log_p, normalize(log_p + log_w)), seen

    start = normalize(log_p)
    # One turn more than rounds, so that p_T is observed too; its successor is thrown away.
    (end, _), rounds = jax.lax.scan(one_round, (start, start), length=num_steps + 1)
    later = later_rounds_of(problem, end, jnp.where(has_reference, reference, end))
    live = end > -jnp.inf
    several = basins.sum(axis=0) > 1
    # Both densities together, and one set after another: every reduction is compiled once.
    ends = jnp.stack([start, end])
    conditionals = jax.vmap(partial(_decompose, parts))(ends).log_conditionals
    groups, group_lower, group_upper = _merged(landscape, problem.phi, eps, problem.temperature)
    unions = jax.lax.map(lambda group: jnp.any(basins & (groups == group)[:, None], axis=0), groups)
    sets = jnp.concatenate([basins, parts, unions, several[None]])
    log_masses = jax.lax.map(lambda where: _log_mass(where, ends), sets).T
    m = basins.shape[0]
    (basin, part, union, both) = jnp.split(log_masses, [m, 2 * m, 3 * m], axis=1)
    shifted, p = problem.rewards - problem.best, jnp.exp(end)
    mean = dot(shifted, p)
    as_number = basins.astype(p.dtype)
    return Evidence(
        rounds=rounds,
        log_start=start,
        log_end=end,
        best=problem.best[:, 0],
        lowest=jnp.min(jnp.where(inside, problem.rewards, jnp.inf), axis=1),
        log_basin_start=basin[0],
        log_basin_end=basin[1],
        log_part_start=part[0],
        shared=dot(as_number, as_number.T),
        overlap=jnp.concatenate([jnp.sum(several, dtype=p.dtype)[None], both[:, 0]]),
        any_outside=jnp.any(live & (problem.outside > 0)),
        log_ceiling_outside=jnp.max(jnp.where(live & (problem.outside > 0), later.log_w_ceiling, -jnp.inf)),
        outside_lower=later.outside_lower,
        outside_upper=later.outside_upper,
        slack=later.slack,
        gaps=_gaps(landscape, basins, eps),
        part_gaps=_gaps(landscape, parts, eps),
        groups=groups,
        group_lower=group_lower,
        group_upper=group_upper,
        log_group_start=union[0],
        group_end=jnp.exp(union[1]),
        spread=_spread(landscape, parts),
        drift=_total_variation(conditionals[0], conditionals[1]),
        means=_basin_means(landscape, conditionals[1]),
        reward_mean=problem.best[:, 0] + mean,
        reward_variance=dot((shifted - mean[:, None]) ** 2, p),
        log_best_with_mass=jnp.max(jnp.where(live, problem.log_tilt, -jnp.inf), axis=1),
    )


def _log_mass(where: Array, log_p: Array) -> Array:
    """Log of the mass on sets of atoms, [..., n] -> [...]; also where the mass is too small for a float."""
    return jax.nn.logsumexp(jnp.where(where, log_p, -jnp.inf), axis=-1)


def cell_of(
    landscape: Landscape, phi: np.ndarray, temperature: float, e: Evidence, index: int, t: int, rounding: float
) -> Cell:
    """What there is to say about one atom outside the basins in round t; logs within `rounding` of 0 count as 0."""
    rewards = np.asarray(landscape.rewards)[:, index].astype(np.float64)
    log_h = (rewards - e.best) / temperature - np.asarray(e.rounds.log_z[t])
    with np.errstate(divide="ignore"):
        log_c = np.log(phi) + log_h
    top = log_c.max()
    log_w = float(top + np.log(np.exp(log_c - top).sum()))
    kind = "loses" if log_w < -rounding else "shoulder" if top >= -rounding else "compromise"
    points = landscape.points
    return Cell(
        index=index,
        coordinates=None if points is None else tuple(np.asarray(points)[index].astype(np.float64).tolist()),
        rewards=tuple(rewards.tolist()),
        shortfalls=tuple((e.best - rewards).tolist()),
        round=t,
        log_multiplier=log_w,
        contributions=tuple(np.exp(np.minimum(log_c, 700.0)).tolist()),
        initial_mass=float(np.exp(e.log_start[index])),
        final_mass=float(np.exp(e.log_end[index])),
        kind=kind,
        preferences=tuple(np.flatnonzero(log_c >= log_w - np.log(10)).tolist()),
    )
