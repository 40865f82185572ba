"""How many cells a summary must read: an order of the cells, and a proof that the rest changes no digit.

Rounds concentrate the mass, and soon most cells hold too little to change any number of a summary. Where mass can stay
is known beforehand: a limit has `sum_i u_i e_i(x) = 1` wherever it has mass, with `u_i = phi_i / z_i <= 1` (the
fair-share floor). So the cells are put in the order of `sum_i e_i`, largest first and a slice of neighbors at a time,
and a summary reads the first of them, one of a few static lengths.

No number relies on that order. In every slice

  * W is at most `sum_i u_i max e_i`, with the maximum over the slice;
  * the mass is at most what it was when last summed, times that bound in each round since;
  * so what the slice adds to each sum and each maximum of the summary is bounded.

A slice may be left out when that is below rounding of each sum, and not above the maxima, in every configuration. A
summary begins with the length that the last one found sufficient; if its own numbers do not prove it, it is taken again
over more cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from plural_jax.density.core import dot
from plural_jax.density.linear_blocks_masses import CELL_SLICES, add

#: Neighbors keep together in this many equal slices.
SLICES = 32
#: Slices that a summary may read, most first.
LENGTHS = (32, 20, 12, 8)
#: Slices after which arrays of masses are cut, because XLA copies a part of an array where a product reads it.
CUTS = (8, 32)
#: With fewer cells, or fewer entries of a landscape's configurations, the bookkeeping can cost more than it saves.
_FEWEST_CELLS, _FEWEST_ENTRIES = 2**10, 2**16


def multiple(num_cells: int) -> int:
    """What must divide the number of cells: slices where there may be some, else `CELL_SLICES`."""
    return SLICES if num_cells >= _FEWEST_CELLS else CELL_SLICES


def pays(num_cells: int, num_configurations: int) -> bool:
    """Whether this saves time for so many configurations of each landscape."""
    # On a GPU each choice would wait for the host.
    big = num_cells >= _FEWEST_CELLS and num_cells * num_configurations >= _FEWEST_ENTRIES
    return big and jax.default_backend() == "cpu"


def best_first(tilt: Array) -> Array:
    """Slices in the order in which summaries read them, [G, SLICES], for tilts [G, m, n]."""
    highest = jnp.max(jnp.sum(tilt, axis=1).reshape(tilt.shape[0], SLICES, -1), axis=2)
    return jnp.argsort(-highest, axis=1)


def reorder(x: Array, order: Array, axis: int) -> Array:
    """Put the slices of the cells of x [G, ...] in an order [G, SLICES]; its argsort undoes it."""
    slices = x.reshape(*x.shape[:axis], SLICES, -1, *x.shape[axis + 1 :])
    return jax.vmap(lambda s, o: jnp.take(s, o, axis=axis - 1))(slices, order).reshape(x.shape)


class Slices(NamedTuple):
    """Bounds that hold in each slice.

    Attributes:
        tilt: highest e_i, and highest e_i outside the basins, [G, m, 2 SLICES].
        in_basin: whether the slice has a cell of a basin, [G, SLICES, 1].
    """

    tilt: Array
    in_basin: Array

    @classmethod
    def of(cls, tilt: Array, basins: Array, outside: Array) -> Slices:
        """Bounds for tilts [G, m, n], the basins [G, m, n] and the cells outside [G, n]."""

        def highest(x: Array) -> Array:
            return jnp.max(x.reshape(*x.shape[:-1], SLICES, -1), axis=-1)

        return cls(
            jnp.concatenate([highest(tilt), highest(tilt * outside[:, None])], axis=2),
            jnp.max(highest(basins), axis=1)[:, :, None] > 0,
        )

    def masses(self, parts: Sequence[Array]) -> Array:
        """Mass of every slice, [G, SLICES, C], for the parts of masses [G, n, C] in any unit."""
        size = sum(q.shape[1] for q in parts) // SLICES
        slices = (q.reshape(q.shape[0], -1, size, q.shape[2]) for q in parts)
        # Products, with ones that are not shared: or XLA makes one product of all slices, and copies the masses for it.
        return jnp.concatenate([dot(jnp.ones((*x.shape[:2], 1, size), x.dtype), x)[:, :, 0] for x in slices], axis=1)

    def sufficient(self, mass: Array, w: Array, maxima: Array, limits: Array) -> Array:
        """Index of the fewest `LENGTHS` that are enough.

        Args:
            mass: bounds on the mass of every slice, [G, SLICES, C].
            w: bounds on W in every slice, then on W outside the basins, [G, 2 SLICES, C].
            maxima: highest W and highest W outside that a summary found, [G, 2, C].
            limits: mass that may be left out in a slice, and in a slice with a cell of a basin, [G, 2, C].
        """
        number = np.arange(1, SLICES + 1, dtype=np.int32)[:, None]
        below = (w[:, :SLICES] <= maxima[:, :1]) & (w[:, SLICES:] <= maxima[:, 1:])
        below &= mass <= jnp.where(self.in_basin, limits[:, 1:], limits[:, :1])  # false for NaN
        needed = jnp.max(jnp.where(below, 0, number))
        return add((needed <= length).astype(jnp.int32) for length in LENGTHS[1:])
