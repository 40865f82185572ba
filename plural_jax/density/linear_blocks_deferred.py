"""Cells that change no sum are multiplied later, many rounds at once.

Rounds concentrate the mass. Once the slices behind the first ones (`linear_blocks_prefix`) hold too little to change a digit of
any normalizer, rounds need the first cells alone, and the others wait: their masses are multiplied by the W of all rounds
of a block at its end. That is exact, since W is known in every cell from the weights u of a round.

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

from functools import reduce
from itertools import pairwise
from math import comb
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from plural_jax.density.linear_blocks_masses import Masses, Parts, add, mix
from plural_jax.density.linear_blocks_prefix import CUTS

if TYPE_CHECKING:
    from plural_jax.density.linear_blocks import Measured, Rule, Setting

#: Rounds of a block at most: with rewards that range over a few units the range of float32 allows as many.
ROUNDS = 12
#: Rounds that make one polynomial. More need larger powers, which underflow sooner, and no fewer operations.
DEGREE = 4
#: A block begins with deferred cells if their mass may grow by this factor before it counts.
MARGIN = 4.0


class _Narrow(NamedTuple):
    """What rounds of the first part carry.

    Attributes:
        q: masses of the first part.
        measured: what the rule reads off them.
        weights: u of every round so far, [ROUNDS, G, m, C].
        growth: bound on what the rounds so far and the next one multiply a mass by, [].
        others: bound on the mass of the other parts, [].
        age: rounds so far, [].
    """

    q: Array
    measured: Measured
    weights: Array
    growth: Array
    others: Array
    age: Array


class Deferred:
    """Rounds of the first part of the masses, and then of the others."""

    def __init__(self, setting: Setting, rule: Rule) -> None:
        """For cells in the order of `best_first`, cut by it, with the rule of the rounds."""
        self._setting, self._rule = setting, rule
        form, tilt, cuts = setting.form, setting.tilt, setting.cuts
        self._parts = [tilt[:, :, a:b] for a, b in pairwise(cuts[1:])]
        self._highest = jnp.max(tilt[:, :, cuts[1] :], axis=2)[:, :, None]
        self._polynomial = tilt.shape[1] <= 2
        bits = (form.depth - form.mantissa - 4 - comb(DEGREE, DEGREE // 2).bit_length() - DEGREE) // DEGREE
        self._spread = 2.0**bits if self._polynomial else float("inf")
        if self._polynomial:
            self._tables = [_tables(part) for part in self._parts]

    def may_begin(self, bounds: Array, measured: Measured) -> Array:
        """Whether the others may wait for some rounds; `bounds` are those on q in each slice, [G, SLICES, C]."""
        return self._may_wait(MARGIN * self._others(bounds), measured)

    def __call__(self, masses: Parts, bounds: Array, measured: Measured, limit: Array) -> tuple[Parts, Array]:
        """As many rounds as possible up to a limit of at most `ROUNDS`, and their number."""
        setting, rule = self._setting, self._rule
        exponent = masses[0].exponent

        def go_on(c: _Narrow) -> Array:
            return (c.age < limit) & rule.trusted(c.growth, c.measured) & self._may_wait(c.others, c.measured)

        def body(c: _Narrow) -> _Narrow:
            u = c.measured.weights
            q = c.q * rule.w(c.measured, 0)
            new = rule.measure((Masses(q, exponent),))
            return _Narrow(
                q=q,
                measured=new,
                weights=jax.lax.dynamic_update_index_in_dim(c.weights, u, c.age, 0),
                growth=c.growth * new.w_max,
                others=c.others * jnp.max(add(u[:, i] * self._highest[:, i] for i in range(u.shape[1]))),
                age=c.age + 1,
            )

        start = _Narrow(
            q=masses[0].q,
            measured=measured,
            weights=jnp.zeros((ROUNDS, *setting.phi.shape), setting.form.dtype),
            growth=measured.w_max,
            others=self._others(bounds),
            age=jnp.zeros((), jnp.int32),
        )
        c = jax.lax.while_loop(go_on, body, start)
        # At most once; a loop, because XLA copies what passes through a cond.
        others, _ = jax.lax.while_loop(
            lambda x: x[1],
            lambda x: (self._catch_up(x[0], c.weights, c.age), jnp.zeros((), bool)),
            (masses[1:], c.age > 0),
        )
        return (Masses(c.q, exponent), *others), c.age

    def _others(self, bounds: Array) -> Array:
        """Bound on the mass of all other parts, in no configuration larger, []."""
        return jnp.max(jnp.sum(bounds[:, CUTS[0] :], axis=1)) * 2.0**-self._setting.form.scale

    def _may_wait(self, others: Array, measured: Measured) -> Array:
        """Whether so much changes no digit of a normalizer, and W has not too large a range for a polynomial."""
        s = self._setting
        return (others * s.coarse * measured.w_max <= 1) & (measured.w_max <= self._spread * s.w_low)

    def _catch_up(self, masses: Parts, weights: Array, num_rounds: Array) -> Parts:
        """The other parts after the first `num_rounds` of weights [ROUNDS, G, m, C]."""
        used = jnp.arange(ROUNDS, dtype=jnp.int32)[:, None, None, None] < num_rounds
        weights = jnp.where(used, weights, 1.0)
        factor = self._by_polynomials if self._polynomial else self._one_by_one
        return tuple(Masses(factor(k, part.q, weights, num_rounds), part.exponent) for k, part in enumerate(masses))

    def _by_polynomials(self, part: int, q: Array, weights: Array, num_rounds: Array) -> Array:
        powers, scales = self._tables[part]
        for first in range(0, ROUNDS, DEGREE):
            scale = scales[jnp.clip(num_rounds - first, 0, DEGREE)]
            q = q * mix(_coefficients(weights[first : first + DEGREE]), powers) * scale[:, :, None]
        return q

    def _one_by_one(self, part: int, q: Array, weights: Array, num_rounds: Array) -> Array:
        for t in range(ROUNDS):
            q = q * jnp.where(t < num_rounds, mix(weights[t], self._parts[part]), 1.0)
        return q


def _tables(tilt: Array) -> tuple[Array, Array]:
    """Products of the shares, [G, rows, n], and powers of M, [DEGREE + 1, G, n], for tilts of one or two preferences."""
    total = jnp.sum(tilt, axis=1)
    total = jnp.where(total > 0, total, 1.0)  # a cell without mass
    shares = tilt / total[:, None]
    a, b = shares[:, 0], shares[:, -1]
    rows = [a**0] if tilt.shape[1] == 1 else [a ** (DEGREE - j) * b**j for j in range(DEGREE + 1)]
    return jnp.stack(rows, axis=1), jnp.stack([total**k for k in range(DEGREE + 1)])


def _coefficients(weights: Array) -> Array:
    """Of the product of the linear forms with weights [DEGREE, G, m, C], [G, rows, C]."""

    def times(c: list[Array], u: Array) -> list[Array]:
        if u.shape[1] == 1:
            return [c[0] * u[:, 0]]
        raised, kept = [x * u[:, 1] for x in c], [x * u[:, 0] for x in c]
        return [kept[0], *(x + y for x, y in zip(kept[1:], raised[:-1], strict=True)), raised[-1]]

    c = jnp.stack(reduce(times, weights[1:], list(jnp.moveaxis(weights[0], 1, 0))), axis=1)
    # Or XLA computes them anew in every cell.
    return jax.lax.optimization_barrier(c)
