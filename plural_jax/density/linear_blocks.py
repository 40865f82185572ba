"""Many rounds at the speed of plain multiplications, with the range of log space.

A round in log space costs exponentials and a logarithm per cell; in linear space it is one product and a few sums with
constant tables, since W is a sum of constant functions of x with weights that depend on the density:

    p(x) <- p(x) W(x),    W(x) = sum_k u_k w_k(x),    u = u(sums of p).

What these functions and sums are is said by a `Rule`: one tilt for each preference where the pool is large
(`tilt_blocks`), and one exponential for each node of the quadrature where it is finite (`matrix_blocks`). This file is
the loop around them, which keeps the masses in range.

Layout: masses are `[G, n, C]`: G landscapes, n cells, C configurations of each landscape that differ in phi or in
their start (see `many_rounds`), so that the sums of all configurations are matrix products `[rows, n] @ [n, C]`, and
every decision below is one for the whole batch.

Range: linear masses underflow, so each is kept as `p = q 2^(E - scale)` with a float q and an integer E <= 0, and E is
zero wherever p is a normal number. The other cells are *deep*: their true mass is below 2^-depth (depth is 126 in
float32), they matter in no sum, but they may grow back later. Writing q in place of p gives a deep cell a false mass of
at most 2^(1 - depth), as far below the sums as the true one, and leaves q so far above underflow that several rounds
only need `q <- q W`. These rounds form a *block*; at its end `fold` moves the binary exponent of q into E by integer
operations.

What bounds a block, for any landscape and start, with `e_i = exp((r_i - r_i*) / tau) <= 1`:

  * For pools of any size `W >= w_low = min_x sum_i phi_i e_i(x)`, since a sample is never kept with less than its own
    tilt: so no cell loses more than that factor in a round, and a block of `scale / log2(1 / w_low)` rounds loses none.
  * The rule knows a bound on W, so after some rounds the false mass is at most `n 2^(1 - depth)` times their product: a
    block goes on while the rule trusts its sums in spite of that.

Where not even one round fits (wild first rounds of a far start, rewards of 1e4), one round is taken in log space.

A summary costs several times a round, and reads only the first cells where that is enough: see `linear_blocks_prefix`. Between
two summaries rounds too take the first cells alone where the others change no digit: see `linear_blocks_deferred`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from plural_jax.density import linear_blocks_prefix as prefix
from plural_jax.density.core import DensityInfo, Problem
from plural_jax.density.linear_blocks_deferred import ROUNDS, Deferred
from plural_jax.density.linear_blocks_masses import CELL_SLICES, Format, Masses, Parts, mix
from plural_jax.density.linear_blocks_start import extremes, fill_up, tilts
from plural_jax.density.linear_blocks_strides import Stride, Strides
from plural_jax.density.linear_blocks_summary import Observer, num_rows, unpack
from plural_jax.density.many_rounds import in_pieces, plain
from plural_jax.landscape import normalize

#: On a CPU, masses that are computed together: in float32 half a megabyte, which with its tables fits a core's own cache.
_ENTRIES_AT_A_TIME = 2**17
#: With several host devices, masses in one part.
_ENTRIES_OF_A_PART = 2**15
#: No cells are deferred in runs of fewer rounds with a summary at the end alone, where sorting the cells takes longer.
_FEWEST_ROUNDS = 64
#: Nor with fewer rounds between two summaries, before which all masses are needed.
_FEWEST_ROUNDS_BETWEEN = 8
#: Columns that one piece of the configurations has at least.
_FEWEST_COLUMNS = 32


class Measured(NamedTuple):
    """What a rule reads off a density.

    Attributes:
        weights: u, [G, rows, C].
        z: normalizers E_p[e_i], [G, m, C], where the rule needs them itself; else None.
        w_max: W is nowhere larger, in no configuration, [].
        w: W in each part, [G, cells, C], where it costs so much that a summary and the next round share it; else None.
    """

    weights: Array
    z: Array | None
    w_max: Array
    w: tuple[Array, ...] | None = None


class Setting(NamedTuple):
    """What a rule is made of, all cells in the order in which they are kept.

    Attributes:
        form: the floating-point format.
        problem: without phi, every leaf with a leading axis G; r_i* is over cells with mass.
        multiplier: log W in log space, every leaf with a leading axis G.
        tilt: e_i, [G, m, n], zero where no configuration has mass.
        phi: [G, m, C].
        live: where there is mass, [G, n, C] or [G, n, 1].
        w_low: W is nowhere smaller, [].
        cuts: cells after which the masses are cut in parts; the first is 0, the last n.
        observed: whether every round is summed up.
    """

    form: Format
    problem: Problem
    multiplier: Any
    tilt: Array
    phi: Array
    live: Array
    w_low: Array
    cuts: tuple[int, ...]
    observed: bool

    @property
    def coarse(self) -> float:
        """What is smaller by this factor does not change a sum."""
        return float(np.ldexp(16.0, self.form.mantissa + 1))

    def false_mass(self, growth: Array) -> Array:
        """Bound on the false mass of all cells after rounds that multiplied by `growth` at most."""
        return growth * (self.tilt.shape[2] * 2.0 ** (1 - self.form.depth))


class Rule(Protocol):
    """How a round multiplies masses in linear space; made of a `Setting`.

    Attributes:
        sorts: whether bounds hold that let summaries leave out cells (`linear_blocks_prefix`).
        columns: on a CPU, 3 configurations or more are filled up to this number.
        fewest_cell_steps: with less work, cells x configurations x rounds, compiling blocks takes longer than they save.
    """

    sorts: ClassVar[bool]
    columns: ClassVar[int]
    fewest_cell_steps: ClassVar[int]

    def __init__(self, setting: Setting) -> None: ...

    @staticmethod
    def fill_up(multiplier: Any, cells: int) -> Any:
        """A multiplier for so many more cells, which have no mass."""

    def measure(self, masses: Parts) -> Measured:
        """Weights of the density and a bound on W."""

    def w(self, measured: Measured, part: int) -> Array:
        """W in the cells of a part, [G, cells, C]."""

    def w_first(self, measured: Measured, length: int) -> Array:
        """W in the first so many cells, [G, length, C]."""

    def normalizers(self, measured: Measured, masses: Parts) -> Array:
        """E_p[e_i], [G, m, C]."""

    def trusted(self, growth: Array, measured: Measured) -> Array:
        """Whether sums are right although masses may be false by `growth` 2^(1 - depth), and tables have underflowed."""

    def strides(self) -> Strides | None:
        """Several rounds from one reading of the masses, where the rule knows how."""


class _Loop(NamedTuple):
    """What the loop over blocks carries.

    Attributes:
        masses: parts of the density.
        t: rounds done, [].
        pending: whether the density must be summed up in log space, before another round, [].
        bounds: what the sum over q in a slice does not exceed, [G, SLICES, C]; see `linear_blocks_prefix`.
        choice: index of the length that the next summary begins with, [].
        infos: what was saved so far, [num_steps / every, G, rows, C], as an `Observer` returns it.
        others: bound on what all parts but the first add to a normalizer, []; see `linear_blocks_deferred`.
        measured: what the rule read off the masses last, unless blocks begin with a stride.
        known: whether it did, of these masses, and its sums are right, [].
    """

    masses: Parts
    t: Array
    pending: Array
    bounds: Array
    choice: Array
    infos: Array
    others: Array
    measured: Measured | None
    known: Array


class _Block(NamedTuple):
    """What the rounds of one block carry besides.

    Attributes:
        measured: what the rule reads off the density.
        growth: bound on what the block's rounds so far multiplied a mass by, [].
        age: rounds since the last fold, [].
    """

    measured: Measured
    growth: Array
    age: Array


def run(
    rule_type: type[Rule], num_steps: int, every: int, landscape: tuple[Problem, Any], phi: Array, log_p: Array
) -> tuple[Array, DensityInfo]:
    """`num_steps` rounds of G landscapes with C configurations each; see `many_rounds`."""
    if phi.shape[0] * phi.shape[2] * log_p.shape[1] * num_steps < rule_type.fewest_cell_steps:
        return plain(num_steps, every, landscape, phi, log_p)
    take = partial(_run, rule_type, num_steps, every)
    if jax.default_backend() != "cpu":
        return take(landscape, phi, log_p)
    # On a CPU a part of the configurations at a time, and then of the landscapes, so that their masses stay in cache.
    groups, _, columns = phi.shape
    n = log_p.shape[1]
    wide = max(_FEWEST_COLUMNS, _ENTRIES_AT_A_TIME // n // _FEWEST_COLUMNS * _FEWEST_COLUMNS)
    by_columns = in_pieces(take, columns, wide, (None, 2, None if log_p.shape[2] == 1 else 2), -1)
    together = max(1, _ENTRIES_AT_A_TIME // (n * min(columns, wide)))
    return in_pieces(by_columns, groups, together, (0, 0, 0), 0)(landscape, phi, log_p)


def _run(
    rule_type: type[Rule], num_steps: int, every: int, landscape: tuple[Problem, Any], phi: Array, log_p: Array
) -> tuple[Array, DensityInfo]:
    """The same for as many as are computed together."""
    n, columns = log_p.shape[1], phi.shape[2]
    problem, multiplier = landscape
    problem, phi, log_p = fill_up(problem, phi, log_p, rule_type.columns)
    multiplier = rule_type.fill_up(multiplier, log_p.shape[1] - n)
    in_order = rule_type.sorts and prefix.pays(log_p.shape[1], phi.shape[2])
    in_order &= every < num_steps or num_steps >= _FEWEST_ROUNDS
    form = Format.of(log_p.dtype)
    live = log_p > -jnp.inf
    problem, tilt = tilts(problem, live.any(axis=2))
    if in_order:
        order = prefix.best_first(tilt)
        problem = problem._replace(
            rewards=prefix.reorder(problem.rewards, order, 2),
            basins=prefix.reorder(problem.basins, order, 2),
            outside=prefix.reorder(problem.outside, order, 1),
        )
        tilt, log_p, live = (prefix.reorder(x, order, a) for x, a in ((tilt, 2), (log_p, 1), (live, 1)))
    w_low = jnp.min(jnp.where(live, mix(extremes(phi) if live.shape[2] == 1 else phi, tilt), 1.0))
    longest = ((form.scale - 1) / -jnp.log2(jnp.minimum(w_low, 0.5))).astype(jnp.int32)
    cuts = _cuts(tilt.shape[2], log_p.shape[0] * tilt.shape[2] * phi.shape[2], in_order)
    setting = Setting(form, problem, multiplier, tilt, phi, live, w_low, cuts, every == 1)
    rule = rule_type(setting)
    slices = prefix.Slices.of(tilt, problem.basins, problem.outside) if in_order else None
    # One summary at the end reads all cells: choosing among lengths would take longer to compile than it saves.
    chosen = slices if every < num_steps else None
    observe = Observer(form, problem, multiplier, tilt, phi, live, cuts, chosen, rule.w_first)
    strides = rule.strides() if every > 1 and jax.default_backend() == "cpu" else None
    deferred = Deferred(setting, strides) if strides and in_order and every >= _FEWEST_ROUNDS_BETWEEN else None
    kept = strides is None
    normalized = jax.vmap(jax.vmap(normalize, 1, 1))

    def remember(c: _Loop, b: _Block) -> _Loop:
        """What the next block needs not read again. A round may leave normalizers so small that its false masses count."""
        return c._replace(measured=b.measured, known=c.known & rule.trusted(b.growth, b.measured)) if kept else c

    def may_go_on(b: _Block, limit: Array) -> Array:
        return (b.age < limit) & rule.trusted(b.growth * b.measured.w_max, b.measured)

    def observed(c: _Loop, b: _Block) -> tuple[Array, Array]:
        return observe(c.masses, rule.normalizers(b.measured, c.masses), b.measured, c.bounds, c.choice)

    def write(c: _Loop, info: Array) -> Array:
        return jax.lax.dynamic_update_index_in_dim(c.infos, info, (c.t - 1) // every, 0)

    def summed_up(c: _Loop, b: _Block) -> _Loop:
        """With what is pending, if sums mean something."""
        trusted = rule.trusted(b.growth, b.measured)

        def turn(x: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            info, choice = observed(c._replace(choice=x[1]), b)
            return write(c._replace(infos=x[0]), info), choice, jnp.zeros((), bool)

        # At most one turn; a loop, because XLA copies what passes through a cond.
        infos, choice, _ = jax.lax.while_loop(lambda x: x[2], turn, (c.infos, c.choice, c.pending & trusted))
        return c._replace(infos=infos, choice=choice, pending=c.pending & ~trusted)

    def linear_round(masses: Parts, b: _Block) -> tuple[Parts, _Block]:
        masses = tuple(Masses(part.q * rule.w(b.measured, k), part.exponent) for k, part in enumerate(masses))
        return masses, _Block(rule.measure(masses), b.growth * b.measured.w_max, b.age + 1)

    def observed_rounds(c: _Loop, b: _Block, limit: Array) -> _Loop:
        """Rounds that are all summed up."""

        def body(x: tuple[_Loop, _Block]) -> tuple[_Loop, _Block]:
            c, b = x
            bounds = c.bounds
            if slices is not None:
                w = mix(b.measured.weights, slices.tilt[:, :, : prefix.SLICES])
                bounds = jnp.minimum(bounds * w, 2.0 ** (form.scale + 1))
            masses, b = linear_round(c.masses, b)
            c = c._replace(masses=masses, bounds=bounds, t=c.t + 1, pending=jnp.ones((), bool))
            return summed_up(c, b), b

        return remember(*jax.lax.while_loop(lambda x: may_go_on(x[1], limit) & ~x[0].pending, body, (c, b)))

    def rounds_between(c: _Loop, b: _Block, limit: Array, stride: Stride | None) -> _Loop:
        """Rounds without a summary until the last."""
        masses, choice, others = c.masses, c.choice, c.others
        if deferred is not None:
            # Short blocks, so that cells wait as soon as they may.
            limit = jnp.minimum(limit, ROUNDS)
        single, many, few = limit, none, none
        if strides is not None and stride is not None:
            may = strides.may_go_on(stride.highest, one) & (limit >= strides.num_rounds)
            single, many = jnp.where(may, 0, limit), jnp.where(may, limit, 0)
            if deferred is not None:
                few = jnp.where(deferred.may_begin(others, stride), many, 0)
                many = many - few
        masses, b = jax.lax.while_loop(lambda x: may_go_on(x[1], single), lambda x: linear_round(*x), (masses, b))
        done = b.age
        if strides is not None and stride is not None:
            taken = strides.take(masses, stride, many)
            masses, done = taken.masses, done + taken.num_rounds
            if deferred is not None:
                masses, first, others = deferred(masses, others, stride, few)
                # Where rounds need few cells a summary will.
                done, choice = done + first, jnp.where(first > 0, len(prefix.LENGTHS) - 1, choice)
                others = jnp.where(first > 0, others, jnp.inf)
        t = c.t + done
        pending = c.pending | (done > 0) & (t % every == 0)
        return remember(c._replace(masses=masses, choice=choice, t=t, pending=pending, others=others), b)

    def careful_turn(c: _Loop, stuck: Array) -> _Loop:
        """Sum up what is pending, and take a round in log space if no other is possible; both need log W."""
        log_p = form.to_log(c.masses)
        log_w = observe.log_w(log_p)
        before = jax.lax.dynamic_index_in_dim(c.infos, (c.t - 1) // every, 0, keepdims=False)
        c = c._replace(infos=write(c, jnp.where(c.pending, observe.careful(log_p, log_w), before)))
        new = form.from_log(normalized(log_p + log_w), cuts)
        masses = jax.tree.map(lambda new, old: jnp.where(stuck, new, old), new, c.masses)
        t = c.t + stuck.astype(jnp.int32)
        others = jnp.where(stuck, jnp.inf, c.others)
        pending = stuck & (t % every == 0)
        return c._replace(masses=masses, t=t, pending=pending, others=others, known=c.known & ~stuck)

    def block(c: _Loop) -> _Loop:
        masses = tuple(map(form.fold, c.masses))
        bounds = c.bounds if chosen is None else chosen.masses([part.q for part in masses])
        measured: Measured
        stride, others = None, c.others
        if deferred is not None:
            measured, stride, others = deferred.begin(masses, others)
        elif strides is not None:
            measured, stride = strides.begin(masses)
        else:
            # The last round of the block before may have read these masses; folding changes no sum that is right.
            assert c.measured is not None
            measured, _ = jax.lax.while_loop(
                lambda x: ~x[1], lambda x: (rule.measure(masses), jnp.ones((), bool)), (c.measured, c.known)
            )
            c = c._replace(measured=measured, known=jnp.ones((), bool))
        c, b = c._replace(masses=masses, bounds=bounds, others=others), _Block(measured, one, none)
        limit = jnp.minimum(longest, num_steps - c.t)
        if every > 1:
            c, limit = summed_up(c, b), jnp.minimum(limit, every - c.t % every)
        stuck = (c.t < num_steps) & ~may_go_on(b, limit)
        c, _ = jax.lax.while_loop(
            lambda x: x[1], lambda x: (careful_turn(x[0], stuck), jnp.zeros((), bool)), (c, stuck | c.pending)
        )
        # After a round in log space b is out of date.
        limit = jnp.where(stuck, 0, limit)
        return observed_rounds(c, b, limit) if every == 1 else rounds_between(c, b, limit, stride)

    one, none = jnp.ones((), form.dtype), jnp.zeros((), jnp.int32)
    # A start that all share is converted once.
    masses = tuple(
        Masses(*(jnp.broadcast_to(x, (*x.shape[:2], phi.shape[2])) for x in part))
        for part in form.from_log(log_p, cuts)
    )
    bounds = jnp.zeros((phi.shape[0], prefix.SLICES if in_order else 0, phi.shape[2]), form.dtype)
    infos = jnp.zeros((num_steps // every, phi.shape[0], num_rows(phi.shape[1]), phi.shape[2]), form.dtype)
    no = jnp.zeros((), bool)
    nothing = (
        jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(rule.measure, masses)) if kept else None
    )
    start = _Loop(masses, none, no, bounds, none, infos, jnp.full((), jnp.inf, form.dtype), nothing, no)
    c = jax.lax.while_loop(lambda c: (c.t < num_steps) | c.pending, block, start)
    log_p = normalized(form.to_log(c.masses))
    if in_order:
        log_p = prefix.reorder(log_p, jnp.argsort(order, axis=1), 1)
    info = unpack(jnp.moveaxis(c.infos, 1, 0), phi.shape[1])
    return log_p[:, :n, :columns], jax.tree.map(lambda x: x[..., :columns], info)


def _cuts(n: int, entries: int, in_order: bool) -> tuple[int, ...]:
    """Cells after which masses of so many entries are cut."""
    if in_order:
        return (0, *(n // prefix.SLICES * cut for cut in prefix.CUTS))
    parts = 1
    if jax.default_backend() == "cpu" and jax.local_device_count() > 1:
        # XLA splits an operation on half a megabyte over the threads of all host devices, which then wait for each other
        # and lose what their caches hold; each device has a thread, so the parts are made smaller than that.
        parts = max(1, min(4, entries // _ENTRIES_OF_A_PART))
    slices = n // CELL_SLICES
    return tuple(slices * k // parts * CELL_SLICES for k in range(parts + 1))
