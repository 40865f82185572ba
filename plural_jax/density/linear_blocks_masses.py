"""Masses in linear space that do not underflow.

Arrays are `[G, n, C]`: landscapes, cells, configurations; see `linear_blocks` for the representation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import reduce
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

_LOG2 = float(np.log(2.0))
#: Cells come in a multiple of this, so that sums over them can begin with a few equal slices.
CELL_SLICES = 4
#: Arrays of more entries than this are updated in so many parts.
_ENTRIES_AT_ONCE, _CHUNKS = 2**15, 2


class Masses(NamedTuple):
    """p = q 2^(E - scale) with E = min(exponent - (scale - depth), 0), zero in cells that are not deep; see `Format`.

    Attributes:
        q: floats, [G, n, C]; 0 where there is no mass.
        exponent: binary exponents of p 2^scale as they were at the last fold, [G, n, C].
    """

    q: Array
    exponent: Array


#: The cells of a density, cut into some parts.
Parts = tuple[Masses, ...]


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

    def from_log(self, log_p: Array, cuts: tuple[int, ...]) -> Parts:
        """Masses of log-masses, cut after these numbers of cells (the first is 0, the last n)."""
        return tuple(self._from_log(log_p[:, a:b]) for a, b in pairwise(cuts))

    def to_log(self, parts: Parts) -> Array:
        """Log-masses, not normalized."""
        return jnp.concatenate([self._to_log(masses) for masses in parts], axis=1)

    def _from_log(self, log_p: Array) -> Masses:
        live = log_p > -jnp.inf
        finite = jnp.where(live, log_p, 0.0)
        whole = jnp.floor(finite / _LOG2)
        deep_q = jnp.exp(finite - whole * _LOG2) * 2.0**self.shallowest
        # At the border of the range both are the same, but a power that rounding puts below it is flushed to zero.
        q = jnp.where(whole <= -self.depth, deep_q, jnp.exp(finite) * 2.0**self.scale)
        return Masses(jnp.where(live, q, 0.0), whole.astype(jnp.int32) + self.scale)

    def _to_log(self, masses: Masses) -> Array:
        q, exponent = self.fold(masses)
        log_q = jnp.log(jnp.where(q > 0, q * 2.0**-self.scale, 1.0))
        return jnp.where(q > 0, self._deeper(exponent).astype(self.dtype) * _LOG2 + log_q, -jnp.inf)

    def fold(self, masses: Masses) -> Masses:
        """The same masses with the exponent brought up to date: q = p 2^scale, or 2^shallowest if that is more."""
        # The exponents first, then q from the new ones: so XLA updates both in place, without copies in the loop.
        exponent = in_place(lambda old, cells: self._exponent(cells(masses.q, 1), old), masses.exponent)
        exponent, q = jax.lax.optimization_barrier((exponent, masses.q))
        return Masses(in_place(lambda q, cells: self._folded(q, cells(exponent, 1)), q), exponent)

    def _exponent(self, q: Array, old: Array) -> Array:
        new = (self.as_bits(q) >> self.mantissa) - self.bias + self._deeper(old).astype(self.bits)
        return jnp.where(q > 0, new, 0).astype(jnp.int32)

    def _folded(self, q: Array, exponent: Array) -> Array:
        fraction = self.as_bits(q) & ((1 << self.mantissa) - 1)
        field = jnp.maximum(exponent, self.shallowest).astype(self.bits) + self.bias
        return jnp.where(q > 0, jax.lax.bitcast_convert_type(fraction | (field << self.mantissa), self.dtype), 0.0)

    def as_bits(self, q: Array) -> Array:
        """The same bits as integers."""
        return jax.lax.bitcast_convert_type(q, self.bits)

    def _deeper(self, exponent: Array) -> Array:
        """E."""
        return jnp.minimum(exponent - self.shallowest, 0)


def in_place(update: Callable[[Array, Callable[[Array, int], Array]], Array], x: Array) -> Array:
    """New values of an array [G, n, C], on a CPU a part of the cells after another where they are many.

    XLA splits an operation on half a megabyte over all threads of a CPU, also over those that compute for another device, so
    that each core's cache is filled with what the other core has written. It leaves alone what updates a part of an array.

    Args:
        update: of the array in some cells, and a function that takes these cells out of any other array along an axis.
        x: the array.
    """
    groups, n, columns = x.shape
    if jax.default_backend() != "cpu" or n % _CHUNKS or groups * n * columns <= _ENTRIES_AT_ONCE:
        return update(x, lambda other, axis: other)

    def chunk(k: Array, x: Array) -> Array:
        size = n // _CHUNKS

        def cells(other: Array, axis: int) -> Array:
            return jax.lax.dynamic_slice_in_dim(other, k * size, size, axis)

        return jax.lax.dynamic_update_slice_in_dim(x, update(cells(x, 1), cells), k * size, 1)

    return jax.lax.fori_loop(0, _CHUNKS, chunk, x)


def mix(u: Array, tilt: Array) -> Array:
    """sum_i u_i e_i(x) for u [G, m, C] and tilts [G, m, n]: [G, n, C].

    Written out, because XLA fuses a sum of products into what follows, but not a matrix product.
    """
    return add(u[:, i, None, :] * tilt[:, i, :, None] for i in range(u.shape[1]))


def add(terms: Iterable[Array]) -> Array:
    """Sum of at least one array."""
    return reduce(jnp.add, terms)
