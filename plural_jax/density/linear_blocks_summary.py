"""The numbers of `DensityInfo` from masses in linear space, for all configurations at once.

Most sums over cells are one product with a table of rows. Raw second moments suffice for most variances; where their
digits cancel, all are summed again about the means. Where sums over q mean nothing, the reference summary of log-masses
is taken instead.

Arrays are `[G, n, C]`: landscapes, cells, configurations; see `linear_blocks`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from plural_jax.density.core import INFO_DIMS, DensityInfo, DensityState, Problem, dot, summarize
from plural_jax.density.linear_blocks_masses import CELL_SLICES, Format, Parts, add, mix
from plural_jax.density.linear_blocks_prefix import LENGTHS, SLICES, Slices

_LOG2 = float(np.log(2.0))
#: A variance from raw moments may be this many times smaller than the second moment; below, it is summed anew.
_MAX_CANCELLATION = 16.0


class Observer:
    """Summaries of C configurations on each of G landscapes.

    Attributes:
        slices: bounds that say how many of the first cells are enough; None where all are always read.
    """

    def __init__(
        self,
        form: Format,
        problem: Problem,
        multiplier: Any,
        tilt: Array,
        phi: Array,
        live: Array,
        cuts: tuple[int, ...],
        slices: Slices | None,
        w_first: Callable[[Any, int], Array],
    ) -> None:
        """What all summaries share.

        `cuts` cut the cells in parts; `slices` are given where cells are in the order of `best_first`, and cut by it, so that
        a summary may choose how many it reads.
        `w_first` gives W in the first so many cells of a measured density.
        """
        self.form, self.problem, self.multiplier, self.tilt, self.phi = form, problem, multiplier, tilt, phi
        self.w_first = w_first
        self.shifted = shifted = problem.rewards - problem.best
        table = jnp.concatenate([shifted, shifted * shifted, problem.basins, problem.outside[:, None]], axis=1)
        self.offset = problem.best / problem.temperature[:, None, None]
        # Tilts are zero in cells without mass, so W needs a mask only where configurations differ in what has mass.
        self.weight = live.astype(form.dtype) if live.shape[2] > 1 else None
        self.slices, lengths = slices, cuts[-1:]
        if slices is not None:
            self.limits = self._limits(live)
            lengths = tuple(cuts[-1] // SLICES * length for length in LENGTHS)
        # For each length, the cells to read in each part, and the rows for them: cut in the loop, they would be copied.
        self.pieces = []
        for length in lengths:
            cells = [slice(a, min(b, length)) for a, b in pairwise(cuts) if a < length]
            self.pieces.append([(x, table[:, :, x]) for x in cells])

    def _limits(self, live: Array) -> tuple[Array, Array]:
        """Factors and addends, [G, 2, 3 m + 2, 1], for what may be left out without a change of the numbers of `_over`.

        A unit of mass adds to a number at most `largest`, and one of these numbers may change by rounding, of itself or
        for the entropy of one. Basin masses matter only where there is a cell of a basin.
        """
        form, m = self.form, self.shifted.shape[1]
        rounding = 2.0 ** (form.scale - form.mantissa - 2) / SLICES
        lowest = jnp.min(jnp.where(live.any(axis=2)[:, None], self.shifted, 0.0), axis=2)
        one = jnp.ones_like(lowest[:, :1])
        largest = jnp.concatenate([-lowest, lowest * lowest, jnp.ones_like(lowest), one, one], axis=1)
        factor = jnp.where(largest > 0, rounding / largest, 0.0)
        addend = jnp.where(largest > 0, 0.0, jnp.inf)
        # Masses below 2^-depth are less than rounding, so a unit of mass adds no more than this to -sum p log p.
        factor = factor.at[:, -1].set(0.0)
        addend = addend.at[:, -1].set(rounding / (form.depth * _LOG2))
        elsewhere = addend.at[:, 2 * m : 3 * m].set(jnp.inf)
        return jnp.stack([factor, factor], axis=1)[..., None], jnp.stack([elsewhere, addend], axis=1)[..., None]

    def __call__(self, masses: Parts, z: Array, measured: Any, bounds: Array, choice: Array) -> tuple[Array, Array]:
        """The infos below one another as `unpack` expects them, and the length to begin with the next time.

        Args:
            masses: parts of the density, sums over which mean something.
            z: its normalizers, [G, m, C].
            measured: as `w_first` takes it; its `weights` are those of W.
            bounds: what the sum over q in a slice does not exceed, [G, SLICES, C].
            choice: index of the length to begin with, [].
        """
        m = self.phi.shape[1]
        numbers, choice = self._read([part.q for part in masses], measured, bounds, choice)
        mean, variance, basin, outside, entropy, maxima = jnp.split(
            numbers, [m, 2 * m, 3 * m, 3 * m + 1, 3 * m + 2], axis=1
        )
        log_z, log_max = jnp.log(z) + self.offset, jnp.log(maxima)
        info = DensityInfo(
            reward_mean=self.problem.best + mean,
            reward_variance=variance,
            log_z=log_z,
            entropy=entropy,
            basin_mass=basin,
            outside_mass=outside,
            log_sup_w_outside=log_max[:, 1:],
            objective=add(self.phi[:, i : i + 1] * log_z[:, i : i + 1] for i in range(m)),
            log_max_w=log_max[:, :1],
        )
        return _pack(info), choice

    def log_w(self, log_p: Array) -> Array:
        """Log W in log space, [G, n, C]."""
        return self._each(lambda problem, multiplier, log_p: multiplier(problem, log_p))(log_p)

    def careful(self, log_p: Array, log_w: Array) -> Array:
        """The infos by the reference summary, which needs no bounds and trusts no sum."""

        def one(problem: Problem, _: Any, log_p: Array, log_w: Array) -> DensityInfo:
            return summarize(problem, DensityState(log_p, log_w))

        return _pack(self._each(one)(log_p, log_w))

    def _each(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Turn a function of one (problem, multiplier, *[n]) into one of all configurations' [G, n, C]."""

        def of_all(*arrays: Array) -> Any:
            def one(problem: Problem, multiplier: Any, phi: Array, *columns: Array) -> Any:
                return function(problem._replace(phi=phi), multiplier, *columns)

            columns = (1,) * (1 + len(arrays))
            return jax.vmap(jax.vmap(one, (None, None, *columns), -1))(self.problem, self.multiplier, self.phi, *arrays)

        return of_all

    def _read(self, q: list[Array], measured: Any, bounds: Array, choice: Array) -> tuple[Array, Array]:
        """The numbers of `_over` from as few cells as will do, and the next length to begin with."""
        m, slices = self.phi.shape[1], self.slices
        if slices is None:
            return self._over(0, q, measured), choice
        factor, addend = self.limits
        # Deep cells have a false mass of this much at most.
        floor = 2.0 ** (self.form.shallowest + 1) * self.tilt.shape[2] / SLICES

        def attempt(c: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            numbers = jax.lax.switch(c[1], [partial(self._over, k) for k in range(len(LENGTHS))], q, measured)
            limits = jnp.min(jnp.abs(numbers[:, None, : 3 * m + 2]) * factor + addend, axis=2)
            enough = slices.sufficient(
                bounds, mix(measured.weights, slices.tilt), numbers[:, 3 * m + 2 :], jnp.maximum(limits, floor)
            )
            # Sums over fewer cells are smaller: what they find sufficient is sufficient.
            return numbers, enough, c[1] > enough

        start = jnp.zeros((self.phi.shape[0], 3 * m + 4, self.phi.shape[2]), self.phi.dtype), choice, jnp.ones((), bool)
        return jax.lax.while_loop(lambda c: c[2], attempt, start)[:2]

    def _over(self, choice: int, q: list[Array], measured: Any) -> Array:
        """E[r_i] - r_i*, variances, basin masses, mass outside, entropy, max W and sup W outside, [G, 3 m + 4, C].

        From the first cells, as many as the length of that index.
        """
        m, unit, pieces = self.phi.shape[1], 2.0**-self.form.scale, self.pieces[choice]
        length = pieces[-1][0].stop

        def cut(q: list[Array]) -> list[Array]:
            return [x[:, : cells.stop - cells.start] for x, (cells, _) in zip(q, pieces, strict=False)]

        def central(q: list[Array], mean: Array) -> Array:
            # Squares about a configuration's own mean are no common table: one preference after another.
            def squares(i: int, x: Array, cells: slice) -> Array:
                return _sum(x * jnp.square(self.shifted[:, i, cells, None] - mean[:, i, None, :]))

            parts = list(zip(cut(q), pieces, strict=True))
            return jnp.stack([add(squares(i, x, cells) for x, (cells, _) in parts) for i in range(m)], axis=1) * unit

        sums = add(dot(table, x) for x, (_, table) in zip(cut(q), pieces, strict=True)) * unit
        mean, second = sums[:, :m], sums[:, m : 2 * m]
        variance = second - mean * mean
        keeps_digits = jnp.all(variance * _MAX_CANCELLATION >= second)
        # All of q goes in, because a part of it would be copied.
        variance = jax.lax.cond(keeps_digits, lambda q, mean: variance, central, q, mean)
        w = self.w_first(measured, length)
        if self.weight is not None:
            w = w * self.weight[:, :length]
        highest = jnp.stack(_maxima(w, w * self.problem.outside[:, :length, None]), axis=1)
        entropy = add(_entropy(self.form, x) for x in cut(q))[:, None]
        return jnp.concatenate([mean, variance, sums[:, 2 * m :], entropy, highest], axis=1)


def _pack(info: DensityInfo) -> Array:
    """All fields below one another, [G, rows, C]: one array is computed and written faster than nine."""
    return jnp.concatenate([x if x.ndim == 3 else x[:, None] for x in info], axis=1)


def num_rows(m: int) -> int:
    """Rows of all fields."""
    return sum(m if name in INFO_DIMS else 1 for name in DensityInfo._fields)


def unpack(rows: Array, m: int) -> DensityInfo:
    """The fields of an array [..., rows, C]."""
    fields, start = [], 0
    for name in DensityInfo._fields:
        if name in INFO_DIMS:
            fields.append(rows[..., start : start + m, :])
            start += m
        else:
            fields.append(rows[..., start, :])
            start += 1
    return DensityInfo(*fields)


def _maxima(a: Array, b: Array) -> tuple[Array, Array]:
    """The largest values over cells of two non-negative arrays, in one pass."""
    zero = jnp.zeros((), a.dtype)
    return jax.lax.reduce((a, b), (zero, zero), lambda x, y: (jnp.maximum(x[0], y[0]), jnp.maximum(x[1], y[1])), (1,))


def _sum(terms: Array) -> Array:
    """Sum over cells."""
    partial_sums = add(jnp.split(terms, CELL_SLICES, axis=1))
    # Products with ones, because XLA's CPU code for a fused sum over such an axis is not vectorized.
    ones = jnp.ones((partial_sums.shape[1],), terms.dtype)
    if terms.shape[2] == 1:
        return dot(partial_sums[:, :, 0], ones)[:, None]
    return dot(ones[None], partial_sums)[:, 0]


def _entropy(form: Format, q: Array) -> Array:
    """-sum_x p log p for q = p 2^scale, [G, C].

    A positive float read as an integer is its logarithm to base 2, up to a function of the fraction: a polynomial.
    """
    bits = form.as_bits(q)
    one = form.bias << form.mantissa
    linear = (bits - (one + (form.scale << form.mantissa))).astype(form.dtype) * 2.0**-form.mantissa
    fraction = jax.lax.bitcast_convert_type((bits & ((1 << form.mantissa) - 1)) | one, form.dtype) - 1.5
    coefficients = _log2_correction(7 if form.mantissa < 30 else 18)
    correction = jnp.full_like(q, coefficients[-1])
    for c in coefficients[-2::-1]:
        correction = correction * fraction + c
    return _sum(q * (linear + correction)) * (-_LOG2 * 2.0**-form.scale)


def _log2_correction(degree: int) -> list[float]:
    """Coefficients of log2(1.5 + f) - (0.5 + f) in f on [-1/2, 1/2]; degree 7 is right to 4e-7, degree 18 to 1e-14."""
    f = 0.5 * np.cos(np.pi * (np.arange(64) + 0.5) / 64)
    fit = np.polynomial.Chebyshev.fit(f, np.log2(1.5 + f) - (0.5 + f), degree, domain=[-0.5, 0.5])
    return [float(c) for c in fit.convert(domain=[-1, 1], window=[-1, 1], kind=np.polynomial.Polynomial).coef]
