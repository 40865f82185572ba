"""Many large-K rounds at the speed of plain multiplications, with the range of log space.

A round in log space costs exponentials and a logarithm per cell; in linear space it is one product and m sums with
constant tilts `e_i = exp((r_i - r_i*) / tau) <= 1`:

    z_i = sum_x p(x) e_i(x),    p(x) <- p(x) W(x),    W(x) = sum_i u_i e_i(x),    u_i = phi_i / z_i.

Layout: masses are `[G, n, C]`: G landscapes, n cells, C configurations of each landscape that differ in phi or in
their start. A `vmap` becomes one of the axes G and C (`_vmap_rule`), so that the sums of all configurations are matrix
products `e [m, n] @ p [n, C]`, and every decision below is one for the whole batch.

Range: linear masses underflow, so each is kept as `p = q 2^(E - scale)` with a float q and an integer E <= 0, and E is
zero wherever p is a normal number. The other cells are *deep*: their true mass is below 2^-depth (depth is 126 in
float32), they matter in no sum, but they may grow back later. Writing q in place of p gives a deep cell a false mass of
at most 2^(1 - depth), as far below the sums as the true one, and leaves q so far above underflow that several rounds
only need `q <- q W`. These rounds form a *block*; at its end `fold` moves the binary exponent of q into E by integer
operations.

What bounds a block, for any landscape and start:

  * z_i <= 1, so no cell loses more than the factor `w_low = min_x sum_i phi_i e_i(x)` in a round: a block of
    `scale / log2(1 / w_low)` rounds loses no cell.
  * W <= 1 / min_i z_i, so after some rounds the false mass is at most `n 2^(1 - depth) prod_t 1 / min_i z_i`: a block
    goes on while that is below rounding in every z_i.

Where not even one round fits (wild first rounds of a far start, rewards of 1e4), one round is taken in log space.

Per cell and round this reads q twice and writes it once; 2m fused multiply-adds and one product. A summary costs several
times that, and reads only the first cells where that is enough: see `linear_blocks_prefix`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from plural_jax.density import linear_blocks_prefix as prefix
from plural_jax.density.core import DensityInfo, DensityState, Problem, _step, dot, summarize
from plural_jax.density.linear_blocks_masses import Format, Masses, Parts, add, mix, per_configuration
from plural_jax.density.linear_blocks_summary import Observer, unpack
from plural_jax.landscape import normalize

#: On a CPU a matrix product with fewer columns than this is slower than with this many (jaxlib 0.10: a round takes
#: 0.1 ns per entry with 32 columns, 0.5 to 1 with 3 to 31), so that it pays to fill up with copies.
_CPU_COLUMNS = 32


def rounds(
    problem: Problem, multiplier: Any, key: Array | None, state: DensityState, num_steps: int, every: int
) -> tuple[DensityState, DensityInfo]:
    """`num_steps` large-K rounds and the infos of every `every`-th; equal to repeated steps up to rounding."""
    del key  # the exact dynamics draw nothing
    return _rounds(num_steps, every, problem, multiplier, state)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _rounds(
    num_steps: int, every: int, problem: Problem, multiplier: Any, state: DensityState
) -> tuple[DensityState, DensityInfo]:
    shared = problem._replace(phi=None, log_uniform=None)  # type: ignore[arg-type]  # no part of a landscape
    landscape = jax.tree.map(lambda x: x[None], (shared, multiplier))
    log_p, infos = _batchable(num_steps, every)(landscape, problem.phi[None, :, None], state.log_p[None, :, None])
    log_p = log_p[0, :, 0]
    return DensityState(log_p, multiplier(problem, log_p)), jax.tree.map(lambda x: x[0, ..., 0], infos)


@_rounds.defjvp
def _derivative(num_steps: int, every: int, primals: Any, tangents: Any) -> Any:
    """Derivatives, forward and reverse, are those of the repeated step: they never look into a block."""
    return jax.jvp(partial(_one_after_another, num_steps, every), primals, tangents)


def _one_after_another(
    num_steps: int, every: int, problem: Problem, multiplier: Any, state: DensityState
) -> tuple[DensityState, DensityInfo]:
    @jax.checkpoint  # keeps only the state of each round for the way back
    def one(state: DensityState, _: None) -> tuple[DensityState, None]:
        return _step(problem, multiplier, None, state)[0], None

    def one_save(state: DensityState, _: None) -> tuple[DensityState, DensityInfo]:
        state, _ = jax.lax.scan(one, state, length=every)
        return state, summarize(problem, state)

    return jax.lax.scan(one_save, state, length=num_steps // every)


# --- vmap -------------------------------------------------------------------------------------------------------------


def _batchable(num_steps: int, every: int) -> Any:
    """`_run` as a function of (landscape, phi, log_p) that knows what to do under `vmap`."""
    run = jax.custom_batching.custom_vmap(partial(_run, num_steps, every))
    run.def_vmap(partial(_vmap_rule, run))
    return run


def _vmap_rule(run: Any, size: int, batched: Any, landscape: Any, phi: Array, log_p: Array) -> Any:
    """A batch axis joins the landscapes G if it changes them, and otherwise their configurations C."""
    landscape_batched, phi_batched, log_p_batched = batched
    by_landscape = any(jax.tree.leaves(landscape_batched))

    def join(x: Array, is_batched: bool, axis: int) -> Array:
        """The leading axis of length `size` becomes part of another one; what is shared is repeated."""
        x = jnp.moveaxis(x if is_batched else jnp.broadcast_to(x, (size, *x.shape)), 0, axis)
        return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])

    def part(x: Array, axis: int) -> Array:
        """The reverse."""
        return jnp.moveaxis(x.reshape(*x.shape[:axis], size, -1, *x.shape[axis + 1 :]), axis, 0)

    if by_landscape:
        landscape = jax.tree.map(lambda x, b: join(x, b, 0), landscape, landscape_batched)
        log_p = join(log_p, log_p_batched, 0)
    elif log_p_batched or log_p.shape[-1] > 1:  # one column is a start that all configurations share
        log_p = join(jnp.broadcast_to(log_p, (*log_p.shape[:-1], phi.shape[-1])), log_p_batched, 2)
    out = run(landscape, join(phi, phi_batched, 0 if by_landscape else 2), log_p)
    return jax.tree.map(lambda x: part(x, 0 if by_landscape else x.ndim - 1), out), jax.tree.map(lambda _: True, out)


# --- the rounds of C configurations on each of G landscapes -----------------------------------------------------------


class _Loop(NamedTuple):
    """What the loop over rounds carries.

    Attributes:
        masses: parts of the density.
        z: normalizers of this density, [G, m, C].
        z_min: the smallest of them, [].
        growth: bound on what the block's rounds so far multiplied a mass by, [].
        age: rounds since the last fold, [].
        t: rounds done, [].
        bounds: what the sum over q in a slice does not exceed, [G, SLICES, C]; see `linear_blocks_prefix`.
        choice: index of the length that the next summary begins with, [].
        infos: what was saved so far, [num_steps / every, G, rows, C], as an `Observer` returns it.
    """

    masses: Parts
    z: Array
    z_min: Array
    growth: Array
    age: Array
    t: Array
    bounds: Array
    choice: Array
    infos: Array


def _run(
    num_steps: int, every: int, landscape: tuple[Problem, Any], phi: Array, log_p: Array
) -> tuple[Array, DensityInfo]:
    """`num_steps` rounds of G landscapes with C configurations each.

    Args:
        num_steps: as for `rounds`.
        every: as for `rounds`.
        landscape: a problem without phi and a multiplier; every leaf has a leading axis G.
        phi: [G, m, C].
        log_p: [G, n, C], or [G, n, 1] where all configurations share a start.

    Returns:
        Log-masses [G, n, C], and infos with leading axes G and saves and C as the last one.
    """
    n, columns = log_p.shape[1], phi.shape[2]
    problem, multiplier = landscape
    problem, phi, log_p = _fill_up(problem, phi, log_p)
    in_order = every < num_steps and prefix.pays(log_p.shape[1], phi.shape[2])
    form = Format.of(log_p.dtype)
    live = log_p > -jnp.inf
    problem, tilt = _tilts(problem, live.any(axis=2))
    if in_order:
        order = prefix.best_first(tilt)
        problem = problem._replace(
            rewards=prefix.reorder(problem.rewards, order, 2),
            basins=prefix.reorder(problem.basins, order, 2),
            outside=prefix.reorder(problem.outside, order, 1),
        )
        tilt, log_p, live = (prefix.reorder(x, order, a) for x, a in ((tilt, 2), (log_p, 1), (live, 1)))
    w_low = jnp.min(jnp.where(live, mix(phi, tilt), 1.0))
    longest = ((form.scale - 1) / -jnp.log2(jnp.minimum(w_low, 0.5))).astype(jnp.int32)
    cuts = (0, *(tilt.shape[2] // prefix.SLICES * cut for cut in prefix.CUTS)) if in_order else (0, tilt.shape[2])
    tilts = [tilt[:, :, a:b] for a, b in pairwise(cuts)]
    observe = Observer(form, problem, multiplier, tilt, phi, live, cuts)
    slices = observe.slices
    coarse = float(np.ldexp(16.0, form.mantissa + 1))  # what is smaller by this factor does not change a sum

    def trusted(growth: Array, z_min: Array) -> Array:
        """Whether sums are right although masses may be false by `growth` 2^(1 - depth), and tilts have underflowed."""
        false_mass = growth * (log_p.shape[1] * 2.0 ** (1 - form.depth))
        return (false_mass * coarse <= z_min) & (2.0**-form.depth * coarse <= w_low * z_min)

    def may_go_on(c: _Loop) -> Array:
        return (c.t < num_steps) & (c.age < longest) & trusted(c.growth / c.z_min, c.z_min)

    def measure(masses: Parts) -> dict[str, Array]:
        z = add(dot(e, part.q) for e, part in zip(tilts, masses, strict=True)) * 2.0**-form.scale
        return {"z": z, "z_min": jnp.min(z)}

    def anew(masses: Parts, c: _Loop) -> _Loop:
        """The first state of a block."""
        bounds = c.bounds if slices is None else slices.masses([part.q for part in masses])
        return c._replace(masses=masses, **measure(masses), growth=one, age=none, bounds=bounds)

    def observed(c: _Loop) -> tuple[Array, Array]:
        return observe(c.masses, c.z, trusted(c.growth, c.z_min), c.bounds, c.choice)

    def record(c: _Loop, observed: Callable[[_Loop], tuple[Array, Array]]) -> _Loop:
        if every == num_steps:
            return c
        if every == 1:
            new, choice = observed(c)
        else:  # Between two saves this writes zeros, and the save overwrites them.
            new, choice = jax.lax.cond(
                c.t % every == 0, observed, lambda c: (jnp.zeros(c.infos.shape[1:], form.dtype), c.choice), c
            )
        infos = jax.lax.dynamic_update_index_in_dim(c.infos, new, (c.t - 1) // every, 0)
        return c._replace(infos=infos, choice=choice)

    def linear_round(c: _Loop) -> _Loop:
        u = phi / c.z
        masses = tuple(Masses(p.q * mix(u, e), p.exponent) for p, e in zip(c.masses, tilts, strict=True))
        bounds = c.bounds
        if slices is not None:
            bounds = jnp.minimum(bounds * mix(u, slices.tilt[:, :, : prefix.SLICES]), 2.0 ** (form.scale + 1))
        new = c._replace(
            masses=masses,
            **measure(masses),
            growth=c.growth / c.z_min,
            age=c.age + 1,
            t=c.t + 1,
            bounds=bounds,
        )
        return record(new, observed)

    def log_round(c: _Loop) -> _Loop:
        log_p = per_configuration(lambda problem, multiplier, log_p: normalize(log_p + multiplier(problem, log_p)))(
            problem, multiplier, phi, form.to_log(c.masses)
        )
        c = anew(form.from_log(log_p, cuts), c)
        # Rare, so that it need not be fast, and compiles faster so.
        return record(c._replace(age=c.age + 1, t=c.t + 1), lambda c: (observe.careful(c.masses), c.choice))

    def block(c: _Loop) -> _Loop:
        c = jax.lax.while_loop(may_go_on, linear_round, anew(tuple(map(form.fold, c.masses)), c))
        # At most one turn; a loop, because XLA copies what passes through a cond.
        return jax.lax.while_loop(lambda c: c.age == 0, log_round, c)

    one, none = jnp.ones((), form.dtype), jnp.zeros((), jnp.int32)
    masses = form.from_log(jnp.broadcast_to(log_p, (*log_p.shape[:2], phi.shape[2])), cuts)
    bounds = jnp.zeros((phi.shape[0], prefix.SLICES if in_order else 0, phi.shape[2]), form.dtype)
    start = anew(masses, _Loop(masses, phi, one, one, none, none, bounds, none, bounds))
    info, _ = jax.eval_shape(observed, start)
    start = start._replace(infos=jnp.zeros((num_steps // every, *info.shape), info.dtype))
    c = jax.lax.while_loop(lambda c: c.t < num_steps, block, start)
    rows = observed(c)[0][None] if every == num_steps else c.infos
    log_p = jax.vmap(jax.vmap(normalize, 1, 1))(form.to_log(c.masses))
    if in_order:
        log_p = prefix.reorder(log_p, jnp.argsort(order, axis=1), 1)
    infos = unpack(jnp.moveaxis(rows, 1, 0), phi.shape[1])
    return log_p[:, :n, :columns], jax.tree.map(lambda x: x[..., :columns], infos)


def _fill_up(problem: Problem, phi: Array, log_p: Array) -> tuple[Problem, Array, Array]:
    """Add cells without mass up to a convenient number, and on a CPU copies of the last configuration."""
    cells = -log_p.shape[1] % prefix.multiple(log_p.shape[1])
    columns = phi.shape[2]
    copies = _CPU_COLUMNS - columns if 2 < columns < _CPU_COLUMNS and jax.default_backend() == "cpu" else 0

    def pad(x: Array, axis: int, extra: int, **how: Any) -> Array:
        width = [(0, 0)] * x.ndim
        width[axis] = (0, extra)
        return jnp.pad(x, width, **how) if extra else x

    problem = problem._replace(
        rewards=pad(problem.rewards, 2, cells, mode="edge"),
        basins=pad(problem.basins, 2, cells),
        outside=pad(problem.outside, 1, cells),
    )
    log_p = pad(log_p, 1, cells, constant_values=-jnp.inf)
    if log_p.shape[2] > 1:
        log_p = pad(log_p, 2, copies, mode="edge")
    return problem, pad(phi, 2, copies, mode="edge"), log_p


def _tilts(problem: Problem, live: Array) -> tuple[Problem, Array]:
    """The problem with r_i* taken over cells that have mass in some configuration, and its tilts, [G, m, n].

    So no tilt is above one, whatever the rewards are where there is no mass.
    """
    best = jnp.max(jnp.where(live[:, None], problem.rewards, -jnp.inf), axis=2, keepdims=True)
    problem = problem._replace(best=best)
    return problem, jnp.where(live[:, None], jnp.exp(jax.vmap(lambda p: p.log_tilt)(problem)), 0.0)
