"""Exact assignments of many small matrices on a GPU: one warp solves one matrix.

    argmin over permutations s of sum_j cost[j, s_j],    B x B

By shortest augmenting paths, as everywhere else: rows are assigned one after another; from each a Dijkstra search over reduced
costs `cost[i, j] - u_i - v_j` finds the cheapest way to a free column, and the assignments along the way change. A search is up
to B steps that wait for each other, each a minimum over B columns. Plain XLA makes of every step several kernels and a question
to the host whether there is another one; here a step stays on the chip. 16 matrices of 128 take 1 ms on an H200 instead of 79.

Layout. The 32 threads of a warp hold everything that has a number for each column, B / 32 of each: potentials v, distances,
predecessors, the row that has the column, and that row's u. Minima and look-ups are shuffles without a barrier. The only thing
read in a step is one row of the costs, from the caches. Matrices wait for none of the others, and a GPU takes hundreds at a time.

The kernel is Pallas, lowered by Triton; see `plural_jax._pallas`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

#: Columns at most: 16 for each thread, 96 registers with all that belongs to them.
MOST = 512
_LANES = 32
#: Sums of so many of them are still finite.
_LARGEST = 1e30


class _Search(NamedTuple):
    """What a search carries from step to step; a number for each column unless said otherwise.

    Attributes:
        distance: the shortest way to it that is known.
        before: the row from which that way comes.
        done: 1 where the shortest way is final.
        row, potential: the row that was reached last, and its u, [].
        length: of the way to it, [].
        free: the free column that was reached, or -1, [].
    """

    distance: Array
    before: Array
    done: Array
    row: Array
    potential: Array
    length: Array
    free: Array


def assign(cost: Array, *, interpret: bool = False) -> Array:
    """The cheapest assignment of every matrix.

    Args:
        cost: float32 [S, B, B] with B up to `MOST`; NaN is read as zero, and what is beyond 1e30 as that.
        interpret: run the same program by XLA, slowly, on any device.

    Returns:
        The column of every row, int32 [S, B].

    Source: Jonker and Volgenant 1987; Crouse 2016, for the form without an initial guess.
    """
    from jax.experimental import pallas as pl  # here, because importing it takes a while and few need it
    from jax.experimental.pallas import triton

    num, size, _ = cost.shape
    columns = max(_LANES, 1 << (size - 1).bit_length())
    # Costs that are not finite, after a training that diverged, would leave a search without an end.
    finite = jnp.clip(jnp.nan_to_num(cost.astype(jnp.float32)), -_LARGEST, _LARGEST)
    # Columns that are not there are done before a search begins.
    padded = jnp.pad(finite, ((0, 0), (0, 0), (0, columns - size)))
    rows_of_columns = pl.pallas_call(
        partial(_program, size, columns),
        grid=(num,),
        in_specs=[pl.BlockSpec((None, size, columns), lambda k: (k, np.int32(0), np.int32(0)))],
        out_specs=pl.BlockSpec((None, columns), lambda k: (k, np.int32(0))),
        out_shape=jax.ShapeDtypeStruct((num, columns), jnp.int32),
        compiler_params=triton.CompilerParams(num_warps=1, num_stages=1),
        interpret=interpret,
        name="assignments",
    )(padded)[:, :size]
    # The inverse permutation.
    place = jnp.broadcast_to(jnp.arange(size, dtype=jnp.int32), (num, size))
    return jax.vmap(lambda rows, place: jnp.zeros(size, jnp.int32).at[rows].set(place))(rows_of_columns, place)


def _program(size: int, columns: int, cost: Any, rows: Any) -> None:
    """One matrix: what a thread block does."""
    place = jax.lax.broadcasted_iota(jnp.int32, (columns,), 0)
    far, none = jnp.float32(np.finfo(np.float32).max), jnp.int32(-1)

    def at(x: Array, j: Array) -> Array:
        """x[j]; every thread looks among its own, and all learn the sum."""
        return jnp.sum(jnp.where(place == j, x, jnp.zeros((), x.dtype)), dtype=x.dtype)

    def another_row(i: Array, now: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        owner, u, v = now  # of each column: its row or -1, that row's potential, its own

        def step(c: _Search) -> _Search:
            way = c.length - c.potential + cost[c.row, :] - v
            shorter = (c.done == 0) & (way < c.distance)
            distance = jnp.where(shorter, way, c.distance)
            before = jnp.where(shorter, c.row, c.before)
            open_distance = jnp.where(c.done == 0, distance, far)
            length = jnp.min(open_distance)
            # Among the nearest the last one, so that one reduction says which; a minimum keeps it open at least.
            j = jnp.max(jnp.where((open_distance == length) & (c.done == 0), place, none))
            row = at(owner, j)
            return _Search(
                distance=distance,
                before=before,
                done=jnp.where(place == j, jnp.int32(1), c.done),
                row=row,
                potential=at(u, j),
                length=length,
                free=jnp.where(row < 0, j, none),
            )

        start = _Search(
            distance=jnp.full((columns,), far),
            before=jnp.full((columns,), none),
            done=jnp.where(place < size, jnp.int32(0), jnp.int32(1)),
            row=i,
            potential=jnp.float32(0.0),
            length=jnp.float32(0.0),
            free=none,
        )
        found = jax.lax.while_loop(lambda c: c.free < 0, step, start)
        # Potentials keep reduced costs non-negative, and zero along the way.
        reached = (found.done == 1) & (place < size)
        slack = jnp.where(reached, found.length - found.distance, 0.0)
        v = v - slack
        u = u + jnp.where(owner >= 0, slack, 0.0)

        # Along the way back, each column takes the row before it, with that row's potential.
        def back(c: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            owner, u, j = c
            row = at(found.before, j)
            given = jnp.max(jnp.where(owner == row, place, none))  # the column that gives this row away
            potential = jnp.where(row == i, found.length, at(u, given))
            return (
                jnp.where(place == j, row, owner),
                jnp.where(place == j, potential, u),
                jnp.where(row == i, none, given),
            )

        owner, u, _ = jax.lax.while_loop(lambda c: c[2] >= 0, back, (owner, u, found.free))
        return owner, u, v

    zero = jnp.zeros((columns,), jnp.float32)
    owner, _, _ = jax.lax.fori_loop(
        jnp.int32(0), jnp.int32(size), another_row, (jnp.full((columns,), none), zero, zero)
    )
    rows[:] = owner
