"""The atoms of the limit: a concave program with m unknowns, solved exactly on a growing set of atoms.

The limit of the large-K dynamics maximizes `F(p) = sum_i phi_i log E_p[e_i]` with the tilts `e_i = exp((r_i - r_i*)/tau)`.
Its dual has one unknown for each preference:

    max_u sum_i phi_i log u_i   subject to   W(x) = sum_i u_i e_i(x) <= 1 for every atom x,

where `u_i = phi_i / Z_i` at the optimum and the multiplier of atom x is its mass. At most m atoms are needed. So:

  * `solve_on`: on a few atoms, an interior-point method finds masses and u together. Its equations are
    `z_i u_i = phi_i` with `z = B w`, and `w_k s_k = 0` with `s = 1 - B^T u >= 0`: products of pairs of linear functions,
    which is why predictor-corrector steps need about eight iterations from almost anywhere.
  * `find_atoms`: a pass over all n atoms computes W for that u. Where W > 1 the answer can improve. Each preference
    nominates one atom: the one of largest W among those where its own term `u_i e_i(x)` is the largest. These are local
    maxima of W without any geometry. They join, and `solve_on` runs again.
  * `reduce`: masses are moved along null directions of the atoms' tilts until at most m atoms are left.

A handful of passes reaches rounding, for m from 2 to 50 and n up to 10^6. Tilting first (Eq. 5) was tried as a warm start: it
saves no pass over starting from the atoms that each preference likes best.

Source: Cover (1984) and Lindsay (1983) for the program and its dual; Mehrotra (1992) for the predictor-corrector.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from plural_jax._linalg import cholesky, last_singular_vector, solve_factored
from plural_jax.density.core import dot

#: Passes over all atoms before giving up; up to 15 were ever seen in use.
MAX_PASSES = 100
_MAX_ITERATIONS = 60
_STEPS = tuple(0.8**k for k in range(16))
_CENTRALITY = 1e-2
#: Atoms that are looked at together, so that m rows of them and of what is computed from them stay in cache.
_CHUNK = 2048


class Atoms(NamedTuple):
    """A candidate for the limit. S slots, of which those with weight zero are empty.

    Attributes:
        atom: which atom is in each slot, [S] int32.
        weight: mass of each slot, [S], summing to one.
        num_passes: passes over all atoms that it took, [].
    """

    atom: Array
    weight: Array
    num_passes: Array


def find_atoms(tilt: Array, phi: Array, tolerance: Array) -> Atoms:
    """Atoms and masses whose certificate `log max W` is at most `tolerance`, if `MAX_PASSES` suffice.

    Args:
        tilt: e_i(x) in [0, 1], [m, n]; zero in atoms outside the domain and in the rows of preferences with phi_i = 0.
        phi: [m].
        tolerance: [].

    Returns:
        3 m slots.
    """
    m = tilt.shape[0]
    first, best = _argmax(tilt)
    start = _Slots(
        jnp.concatenate([first, jnp.zeros((2 * m,), jnp.int32)]),
        jnp.zeros((3 * m,), tilt.dtype),
        jnp.concatenate([(best > 0) & _is_first(jnp.where(best > 0, first, -1)), jnp.zeros((2 * m,), bool)]),
    )

    def nominate(slots: _Slots) -> tuple[_Slots, Array]:
        """One atom for each preference, in use where it improves the answer; and the largest W."""
        z = dot(tilt[:, slots.atom], slots.weight)
        u = jnp.where(phi > 0, phi / jnp.where(z > 0, z, 1.0), 0.0)
        index, value, highest = local_maxima(u, tilt, 1.0 + 0.1 * tolerance)
        known = jnp.any((index[:, None] == slots.atom) & slots.used, axis=1)
        new = (value > 1.0 + 0.1 * tolerance) & ~known
        new = new & _is_first(jnp.where(new, index, -1))
        return _Slots(index, jnp.zeros((m,), tilt.dtype), new), highest

    def one_pass(c: _Pass) -> _Pass:
        solved = _resolve(tilt, phi, c.slots, tolerance)
        new, highest = nominate(solved)
        done = (jnp.log(highest) <= tolerance) | ~new.used.any()
        # Room for the new ones: the 2 m heaviest stay.
        _, heaviest = jax.lax.top_k(jnp.where(solved.used, solved.weight, -1.0), 2 * m)
        more = jax.tree.map(lambda old, x: jnp.concatenate([old[heaviest], x]), solved, new)
        slots = jax.tree.map(lambda x, y: jnp.where(done, x, y), solved, more)
        return _Pass(slots, done, c.num_passes + 1)

    def going(c: _Pass) -> Array:
        return ~c.done & (c.num_passes < MAX_PASSES)

    end = jax.lax.while_loop(going, one_pass, _Pass(start, jnp.zeros((), bool), jnp.zeros((), jnp.int32)))
    return Atoms(end.slots.atom, end.slots.weight / jnp.sum(end.slots.weight), end.num_passes)


class _Slots(NamedTuple):
    """Atoms with their masses, which are zero in slots that are not used."""

    atom: Array
    weight: Array
    used: Array


class _Pass(NamedTuple):
    slots: _Slots
    done: Array
    num_passes: Array


def local_maxima(u: Array, tilt: Array, least: Array) -> tuple[Array, Array, Array]:
    """For each preference the atom of largest W among those where its own term is the largest, and that W; the largest W.

    Where no atom of a preference has a W above `least`, it may be any of its atoms, and its W zero.
    """
    m, n = tilt.shape

    def of(part: Array) -> tuple[Array, Array]:
        terms = u[:, None] * part
        own = terms >= jnp.max(terms, axis=0)
        return _argmax(jnp.where(own, jnp.sum(terms, axis=0), 0.0))

    if n <= 2 * _CHUNK:
        index, value = of(tilt)
        return index, value, jnp.max(value)

    def next_chunk(c: tuple[Array, Array, Array], start: Array) -> tuple[tuple[Array, Array, Array], None]:
        index, value, highest = c
        start = jnp.minimum(start, jnp.int32(n - _CHUNK))  # the last chunk is a full one too and repeats some atoms
        part = jax.lax.dynamic_slice_in_dim(tilt, start, _CHUNK, axis=1)
        here = jnp.max(dot(u, part))

        def improved() -> tuple[Array, Array]:
            at, w = of(part)
            return jnp.where(w > value, at + start, index), jnp.maximum(w, value)

        # One product tells that most chunks have nothing to say.
        index, value = jax.lax.cond(here > least, improved, lambda: (index, value))
        return (index, value, jnp.maximum(highest, here)), None

    first = (jnp.zeros((m,), jnp.int32), jnp.zeros((m,), tilt.dtype), jnp.zeros((), tilt.dtype))
    return jax.lax.scan(next_chunk, first, jnp.arange(0, n, _CHUNK, dtype=jnp.int32))[0]


def _resolve(tilt: Array, phi: Array, slots: _Slots, tolerance: Array) -> _Slots:
    """The best masses on these atoms; those that hardly contribute to any normalizer are given up."""
    table = jnp.where(slots.used, tilt[:, slots.atom], 0.0)
    weight = solve_on(table, phi, slots.weight, 0.01 * tolerance)
    z = dot(table, weight)
    share = jnp.max(table * weight / jnp.where(z > 0, z, 1.0)[:, None], axis=0)
    used = slots.used & (share > _negligible(tilt.dtype))
    return _Slots(slots.atom, jnp.where(used, weight, 0.0), used)


def _negligible(dtype: Any) -> float:
    """Below this share of every normalizer an atom is no part of the answer, but rounding or an interior point's trace."""
    return 8 * float(jnp.finfo(dtype).eps)


