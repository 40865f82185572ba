"""Many rounds of an exact density in one call: the transformations that every fast way of taking them shares.

A fast way is a function `run(num_steps, every, landscape, phi, log_p)` of whole batches: G landscapes with C configurations
each, that differ in phi or in their start.

    landscape   a problem without phi and a multiplier, every leaf with a leading axis G
    phi         [G, m, C]
    log_p       [G, n, C], or [G, n, 1] where all configurations share a start
    returns     log-masses [G, n, C], and infos with leading axes G and saves and C as the last one

`rounds` makes it what `Process.rounds` asks for. A `vmap` becomes one of the axes G and C, so that configurations that share
their large arrays meet in matrix products. Derivatives are those of the repeated step: they never look into a fast way.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from plural_jax.density.core import DensityInfo, DensityState, Problem, _step, check_state, summarize

#: The fast way: (num_steps, every, landscape, phi, log_p) -> (log_p, infos).
Run = Callable[[int, int, Any, Array, Array], tuple[Array, DensityInfo]]


def rounds(
    run: Run,
    reverse_only: bool,
    problem: Problem,
    multiplier: Any,
    state: DensityState,
    num_steps: int,
    every: int,
) -> tuple[DensityState, DensityInfo]:
    """`num_steps` rounds and the infos of every `every`-th; equal to repeated steps up to rounding.

    Args:
        run: the fast way.
        reverse_only: the step has derivatives in reverse mode alone.
        problem, multiplier: the process, as for `core.density_process`.
        state: where to begin.
        num_steps, every: rounds, and rounds between two infos.
    """
    check_state(state)
    take = _reverse_only if reverse_only else _rounds
    return take(run, num_steps, every, problem, multiplier, state)


def _fast(
    run: Run, num_steps: int, every: int, problem: Problem, multiplier: Any, state: DensityState
) -> tuple[DensityState, DensityInfo]:
    shared = problem._replace(phi=None, log_uniform=None)  # type: ignore[arg-type]  # no part of a landscape
    landscape = jax.tree.map(lambda x: x[None], (shared, multiplier))
    batchable = _batchable(partial(run, num_steps, every))
    log_p, infos = batchable(landscape, problem.phi[None, :, None], state.log_p[None, :, None])
    log_p = log_p[0, :, 0]
    return DensityState(log_p, multiplier(problem, log_p)), jax.tree.map(lambda x: x[0, ..., 0], infos)


# --- derivatives ------------------------------------------------------------------------------------------------------


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _rounds(run: Run, num_steps: int, every: int, problem: Problem, multiplier: Any, state: DensityState) -> Any:
    return _fast(run, num_steps, every, problem, multiplier, state)


@_rounds.defjvp
def _derivative(run: Run, num_steps: int, every: int, primals: Any, tangents: Any) -> Any:
    return jax.jvp(partial(_one_after_another, num_steps, every), primals, tangents)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _reverse_only(run: Run, num_steps: int, every: int, problem: Problem, multiplier: Any, state: DensityState) -> Any:
    return _fast(run, num_steps, every, problem, multiplier, state)


def _forward(run: Run, num_steps: int, every: int, *arguments: Any) -> Any:
    return _fast(run, num_steps, every, *arguments), arguments


def _backward(run: Run, num_steps: int, every: int, arguments: Any, cotangents: Any) -> Any:
    return jax.vjp(partial(_one_after_another, num_steps, every), *arguments)[1](cotangents)


_reverse_only.defvjp(_forward, _backward)


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


def plain(num_steps: int, every: int, landscape: Any, phi: Array, log_p: Array) -> tuple[Array, DensityInfo]:
    """The same contract as a fast way, by one step after another: for so little work that compiling takes longer."""

    def one(landscape: Any, phi: Array, log_p: Array) -> tuple[Array, DensityInfo]:
        problem, multiplier = landscape
        problem = problem._replace(phi=phi)
        state = DensityState(log_p, multiplier(problem, log_p))
        state, infos = _one_after_another(num_steps, every, problem, multiplier, state)
        return state.log_p, infos

    log_p = jnp.broadcast_to(log_p, (*log_p.shape[:2], phi.shape[2]))
    return jax.vmap(jax.vmap(one, (None, 1, 1), -1))(landscape, phi, log_p)


# --- vmap -------------------------------------------------------------------------------------------------------------


def _batchable(run: Callable[[Any, Array, Array], Any]) -> Any:
    """`run` as a function of (landscape, phi, log_p) that knows what to do under `vmap`."""
    batchable = jax.custom_batching.custom_vmap(run)
    batchable.def_vmap(partial(_vmap_rule, batchable))
    return batchable


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


def in_pieces(function: Any, length: int, most: int, axes: tuple[int | None, ...], out_axis: int) -> Any:
    """A function that gives `function` at most so many of its `length` at a time, one piece after another.

    Args:
        function: of pytrees, to a pytree; each result depends on its own part of the arguments alone.
        length: of these axes.
        most: length of a piece; pieces are equal, the last one filled up with copies.
        axes: for each argument the axis that is cut, or None.
        out_axis: the axis of all results along which pieces are put together.
    """
    count = -(-length // most)
    if count == 1:
        return function
    piece = -(-length // count)

    def cut(x: Array, axis: int) -> Array:
        x = jnp.moveaxis(x, axis, 0)
        x = jnp.pad(x, [(0, count * piece - length)] + [(0, 0)] * (x.ndim - 1), mode="edge")
        return jnp.moveaxis(x.reshape(count, piece, *x.shape[1:]), 1, axis + 1)

    def join(x: Array) -> Array:
        axis = out_axis if out_axis < 0 else out_axis + 1
        x = jnp.moveaxis(x, (0, axis), (0, 1))
        x = x.reshape(-1, *x.shape[2:])[:length]
        return jnp.moveaxis(x, 0, out_axis)

    def one(pieces: list[Any], whole: list[Any]) -> Any:
        parts = iter(pieces)
        rest = iter(whole)
        return function(*(next(rest) if axis is None else next(parts) for axis in axes))

    def of_pieces(*arguments: Any) -> Any:
        pairs = list(zip(arguments, axes, strict=True))
        pieces = [jax.tree.map(lambda x, axis=axis: cut(x, axis), a) for a, axis in pairs if axis is not None]
        whole = [a for a, axis in pairs if axis is None]
        return jax.tree.map(join, jax.lax.map(lambda pieces: one(pieces, whole), pieces))

    return of_pieces
