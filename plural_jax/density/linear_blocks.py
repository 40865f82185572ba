"""Many large-K rounds at the speed of plain multiplications, with the range of log space.

A round in log space costs an exponential and a logarithm per cell; in linear space it costs one product and sums with the
constant tilts `e_i = exp((r_i - r_i*) / tau)`:

    z_i = sum_x p(x) e_i(x),    p(x) <- p(x) sum_i (phi_i / z_i) e_i(x).

Linear masses underflow, so each is kept as `p = q 2^E` with a float q and an integer E. Rounds come in short blocks: within a
block E is fixed and only q is multiplied; at its end the exponent of q moves into E by integer operations, so no cell is ever
lost and no transcendental function is called. The sums use `e_i 2^E`, computed once a block; a mass below the smallest normal
number drops out of the sums, where it could not matter, but not out of q and E.

A block is accepted only if every z_i stayed far above underflow, every W below 4096 and every q within range. Otherwise (wild
first rounds, rewards of 1e4) the same rounds are taken again in log space by the reference step. No derivative sees an infinity:
W is held below its bound through the m numbers phi_i / z_i alone.

Per cell and round this reads m tilts twice and q twice and writes q once: 2m + 1 fused multiply-adds and one product.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from plural_jax.density.core import DensityInfo, DensityState, Problem, _step, dot, summarize
from plural_jax.landscape import normalize

_LOG2 = float(np.log(2.0))
#: Largest multiplier that a linear block accepts: ten rounds of it still fit the exponent range of float32.
_MAX_W = 4096.0
#: Rounds per block are such that a cell may lose this many e-folds in each round without leaving the range.
_EFOLDS_PER_ROUND = 8.5


class _Scaled(NamedTuple):
    """Masses q 2^exponent, [n] each; q in [1, 2) at the start of a block, 0 where there is no mass."""

    q: Array
    exponent: Array


def rounds(
    problem: Problem, multiplier: Any, key: Array | None, state: DensityState, num_steps: int, every: int
) -> tuple[DensityState, DensityInfo]:
    """`num_steps` large-K rounds and the infos of every `every`-th; equal to repeated steps up to rounding."""
    del key
    limits = jnp.finfo(state.log_p.dtype)
    longest = int(min(50, -np.log(float(limits.tiny)) / _EFOLDS_PER_ROUND))
    tilt = jnp.exp(problem.log_tilt)

    def blocks(scaled: _Scaled, total: int, length: int, every: int | None) -> tuple[_Scaled, Any]:
        """`total` rounds in blocks of `length`, with the infos of every `every`-th round (None: no infos)."""
        count, rest = divmod(total, length)
        infos = []
        if count:
            scaled, info = jax.lax.scan(
                lambda s, _: _block(problem, multiplier, tilt, s, length, every), scaled, length=count
            )
            infos.append(jax.tree.map(lambda x: x.reshape((-1, *x.shape[2:])), info))
        if rest:
            scaled, info = _block(problem, multiplier, tilt, scaled, rest, every)
            infos.append(info)
        return scaled, jax.tree.map(lambda *parts: jnp.concatenate(parts), *infos)

    def finish(scaled: _Scaled) -> DensityState:
        log_p = normalize(_to_log(scaled))
        return DensityState(log_p, multiplier(problem, log_p))

    if every <= longest:
        scaled, infos = blocks(_from_log(state.log_p), num_steps, every * (longest // every), every)
        return finish(scaled), infos

    def one_save(state: DensityState, _: None) -> tuple[DensityState, DensityInfo]:
        scaled, _ = blocks(_from_log(state.log_p), every, longest, None)
        state = finish(scaled)
        return state, summarize(problem, state)

    return jax.lax.scan(one_save, state, length=num_steps // every)


def _block(
    problem: Problem, multiplier: Any, tilt: Array, start: _Scaled, length: int, every: int | None
) -> tuple[_Scaled, Any]:
    """`length` rounds in linear space, or in log space where linear space would lose digits."""
    dtype = tilt.dtype
    limits = jnp.finfo(dtype)
    floor, ceiling = float(limits.tiny) * 8, 1.0 / (float(limits.tiny) * 8)
    z_floor = float(limits.tiny) ** 0.65
    scale = _power_of_two(start.exponent, dtype)
    scaled_tilt = tilt * scale
    observe = None if every is None else _observer(problem, tilt, start, scale)

    def one_round(carry: tuple[Array, Array, Array], _: None) -> tuple[tuple[Array, Array, Array], None]:
        q, z, ok = carry
        u = problem.phi / jnp.maximum(z, z_floor)
        bound = jnp.sum(u)
        u = u * jnp.minimum(1.0, _MAX_W / bound)
        q = q * jnp.sum(u[:, None] * tilt, axis=0)
        z = dot(scaled_tilt, q)
        return (q, z, ok & (bound <= _MAX_W) & jnp.all(z > z_floor)), None

    def some_rounds(carry: Any, _: None) -> tuple[Any, Any]:
        assert every is not None and observe is not None
        carry, _ = jax.lax.scan(one_round, carry, length=every)
        return carry, observe(carry[0], carry[1])

    z = dot(scaled_tilt, start.q)
    carry = (start.q, z, jnp.all(z > z_floor))
    if every is None:
        (q, _, ok), infos = jax.lax.scan(one_round, carry, length=length)
    else:
        (q, _, ok), infos = jax.lax.scan(some_rounds, carry, length=length // every)
    live = start.q > 0
    ok = ok & jnp.all(((q > floor) & (q < ceiling)) | ~live)

    def in_log_space() -> tuple[_Scaled, Any]:
        log_p = normalize(_to_log(start))
        state = DensityState(log_p, multiplier(problem, log_p))

        def one(state: DensityState, _: None) -> tuple[DensityState, Any]:
            state, info = _step(problem, multiplier, None, state)
            return state, (None if every is None else info)

        state, infos = jax.lax.scan(one, state, length=length)
        return _from_log(state.log_p), (None if every is None else jax.tree.map(lambda x: x[every - 1 :: every], infos))

    return jax.lax.cond(ok, lambda: (_refold(q, start.exponent), infos), in_log_space)


def _observer(problem: Problem, tilt: Array, start: _Scaled, scale: Array) -> Any:
    """A function of (q, z) that returns the `DensityInfo` of masses q 2^E within one block.

    All sums over cells are one product with a table of rows. Moments are taken about the block's first mean, which
    keeps the digits of a variance that is small beside the squared mean.
    """
    dtype = tilt.dtype
    m = tilt.shape[0]
    live = start.q > 0
    shifted = problem.rewards - problem.best
    center = dot(shifted, start.q * scale)
    deviation = shifted - center[:, None]
    table = jnp.concatenate([deviation, deviation * deviation, problem.basins, problem.outside[None]])
    log_scale = start.exponent.astype(dtype) * _LOG2
    offset = problem.best[:, 0] / problem.temperature
    # W is at least phi_i e_i / z_i > 0, so a zero marks cells that do not take part in a maximum.
    outside_mask = problem.outside * live.astype(dtype)

    def observe(q: Array, z: Array) -> DensityInfo:
        p = q * scale
        sums = dot(table, p)
        first, second, basin, outside_mass = sums[:m], sums[m : 2 * m], sums[2 * m : 3 * m], sums[3 * m]
        u = problem.phi / z
        w = jnp.sum(u[:, None] * tilt, axis=0)
        log_z = jnp.log(z) + offset
        log_q = jnp.log(jnp.where(live, jnp.maximum(q, jnp.finfo(dtype).tiny), jnp.ones((), dtype)))
        return DensityInfo(
            reward_mean=problem.best[:, 0] + center + first,
            reward_variance=second - first * first,
            log_z=log_z,
            entropy=-jnp.sum(p * (log_scale + log_q)),
            basin_mass=basin,
            outside_mass=outside_mass,
            log_sup_w_outside=jnp.log(jnp.max(w * outside_mask)),
            objective=jnp.sum(problem.phi * log_z),
            log_max_w=jnp.log(jnp.max(jnp.where(live, w, jnp.zeros((), dtype)))),
        )

    return observe


def _from_log(log_p: Array) -> _Scaled:
    live = log_p > -jnp.inf
    finite = jnp.where(live, log_p, jnp.zeros((), log_p.dtype))
    exponent = jax.lax.stop_gradient(jnp.floor(finite / _LOG2))
    q = jnp.where(live, jnp.exp(finite - exponent * _LOG2), jnp.zeros((), log_p.dtype))
    return _Scaled(q, exponent.astype(jnp.int32))


def _to_log(scaled: _Scaled) -> Array:
    live = scaled.q > 0
    log_q = jnp.log(jnp.where(live, scaled.q, jnp.ones((), scaled.q.dtype)))
    return jnp.where(live, scaled.exponent.astype(scaled.q.dtype) * _LOG2 + log_q, -jnp.inf)


def _refold(q: Array, exponent: Array) -> _Scaled:
    """Move the binary exponent of q into the integer exponent, so that q is in [1, 2) again."""
    bits, mantissa_bits, bias = _float_layout(q.dtype)
    field = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(q), bits) >> mantissa_bits
    shift = jnp.where(q > 0, field - bias, jnp.zeros((), bits))
    # |shift| is below the bias for every q that a block accepts, so the factor is a normal number.
    factor = jax.lax.bitcast_convert_type((bias - shift) << mantissa_bits, q.dtype)
    return _Scaled(q * factor, exponent + shift.astype(jnp.int32))


def _power_of_two(exponent: Array, dtype: Any) -> Array:
    """2^exponent as a float; 0 where that is below the smallest normal number."""
    bits, mantissa_bits, bias = _float_layout(dtype)
    e = jnp.minimum(exponent.astype(bits), bias)
    normal = jax.lax.bitcast_convert_type((jnp.maximum(e, 1 - bias) + bias) << mantissa_bits, dtype)
    return jnp.where(e > -bias, normal, jnp.zeros((), dtype))


def _float_layout(dtype: Any) -> tuple[Any, int, int]:
    limits = jnp.finfo(dtype)
    bits = {32: jnp.int32, 64: jnp.int64}[limits.bits]
    return bits, limits.nmant, limits.maxexp - 1
