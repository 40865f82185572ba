"""Two rounds from one reading of the masses.

The normalizers of the next round follow from second moments of this one, and the two factors are one polynomial:

    z_i' = E_p[e_i W] = sum_j u_j E_p[e_i e_j],    W W' = sum_{i <= j} c_ij e_i e_j,    u_i = phi_i / z_i,  u_i' = phi_i / z_i'

with `c_ii = u_i u_i'` and `c_ij = u_i u_j' + u_j u_i'`. All terms are positive, so that no digit cancels. With two preferences
a cell takes 9 operations where two single rounds take 10, but q is read and written half as often, which is what a core
waits for, and the small operations between two readings are needed half as often. With three preferences there would be 16
operations instead of 14: from there on a stride is one round.

What two rounds ask for is what each asks for. Besides, products `e_i e_j` may underflow where each e_i does not. What is
lost is at most `2^-depth` times a coefficient, c_ij is at most `2 max W max W'`, and the product is at least w_low^2.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations_with_replacement, pairwise
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from plural_jax.density.core import dot
from plural_jax.density.linear_blocks_masses import Masses, Parts, add, in_place, mix

if TYPE_CHECKING:
    from plural_jax.density.linear_blocks import Measured, Setting
    from plural_jax.density.tilt_blocks import Tilts

#: A stride is of two rounds with at most so many preferences.
_MOST_PREFERENCES = 2


class Stride(NamedTuple):
    """The next rounds.

    Attributes:
        coefficients: of their factor in each cell, [G, rows, C].
        highest: in no configuration larger, [4]: W of the first round and of the second; and for the cells behind the first
            part, the factor of the first round and that of all.
    """

    coefficients: Array
    highest: Array


class _Carry(NamedTuple):
    """What strides carry: few and small things, since on a CPU the smallest operation costs as much as a thousand masses.

    Attributes:
        masses: those parts of the density that the rounds read.
        coefficients: of the next stride, [G, rows, C].
        numbers: bound on what the rounds so far multiplied a mass by, bound on what the parts that are not read add to a
            normalizer, the number of rounds, and `highest` of the next stride, [7].
        record: coefficients of every stride and of the next, [most + 1, G, rows, C]; None where nobody needs them.
    """

    masses: Parts
    coefficients: Array
    numbers: Array
    record: Array | None


class Taken(NamedTuple):
    """Rounds that were taken.

    Attributes:
        masses: those parts of the density that the rounds read.
        record: coefficients of every stride, [most, G, rows, C], of those that were not taken anything; or None.
        others: bound on what the parts left out add to a normalizer now, [].
        num_rounds: their number, [].
    """

    masses: Parts
    record: Array | None
    others: Array
    num_rounds: Array


class Strides:
    """Rounds of large pools, as many at once as pays.

    Attributes:
        num_rounds: of a stride.
    """

    def __init__(self, setting: Setting, rule: Tilts) -> None:
        """For cells in the order in which they are kept, and the rule of single rounds."""
        self._setting, self._rule = setting, rule
        tilt, form = setting.tilt, setting.form
        m = tilt.shape[1]
        self.num_rounds = 2 if m <= _MOST_PREFERENCES else 1
        self._pairs = list(combinations_with_replacement(range(m), 2)) if self.num_rounds == 2 else []
        products = [tilt[:, i] * tilt[:, j] for i, j in self._pairs]
        rows = jnp.concatenate([tilt, *(x[:, None] for x in products)], axis=1)
        self._rows = [rows[:, :, a:b] for a, b in pairwise(setting.cuts)]
        factors = rows[:, m:] if self._pairs else tilt
        self._factors = [factors[:, :, a:b] for a, b in pairwise(setting.cuts)]
        behind = slice(setting.cuts[1] if len(setting.cuts) > 2 else 0, None)
        self._highest = [jnp.max(x[:, :, behind], axis=2)[:, :, None] for x in (tilt, factors)]
        self._spread = 2.0 ** (form.depth - form.mantissa - 6)

    def sums(self, masses: Parts, first: int = 0) -> Array:
        """Sums over parts from some first one on, the normalizers before all others, [G, rows, C]."""
        unit = 2.0**-self._setting.form.scale
        return add(dot(rows, part.q) for rows, part in zip(self._rows[first:], masses, strict=False)) * unit

    def begin(self, masses: Parts) -> tuple[Measured, Stride]:
        """What single rounds read off the masses, and the first stride."""
        total = self.sums(masses)
        return self.measured(total), self.next(total)

    def measured(self, total: Array) -> Measured:
        """What the rule of single rounds would read off the same masses."""
        return self._rule.measured(total[:, : self._setting.phi.shape[1]])

    def next(self, total: Array) -> Stride:
        """The rounds that follow from the sums over all masses that matter."""
        phi = self._setting.phi
        m = phi.shape[1]
        z = total[:, :m]
        u = phi / z
        following, coefficients = jnp.ones_like(z), u
        if self._pairs:
            moment = dict(zip(self._pairs, jnp.moveaxis(total[:, m:], 1, 0), strict=True))
            following = jnp.stack(
                [add(u[:, j] * moment[min(i, j), max(i, j)] for j in range(m)) for i in range(m)], axis=1
            )
            v = phi / following
            both = [u[:, i] * v[:, j] + (u[:, j] * v[:, i] if i < j else 0.0) for i, j in self._pairs]
            coefficients = jnp.stack(both, axis=1)
        first, all_rounds = self._highest
        # One maximum over all, [4, G, C], is one operation.
        bounds = [
            1 / jnp.min(z, axis=1),
            1 / jnp.min(following, axis=1),
            add(u[:, i] * first[:, i] for i in range(m)),
            add(coefficients[:, k] * all_rounds[:, k] for k in range(coefficients.shape[1])),
        ]
        # Or XLA computes the coefficients anew in every cell.
        return Stride(jax.lax.optimization_barrier(coefficients), jnp.max(jnp.stack(bounds), axis=(1, 2)))

    def _multiply(self, masses: Masses, coefficients: Array, part: int) -> Masses:
        q = in_place(lambda q, cells: q * mix(coefficients, cells(self._factors[part], 2)), masses.q)
        return Masses(q, masses.exponent)

    def may_go_on(self, highest: Array, growth: Array) -> Array:
        """Whether all rounds of a stride are right after those that multiplied a mass by `growth` at most."""
        first, second = highest[:2]
        lowest = self._setting.w_low
        known = self._rule.known(growth * first * second, jnp.maximum(first, second))
        return known & (first * second <= self._spread * lowest * lowest)

    def take(
        self,
        masses: Parts,
        stride: Stride,
        limit: Array,
        others: Array | None = None,
        may_wait: Callable[[Array, Array], Array] | None = None,
        most: int = 0,
    ) -> Taken:
        """As many strides of these masses as possible and at most `limit` rounds.

        Args:
            masses: all parts, or the first ones.
            stride: the first one.
            limit: rounds, [].
            others: bound on what the parts left out add to a normalizer, [], if there are any.
            may_wait: whether they may wait longer, for such a bound and `highest` of a stride.
            most: record so many strides.
        """
        k, dtype = self.num_rounds, self._setting.form.dtype

        def go_on(c: _Carry) -> Array:
            growth, others, age = c.numbers[:3]
            highest = c.numbers[3:]
            more = (age + k <= limit.astype(dtype)) & self.may_go_on(highest, growth)
            return more if may_wait is None else more & may_wait(others, highest)

        def body(c: _Carry) -> _Carry:
            masses = tuple(self._multiply(x, c.coefficients, part) for part, x in enumerate(c.masses))
            after = self.next(self.sums(masses))
            first, second, _, others = c.numbers[3:]
            numbers = jnp.maximum(c.numbers[:3] * jnp.stack([first * second, others, one]) + steps, lowest)
            record = c.record
            if record is not None:
                index = c.numbers[2].astype(jnp.int32) // k + 1
                record = jax.lax.dynamic_update_index_in_dim(record, after.coefficients, index, 0)
            return _Carry(masses, after.coefficients, jnp.concatenate([numbers, after.highest]), record)

        one, steps = jnp.ones((), dtype), jnp.asarray([0, 0, k], dtype)
        # A bound that is lost to underflow would bound nothing.
        lowest = jnp.asarray([0, 2.0 ** (20 - self._setting.form.depth), 0], dtype)
        numbers = jnp.stack([one, jnp.zeros_like(one) if others is None else others, jnp.zeros_like(one)])
        start = _Carry(
            masses,
            stride.coefficients,
            jnp.concatenate([numbers, stride.highest]),
            jnp.zeros((most + 1, *stride.coefficients.shape), dtype).at[0].set(stride.coefficients) if most else None,
        )
        c = jax.lax.while_loop(go_on, body, start)
        record = None if c.record is None else c.record[:most]
        return Taken(c.masses, record, c.numbers[1], c.numbers[2].astype(jnp.int32))
