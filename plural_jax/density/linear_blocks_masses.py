"""Masses in linear space that do not underflow, and the numbers of `DensityInfo` from them.

Arrays are `[G, n, C]`: landscapes, cells, configurations; see `linear_blocks` for the representation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from plural_jax.density.core import INFO_DIMS, DensityInfo, DensityState, Problem, dot, summarize

_LOG2 = float(np.log(2.0))
#: Cells come in a multiple of this, so that sums over them can begin with a few equal slices.
CELL_SLICES = 4
#: A variance from raw moments may be this many times smaller than the second moment; below, it is summed anew.
_MAX_CANCELLATION = 16.0


class Masses(NamedTuple):
    """p = q 2^(E - scale) with E = min(exponent - (scale - depth), 0), zero in cells that are not deep; see `Format`.

    Attributes:
        q: floats, [G, n, C]; 0 where there is no mass.
        exponent: binary exponents of p 2^scale as they were at the last fold, [G, n, C].
    """

    q: Array
    exponent: Array


class Format(NamedTuple):
    """How masses use the range of a floating-point type: its integer twin, mantissa bits and exponent bias."""

    dtype: Any
    bits: Any
    mantissa: int
    bias: int

    @classmethod
    def of(cls, dtype: Any) -> Format:
        """The format of float32 or float64."""
        limits = jnp.finfo(dtype)
        return cls(dtype, {32: jnp.int32, 64: jnp.int64}[limits.bits], limits.nmant, limits.maxexp - 1)

    @property
    def depth(self) -> int:
        """Masses below 2^-depth, the smallest normal number, are deep."""
        return self.bias - 1

    @property
    def scale(self) -> int:
        """Bits that a deep cell may lose in a block; the rest of the range is headroom for sums of squared rewards."""
        return 3 * self.depth // 4

    @property
    def shallowest(self) -> int:
        """Exponent that q has in every deep cell after a fold."""
        return self.scale - self.depth

    def from_log(self, log_p: Array) -> Masses:
        """Masses of log-masses."""
        live = log_p > -jnp.inf
        finite = jnp.where(live, log_p, 0.0)
        whole = jnp.floor(finite / _LOG2)
        deep_q = jnp.exp(finite - whole * _LOG2) * 2.0**self.shallowest
        q = jnp.where(whole < -self.depth, deep_q, jnp.exp(finite) * 2.0**self.scale)
        return Masses(jnp.where(live, q, 0.0), whole.astype(jnp.int32) + self.scale)

    def to_log(self, masses: Masses) -> Array:
        """Log-masses, not normalized."""
        q, exponent = self.fold(masses)
        log_q = jnp.log(jnp.where(q > 0, q * 2.0**-self.scale, 1.0))
        return jnp.where(q > 0, self._deeper(exponent).astype(self.dtype) * _LOG2 + log_q, -jnp.inf)

    def fold(self, masses: Masses) -> Masses:
        """The same masses with the exponent brought up to date: q = p 2^scale, or 2^shallowest if that is more."""
        exponent = (
            (self.as_bits(masses.q) >> self.mantissa) - self.bias + self._deeper(masses.exponent).astype(self.bits)
        )
        exponent = jnp.where(masses.q > 0, exponent, 0).astype(jnp.int32)
        # The exponents first, then q from the new ones: so XLA updates both in place, without copies in the loop.
        exponent, q = jax.lax.optimization_barrier((exponent, masses.q))
        fraction = self.as_bits(q) & ((1 << self.mantissa) - 1)
        field = jnp.maximum(exponent, self.shallowest).astype(self.bits) + self.bias
        folded = jax.lax.bitcast_convert_type(fraction | (field << self.mantissa), self.dtype)
        return Masses(jnp.where(q > 0, folded, 0.0), exponent)

    def as_bits(self, q: Array) -> Array:
        """The same bits as integers."""
        return jax.lax.bitcast_convert_type(q, self.bits)

    def _deeper(self, exponent: Array) -> Array:
        """E."""
        return jnp.minimum(exponent - self.shallowest, 0)


def mix(u: Array, tilt: Array) -> Array:
    """sum_i u_i e_i(x) for u [G, m, C] and tilts [G, m, n]: [G, n, C].

    Written out, because XLA fuses a sum of products into what follows, but not a matrix product.
    """
    terms = [u[:, i, None, :] * tilt[:, i, :, None] for i in range(u.shape[1])]
    return sum(terms[1:], start=terms[0])


def per_configuration(function: Callable[[Problem, Any, Array], Any]) -> Callable[[Problem, Any, Array, Array], Any]:
    """Turn a function of one (problem, multiplier, log_p) into one of all (problem, multiplier, phi, log_p)."""

    def one(problem: Problem, multiplier: Any, phi: Array, log_p: Array) -> Any:
        return function(problem._replace(phi=phi), multiplier, log_p)

    return jax.vmap(jax.vmap(one, (None, None, 1, 1), -1))


def observer(
    form: Format, problem: Problem, multiplier: Any, tilt: Array, phi: Array, live: Array
) -> Callable[[Masses, Array, Array], DensityInfo]:
    """A function of (masses, z, trusted) that returns the `DensityInfo` of every configuration, fields [G, (m), C].

    Where `trusted` is false, sums over q mean nothing, and the reference summary is used. Most sums over cells are one
    product with a table of rows. Raw second moments suffice for most variances; where their digits cancel, all are
    summed again about the means.
    """
    unit = 2.0**-form.scale
    m = phi.shape[1]
    shifted = problem.rewards - problem.best
    table = jnp.concatenate([shifted, shifted * shifted, problem.basins, problem.outside[:, None]], axis=1)
    offset = problem.best / problem.temperature[:, None, None]
    # Tilts are zero in cells without mass, so W needs a mask only where configurations differ in what has mass.
    weight = live.astype(form.dtype) if live.shape[2] > 1 else 1.0
    outside = problem.outside[:, :, None]

    def central(q: Array, mean: Array) -> Array:
        # Squares about a configuration's own mean are no common table: one preference after another.
        squares = [q * jnp.square(shifted[:, i, :, None] - mean[:, i, None, :]) for i in range(m)]
        return jnp.stack([_sum(x) for x in squares], axis=1) * unit

    def fast(masses: Masses, z: Array) -> DensityInfo:
        first, second, basin, outside_mass = jnp.split(dot(table, masses.q) * unit, [m, 2 * m, 3 * m], axis=1)
        variance = second - first * first
        keeps_digits = jnp.all(variance * _MAX_CANCELLATION >= second)
        w = mix(phi / z, tilt) * weight
        highest_outside, highest = _maxima(w * outside, w)
        log_z = jnp.log(z) + offset
        return DensityInfo(
            reward_mean=problem.best + first,
            reward_variance=jax.lax.cond(keeps_digits, lambda q, mean: variance, central, masses.q, first),
            log_z=log_z,
            entropy=_entropy(form, masses.q),
            basin_mass=basin,
            outside_mass=outside_mass[:, 0],
            log_sup_w_outside=jnp.log(highest_outside),
            objective=jnp.sum(phi * log_z, axis=1),
            log_max_w=jnp.log(highest),
        )

    def careful(masses: Masses, z: Array) -> DensityInfo:
        def one(problem: Problem, multiplier: Any, log_p: Array) -> DensityInfo:
            return summarize(problem, DensityState(log_p, multiplier(problem, log_p)))

        return per_configuration(one)(problem, multiplier, phi, form.to_log(masses))

    return lambda masses, z, trusted: jax.lax.cond(trusted, fast, careful, masses, z)


def pack(info: DensityInfo) -> Array:
    """All fields below one another, [G, rows, C]: one array is written faster than nine."""
    return jnp.concatenate([x if x.ndim == 3 else x[:, None] for x in info], axis=1)


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
    first, *others = jnp.split(terms, CELL_SLICES, axis=1)
    partial_sums = sum(others, start=first)
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
