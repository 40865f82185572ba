"""Many finite-K rounds in linear space, as matrix products: one function of x for each node of the quadrature.

With the nodes s_j of `quadrature`, and the cells' `A_i(x) = exp((r_i(x) - r_i*) / tau)`, a round is two products,

    L_ij = sum_x p(x) exp(-s_j A_i(x)),    W(x) = sum_ij u_ij A_i(x) exp(-s_j A_i(x)),
    u_ij = phi_i w_j L_ij^(K-1),

and everything between them happens at the m J nodes, not at the n cells. In log space W is a logarithm of a sum of
exponentials for every cell and preference, which costs more than both products; in linear space it is the second product.

Layout: one table for each product, `[G, m J, n]` and `[G, n, m J]`, so that both are read along their rows and the
configurations are the columns of both: `[m J, n] @ [n, C]` and `[n, m J] @ [m J, C]`, 4 m J n C operations. Where `s <= 1`
the first table holds `1 - exp(-s A)`, which keeps the digits of L near 1 (see `quadrature`).

A total mass of 1 + d would be (1 + d)^K after the next round, where a large pool forgets d: so a row of ones sums the mass
along with L, and both L and the new masses are divided by it.

An infinite pool among finite ones (K is data in a sweep) is the same program with another table: `A_i` in the place of its
first node gives z_i, and `u = phi_i / z_i` there and zero elsewhere is Eq. 5.

Bounds (see `linear_blocks`): H is increasing in A, so W is at most its value at A = 1, which the nodes give. A false mass of
f changes H_i(x) = E[K A / (A + sum of K - 1 others)] by at most `f K^2 A / (A + A')`, and H_i >= A; so it does not
matter while `f K^2` is below rounding of the smallest A. Also H >= A, hence `W >= w_low`. Nodes beyond the table, and
weights that overflow, leave a round to log space.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from plural_jax.density import many_rounds
from plural_jax.density.core import DensityInfo, DensityState, Problem, dot
from plural_jax.density.linear_blocks import Measured, Setting, run
from plural_jax.density.linear_blocks_masses import Parts, add
from plural_jax.density.quadrature import Nodes, log_node_weights


class Tables:
    """The rule of finite pools; see `linear_blocks.Rule`."""

    sorts: ClassVar[bool] = False
    columns: ClassVar[int] = 1
    #: Blocks compile for a second or two longer than single steps, which take 8 to 25 ns a cell with m = 2 and K = 10, three to
    #: six times as much: with less work than this a run that is made once gains less than it waits, and one that is made over
    #: and over loses 10 to 20 ms each time.
    fewest_cell_steps: ClassVar[int] = 2**20

    def __init__(self, setting: Setting) -> None:
        """See `linear_blocks.Rule`."""
        self._setting = setting
        nodes: Nodes = setting.multiplier.args[0]
        size = nodes.pool_size
        self._large = jnp.isinf(size)
        self._size = jnp.where(self._large, 2.0, size)
        groups, m, _, _, n = nodes.table.shape
        self._first = jnp.arange(nodes.log_t.shape[1], dtype=jnp.int32) == 0
        self._log_s, self._log_w = jax.vmap(lambda nodes: nodes.log_s)(nodes), nodes.log_w
        # Where no configuration has mass an atom may have any reward; it must not spoil the products.
        alive = setting.live.any(axis=2)[:, None]
        a = jnp.where(alive, jnp.exp(nodes.log_a), 0.0)[:, :, None]
        table = nodes.table.reshape(groups, m, -1, n)
        values = jnp.where(self._log_s[:, None, :, None] <= 0, 1 - table, table)
        only_first = jnp.where(self._first[:, None], a, 0.0)
        large = self._large[:, None, None, None]
        sums = jnp.where(large, only_first, table).reshape(groups, -1, n)
        sums = jnp.concatenate([sums, jnp.ones_like(sums[:, :1])], axis=1)
        factors = jnp.where(large, only_first, values * a).reshape(groups, -1, n)
        factors = jnp.swapaxes(factors, 1, 2)
        cells = list(pairwise(setting.cuts))
        self._sums, self._factors = [sums[:, :, a:b] for a, b in cells], [factors[:, a:b] for a, b in cells]
        self._tilts = [setting.tilt[:, :, a:b] for a, b in cells]
        # exp(-s) for every preference: the factor of a cell with A = 1.
        best = jnp.where(
            large[..., 0, 0], self._first.astype(a.dtype), jnp.exp(-jnp.exp(jnp.minimum(self._log_s, 60.0)))
        )
        self._best = jnp.tile(best, (1, m))[:, None]
        square = jnp.where(self._large, 1.0, self._size * self._size)
        lowest = jnp.min(jnp.where(alive, a[:, :, 0], 1.0), axis=(1, 2))
        self._tolerance = jnp.min(lowest / square) / setting.coarse
        self._complete = True if nodes.num_far is None else jnp.all((nodes.num_far == 0) | self._large)

    @staticmethod
    def fill_up(multiplier: Any, cells: int) -> Any:
        """Nodes for so many more cells."""
        if not cells:
            return multiplier
        nodes: Nodes = multiplier.args[0]

        def pad(x: Array) -> Array:
            return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, cells)], mode="edge")

        nodes = nodes._replace(log_a=pad(nodes.log_a), table=pad(nodes.table))
        return jax.tree_util.Partial(multiplier.func, nodes, *multiplier.args[1:])

    def measure(self, masses: Parts) -> Measured:
        """Weights of all nodes."""
        s = self._setting
        groups, m = s.phi.shape[:2]
        product = self._sum(self._sums, masses)
        total = product[:, -1:]
        product = (product[:, :-1] / total).reshape(groups, m, -1, product.shape[2])

        # Of each configuration, preference and landscape.
        of_columns = jax.vmap(log_node_weights, (1, None, None, None), 1)
        of_groups = jax.vmap(jax.vmap(of_columns, (0, None, None, None)))
        log_g = of_groups(product, self._log_s, self._log_w, self._size)
        large = self._large[:, None, None, None]
        tilted = jnp.where(self._first[:, None], 1 / product, 0.0)
        phi = s.phi[:, :, None]
        weights = jnp.where(phi > 0, phi * jnp.where(large, tilted, jnp.exp(log_g)), 0.0)
        weights = weights.reshape(groups, -1, weights.shape[3]) / total
        w = tuple(dot(part, weights) for part in self._factors) if s.observed else None
        return Measured(weights=weights, z=None, w_max=jnp.max(dot(self._best, weights)), w=w)

    def _sum(self, tables: list[Array], masses: Parts) -> Array:
        products = add(dot(table, part.q) for table, part in zip(tables, masses, strict=True))
        return products * 2.0**-self._setting.form.scale

    def w(self, measured: Measured, part: int) -> Array:
        """The second product."""
        return dot(self._factors[part], measured.weights) if measured.w is None else measured.w[part]

    def w_first(self, measured: Measured, length: int) -> Array:
        """The same in all cells, of which summaries here read every one."""
        return jnp.concatenate([self.w(measured, part) for part in range(len(self._factors))], axis=1)

    def normalizers(self, measured: Measured, masses: Parts) -> Array:
        """E_p[e_i], which only summaries need."""
        return self._sum(self._tilts, masses)

    def trusted(self, growth: Array, measured: Measured) -> Array:
        """False masses change no digit of W, no node is missing, and no weight has overflowed."""
        harmless = self._setting.false_mass(growth) <= self._tolerance
        return harmless & self._complete & jnp.all(jnp.isfinite(measured.weights))

    def strides(self) -> None:
        """W of the next round depends on powers of many sums: no second moments give it."""


def rounds(
    problem: Problem, multiplier: Any, key: Array | None, state: DensityState, num_steps: int, every: int
) -> tuple[DensityState, DensityInfo]:
    """`num_steps` finite-K rounds and the infos of every `every`-th; equal to repeated steps up to rounding."""
    del key  # the exact dynamics draw nothing
    # The loop over nodes beyond the table, whose length is data, has no derivatives in forward mode.
    reverse_only = multiplier.args[0].num_far is not None
    return many_rounds.rounds(xla_rounds, reverse_only, problem, multiplier, state, num_steps, every)


#: The rounds by plain XLA, on any device; see `many_rounds`.
xla_rounds = partial(run, Tables)