def _argmax(values: Array) -> tuple[Array, Array]:
    """Position and value of the largest entry of each row; as two plain reductions, which XLA's CPU code vectorizes."""
    largest = jnp.max(values, axis=1)
    places = jnp.arange(values.shape[1], dtype=jnp.int32)
    at = jnp.min(jnp.where(values == largest[:, None], places, jnp.int32(values.shape[1])), axis=1)
    return jnp.minimum(at, jnp.int32(values.shape[1] - 1)), largest


def _is_first(index: Array) -> Array:
    """Whether no earlier entry is equal."""
    same = index[:, None] == index[None]
    return ~jnp.any(jnp.tril(same, -1), axis=1)


# --- on a few atoms ---------------------------------------------------------------------------------------------------


class _Point(NamedTuple):
    """An interior point: masses w, slacks s = 1 - W, multipliers u; and the best masses so far with their certificate."""

    w: Array
    s: Array
    u: Array
    best: Array
    gap: Array
    iteration: Array
    stuck: Array


def solve_on(table: Array, phi: Array, start: Array, tolerance: Array) -> Array:
    """Masses on S atoms that maximize F, [S].

    Args:
        table: tilts of the atoms, [m, S]; a column of zeros is an empty slot.
        phi: [m]; a row of zeros goes with phi_i = 0.
        start: a guess at the masses, [S]; any non-negative numbers.
        tolerance: certificate to reach, [].
    """
    dtype = table.dtype
    size = table.shape[1]
    row = phi > 0
    slot = jnp.max(table, axis=0) > 0
    count = jnp.maximum(jnp.sum(slot), 1).astype(dtype)
    tiny = jnp.asarray(10 * jnp.finfo(dtype).eps, dtype)

    def normalizers(w: Array) -> Array:
        return jnp.where(row, dot(table, w), 1.0)

    def certificate(w: Array) -> Array:
        return jnp.log(jnp.max(dot(phi / normalizers(w), table)) * jnp.sum(w))

    def bound(value: Array, change: Array) -> Array:
        """How far one can go along `change` before an entry is zero."""
        return jnp.min(jnp.where(change < 0, -value / jnp.where(change < 0, change, -1.0), jnp.inf))

    def iterate(c: _Point) -> _Point:
        w, s, u = c.w, c.s, c.u
        z = normalizers(w)
        # The equations for the change of w; slacks and multipliers follow from it.
        scaled = table * jnp.sqrt(u / z)[:, None]
        matrix = jnp.diag(s / w) + dot(scaled.T, scaled)
        d = jax.lax.rsqrt(jnp.diag(matrix))
        factor = cholesky(matrix * d * d[:, None] + tiny * jnp.eye(size, dtype=dtype))

        def direction(of_ws: Array, of_zu: Array) -> tuple[Array, Array, Array, Array]:
            dw = d * solve_factored(factor, d * (of_ws / w + dot(of_zu / z, table)))
            dz = jnp.where(row, dot(table, dw), 0.0)
            du = (of_zu - u * dz) / z
            return dw, -dot(du, table), du, dz

        def longest(of_ws: tuple, share: float) -> tuple[Array, Array]:
            """How far masses and, for themselves, multipliers may go: each half's equations are linear."""
            dw, ds, du, dz = of_ws
            first = jnp.minimum(bound(w, dw), bound(z, dz))
            second = jnp.minimum(bound(s, ds), bound(jnp.where(row, u, 1.0), du))
            return jnp.minimum(share * first, 1.0), jnp.minimum(share * second, 1.0)

        miss = jnp.where(row, phi - z * u, 0.0)
        dw, ds, du, dz = direction(-w * s, miss)
        a, b = longest((dw, ds, du, dz), 1.0)
        mu = jnp.sum(jnp.where(slot, w * s, 0.0)) / count
        ahead = jnp.sum(jnp.where(slot, (w + a * dw) * (s + b * ds), 0.0)) / count
        center = jnp.maximum((ahead / mu) ** 3, (1.0 - jnp.minimum(a, b)) ** 3)
        # Second-order terms, weighted by the length of the first step: far from the solution they mislead.
        dw, ds, du, dz = direction(center * mu - w * s - a * b * dw * ds, (1.0 - center) * miss - a * b * du * dz)
        a, b = longest((dw, ds, du, dz), 0.99)
        # The longest step that leaves no product w_k s_k far behind the others: such a one would block the next step.
        shorter = jnp.asarray(_STEPS, dtype)[:, None]
        products = (w + shorter * a * dw) * (s + shorter * b * ds)
        mean = jnp.sum(jnp.where(slot, products, 0.0), axis=1) / count
        lowest = jnp.min(jnp.where(slot, products, jnp.inf), axis=1)
        shorter = shorter[jnp.argmax(lowest >= _CENTRALITY * mean), 0]
        w, s, u = w + shorter * a * dw, s + shorter * b * ds, u + shorter * b * du
        gap = certificate(w)
        better = gap < c.gap
        fine = jnp.isfinite(gap) & (jnp.min(w) > 0) & (jnp.min(s) > 0)
        return _Point(
            jnp.where(fine, w, c.w),
            jnp.where(fine, s, c.s),
            jnp.where(fine, u, c.u),
            jnp.where(better & fine, w, c.best),
            jnp.where(better & fine, gap, c.gap),
            c.iteration + 1,
            ~fine,
        )

    # Strictly inside: W <= 0.9 because u_i <= 0.9 phi_i / max e_i would do; this is closer to the optimum.
    w = jnp.where(slot, jnp.maximum(start, 0.1 / count), 0.1 / count)
    w = w / jnp.sum(jnp.where(slot, w, 0.0))
    u = jnp.where(row, phi / normalizers(w), 0.0)
    u = 0.9 * u / jnp.maximum(jnp.max(dot(u, table)), 1.0)
    first = _Point(w, 1.0 - dot(u, table), u, w, certificate(w), jnp.zeros((), jnp.int32), jnp.zeros((), bool))
    end = jax.lax.while_loop(lambda c: (c.gap > tolerance) & (c.iteration < _MAX_ITERATIONS) & ~c.stuck, iterate, first)
    w = jnp.where(slot, end.best, 0.0)
    return w / jnp.sum(w)


