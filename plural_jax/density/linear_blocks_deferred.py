"""Cells that change no sum are multiplied later, many rounds at once.

Rounds concentrate the mass. Once the slices behind the first ones (`linear_blocks_prefix`) add too little to change a digit of
any normalizer, rounds need the first cells alone, and the others wait: their masses are multiplied by the W of all rounds
of a block at its end. That is exact, since W is known in every cell from the coefficients of a stride (`linear_blocks_strides`).

At once it is also less work. With `M = sum_i e_i` and the shares `a_i = e_i / M`, which sum to one, W of two preferences is
`M (u_1 a_1 + u_2 a_2)`, and that of `DEGREE` rounds a polynomial with positive coefficients, so that no digit cancels:

    W_1 ... W_d = M^d sum_j c_j a_1^(d-j) a_2^j.

The powers of the shares are a table, and the coefficients do not depend on the cell: d + 2 operations instead of 3 d, and q is
read and written once. Rounds that were not taken are the factor `a_1 + a_2 = 1`. With three preferences and more such a
polynomial has too many terms; the W of a block's rounds are then multiplied one after another.

A power of a share may underflow. What is lost is at most `2^-depth` times a coefficient, and a coefficient at most
`binom(d, j) max W^d`, where W is at least w_low: the loss is below rounding while `(max W / w_low)^d` is small enough.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from itertools import pairwise
from math import comb
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import Array

from plural_jax.density.linear_blocks_masses import Masses, Parts, add, in_place, mix

if TYPE_CHECKING:
    from plural_jax.density.linear_blocks import Measured, Setting
    from plural_jax.density.linear_blocks_strides import Stride, Strides

#: Rounds of a block at most: with rewards that range over a few units the range of float32 allows as many.
ROUNDS = 12
#: Rounds that make one polynomial. More need larger powers, which underflow sooner, and no fewer operations.
DEGREE = 4
#: A block begins with deferred cells if what they add may grow by this factor before it counts.
MARGIN = 4.0


class Deferred:
    """Rounds of the first part of the masses, and then of the others."""

    def __init__(self, setting: Setting, strides: Strides) -> None:
        """For cells in the order of `best_first`, cut by it."""
        self._setting, self._strides = setting, strides
        form, tilt, cuts = setting.form, setting.tilt, setting.cuts
        self._parts = [tilt[:, :, a:b] for a, b in pairwise(cuts[1:])]
        self._polynomial = tilt.shape[1] <= 2
        bits = (form.depth - form.mantissa - 4 - comb(DEGREE, DEGREE // 2).bit_length() - DEGREE) // DEGREE
        self._spread = 2.0**bits if self._polynomial else float("inf")
        if self._polynomial:
            self._tables = [_tables(part) for part in self._parts]

    def begin(self, masses: Parts, others: Array) -> tuple[Measured, Stride, Array]:
        """What single rounds read off the masses, the first stride, and a bound on what the others add to a normalizer, [].

        Args:
            masses: all parts.
            others: a bound that may be too high; where it says that the others may wait, they are not read.
        """
        first = self._strides.sums(masses[:1])

        def read(x: tuple[Array, Stride, Array, Array]) -> tuple[Array, Stride, Array, Array]:
            rest = self._strides.sums(masses[1:], 1)
            total = first + rest
            others = jnp.max(rest[:, : self._setting.tilt.shape[1]])
            return total, self._strides.next(total), others, jnp.zeros((), bool)

        # At most once; a loop, because XLA copies what passes through a cond.
        stride = self._strides.next(first)
        known = first, stride, others, ~self.may_begin(others, stride)
        total, stride, others, _ = jax.lax.while_loop(lambda x: x[3], read, known)
        return self._strides.measured(total), stride, others

    def may_begin(self, others: Array, stride: Stride) -> Array:
        """Whether the others may wait for some rounds."""
        return self._may_wait(MARGIN * others, stride.highest)

    def __call__(self, masses: Parts, others: Array, stride: Stride, limit: Array) -> tuple[Parts, Array, Array]:
        """As many rounds as possible up to a limit of at most `ROUNDS`, their number, and the bound after them."""
        most = ROUNDS // self._strides.num_rounds
        taken = self._strides.take(masses[:1], stride, limit, others, self._may_wait, most)
        record = taken.record
        assert record is not None
        # At most once; a loop, because XLA copies what passes through a cond.
        rest, _ = jax.lax.while_loop(
            lambda x: x[1],
            lambda x: (self._catch_up(x[0], record, taken.num_rounds), jnp.zeros((), bool)),
            (masses[1:], taken.num_rounds > 0),
        )
        return (*taken.masses, *rest), taken.num_rounds, taken.others

    def _may_wait(self, others: Array, highest: Array) -> Array:
        """Whether so much changes no digit of a normalizer, and W has not too large a range for a polynomial."""
        s = self._setting
        w_max = jnp.maximum(highest[0], highest[1])
        others = others * jnp.maximum(highest[2], 1.0)
        return (others * s.coarse * w_max <= 1) & (w_max <= self._spread * s.w_low)

    def _catch_up(self, masses: Parts, record: Array, num_rounds: Array) -> Parts:
        """The other parts after the first `num_rounds` of strides with coefficients [strides, G, rows, C]."""
        factor = self._by_polynomials if self._polynomial else self._one_by_one
        return tuple(Masses(factor(k, part.q, record, num_rounds), part.exponent) for k, part in enumerate(masses))

    def _by_polynomials(self, part: int, q: Array, record: Array, num_rounds: Array) -> Array:
        powers, scales = self._tables[part]
        rows = record.shape[2]
        together = DEGREE // self._strides.num_rounds
        first = jnp.arange(record.shape[0], dtype=jnp.int32) * self._strides.num_rounds
        unit = jnp.asarray([comb(rows - 1, j) for j in range(rows)], q.dtype)[:, None]
        record = jnp.where((first < num_rounds)[:, None, None, None], record, unit)
        polynomials = []
        for k in range(0, record.shape[0], together):
            scale = scales[jnp.clip(num_rounds - k * self._strides.num_rounds, 0, DEGREE)]
            polynomials.append((_coefficients(record[k : k + together]), scale))

        def multiply(q: Array, cells: Callable[[Array, int], Array]) -> Array:
            for coefficients, scale in polynomials:
                q = q * mix(coefficients, cells(powers, 2)) * cells(scale, 1)[:, :, None]
            return q

        return in_place(multiply, q)

    def _one_by_one(self, part: int, q: Array, record: Array, num_rounds: Array) -> Array:
        for t in range(record.shape[0]):
            q = q * jnp.where(t < num_rounds, mix(record[t], self._parts[part]), 1.0)
        return q


def _tables(tilt: Array) -> tuple[Array, Array]:
    """Products of the shares, [G, rows, n], and powers of M, [DEGREE + 1, G, n], for tilts of one or two preferences."""
    total = jnp.sum(tilt, axis=1)
    total = jnp.where(total > 0, total, 1.0)  # a cell without mass
    shares = tilt / total[:, None]
    a, b = shares[:, 0], shares[:, -1]
    rows = [a**0] if tilt.shape[1] == 1 else [a ** (DEGREE - j) * b**j for j in range(DEGREE + 1)]
    return jnp.stack(rows, axis=1), jnp.stack([total**k for k in range(DEGREE + 1)])


def _coefficients(factors: Array) -> Array:
    """Of the product of polynomials with coefficients [number, G, rows, C], [G, rows of the product, C]."""

    def times(a: list[Array], b: Array) -> list[Array]:
        size = b.shape[1]
        return [
            add(a[i] * b[:, k - i] for i in range(max(0, k - size + 1), min(k, len(a) - 1) + 1))
            for k in range(len(a) + size - 1)
        ]

    c = jnp.stack(reduce(times, factors[1:], list(jnp.moveaxis(factors[0], 1, 0))), axis=1)
    # Or XLA computes them anew in every cell.
    return jax.lax.optimization_barrier(c)