def smallest(table: Array, phi: Array, weight: Array, gap: float) -> tuple[Array, Array]:
    """At most m of S atoms that have the same normalizers: which ones [m], and their masses [m], zero in slots to spare.

    Args:
        table: tilts of the atoms, [m, S].
        phi: [m].
        weight: masses, [S].
        gap: the certificate of these masses.
    """
    z = dot(table, weight)
    u = jnp.where(phi > 0, phi / jnp.where(z > 0, z, 1.0), 0.0)
    # An interior point leaves traces of mass where W is below 1. They are no atoms, and count for less than the certificate.
    share = jnp.max(table * weight / jnp.where(z > 0, z, 1.0)[:, None], axis=0)
    weight = jnp.where((share < gap) & (dot(u, table) < 1.0 - 2 * gap), 0.0, weight)
    # A preference that is never asked needs no atom; one too many would leave the masses, and derivatives, undetermined.
    few = reduce(u[:, None] * table, weight, jnp.sum(phi > 0))
    weight, heaviest = jax.lax.top_k(few, phi.shape[0])
    return heaviest, weight / jnp.sum(weight)


def reduce(table: Array, weight: Array, most: Array | int) -> Array:
    """Masses on at most `most` of the atoms that leave every normalizer `table @ weight` as it is (Caratheodory).

    Args:
        table: scaled tilts `u_i e_i(x_k)`, [m, S].
        weight: masses, [S].
        most: at least the number of rows that are not zero.
    """
    # Normalizers fix the total mass too: every atom of the answer has sum_i u_i e_i = 1.

    def too_many(weight: Array) -> Array:
        return jnp.sum(weight > 0) > most

    def one_less(weight: Array) -> Array:
        active = weight > 0
        # A direction among active atoms that changes no normalizer: columns are scaled by their mass, so that the first
        # atom to reach zero is the one whose entry is the most negative.
        scaled = table * weight
        # Empty slots get large entries of their own, so that the smallest singular value belongs to active ones.
        lift = jnp.where(active, 0.0, 1.0 + jnp.sum(jnp.abs(scaled)))
        direction = last_singular_vector(jnp.concatenate([scaled, jnp.diag(lift)]))
        direction = jnp.where(active, direction, 0.0)
        worst = jnp.argmax(jnp.abs(direction))
        factor = 1.0 - direction / direction[worst]
        return jnp.where(jnp.arange(weight.shape[0]) == worst, 0.0, weight * jnp.maximum(factor, 0.0))

    return jax.lax.while_loop(too_many, one_less, weight)


def solve_linear(function: Callable[[Any], Any], y: Any) -> Any:
    """Solve `function(x) = y` for a linear function between trees of the same few numbers."""
    flat, back = ravel_pytree(y)
    matrix = jax.jacobian(lambda v: ravel_pytree(function(back(v)))[0])(jnp.zeros_like(flat))
    return back(jnp.linalg.solve(matrix, flat))
