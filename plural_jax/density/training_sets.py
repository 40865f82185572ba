"""What the model is refit to: a finite curated set, curated and real data mixed, or all the data so far.

Each function here takes a density process and returns another one. The inner process says which law a curated item has,
`T(p) = p W`; the outer one says which density the model gets from it:

    finite_set    p_{t+1} = multinomial(N, T(p_t)) / N
    mix_real      p_{t+1} = (1 - lambda) T(p_t) + lambda p_real
    accumulate    p_{t+1} = (c_t p_t + T(p_t)) / (c_t + 1)

They compose, and the order says what happens first: `accumulate(finite_set(process, N))` keeps every curated set of N
samples, `mix_real(finite_set(process, N), ...)` adds exact real data to each, and `finite_set(mix_real(process, ...), N)`
draws N samples from curated and real data together.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from plural_jax import _validate
from plural_jax._typing import ArrayLike
from plural_jax.density.core import DensityInfo, DensityState, parts, summarize
from plural_jax.landscape import check_log_mass, normalize
from plural_jax.process import Process, as_pytree

#: Items that are drawn at a time. Their number is data, so they are drawn by a loop over pieces of this size.
_DRAWS = 128
#: Resolution of float32 masses as whole numbers; their sum stays below 2^32.
_UNITS = 2.0**31


class AccumulatedState(NamedTuple):
    """The state of `accumulate`.

    Attributes:
        log_p: log-mass of every atom in the data so far, [n].
        log_w: log of the multiplier that the next round applies to this density, [n].
        num_sets: number of sets in the data so far, c_t, the initial data counted as `initial_sets`; [].
    """

    log_p: Array
    log_w: Array
    num_sets: Array


def finite_set(process: Process, set_size: ArrayLike) -> Process:
    """Keep only N curated items in each round, and refit the model to these.

    `p_{t+1} = n_t / N`, `n_t ~ multinomial(N, p_t W_t)`; `p_t W_t` is the law of a curated item (Eq. 5; Lemma 1 at finite K)

    An atom that no item falls on is gone for good, so a basin can die out although its preference is asked in every round:
    genetic drift under selection. Means follow the exact dynamics as N grows, with fluctuations of order 1/sqrt(N).

    Args:
        process: any exact density process: `large_pool`, `finite_pool`, the other policies, or one of this module.
        set_size: N, a whole number from 1 to 2^31 - 1, or infinity for the exact law. May be traced, and so an axis of a
            sweep. A round costs about 20 ns for each item on one CPU core.

    Returns:
        A process with the states and infos of the given one. It is stochastic: `run` and `sweep` need a key. In float64 the
        draws are exact to rounding; in float32 masses are resolved to 2^-31, and those below are drawn with the right
        probability on average over rounds.

    Raises:
        ValueError: not a density process; a set size that is not a whole number of at least 1. From a step: no key.

    Example:
        >>> import jax
        >>> import plural_jax as pj
        >>> land = pj.Landscape(rewards=[[5.0, 0.0], [0.0, 5.0]])
        >>> process = pj.density.finite_set(pj.density.large_pool(land, phi=[0.2, 0.8]), set_size=10)
        >>> final, trace = pj.run(process, process.init(), num_steps=50, key=jax.random.key(1))
        >>> [f"{mass:.1f}" for mass in trace.basin_mass[-1]]  # ten samples are too few for a minority of 20 %
        ['0.0', '1.0']

    Source: the Wright-Fisher model of population genetics; here selection is by the paper's curation.
    """
    _, _ = parts(process)
    if np.ndim(set_size) != 0:
        raise ValueError(f"set_size must be a single number, got shape {np.shape(set_size)}.")
    size = _validate.real_array(set_size, "set_size")
    if size is not None:
        if np.isposinf(size):
            return process
        if not (1 <= size < 2**31 and size == np.floor(size)):
            raise ValueError(f"set_size must be a whole number from 1 to 2^31 - 1, or infinity, got {size}.")
    inner = as_pytree(process)
    # What an axis of a sweep gives is a float; a number known here stays whole, as float32 would round it above 2^24.
    number = jnp.asarray(set_size) if size is None else jnp.asarray(int(size), jnp.int32)
    return Process(init=inner.init, step=Partial(_finite_set_step, inner.step, number))


def mix_real(process: Process, log_real: ArrayLike, weight: ArrayLike) -> Process:
    """Mix real data into the curated data of every round.

    `p_{t+1} = (1 - lambda) T(p_t) + lambda p_real`, `T(p) = p W` the law of a curated item

    Args:
        process: any exact density process.
        log_real: log-masses of the real data, [n]; normalized here.
        weight: lambda, the share of real data in the training set, in [0, 1]. 0 is the given process.

    Returns:
        A process with the states and infos of the given one, deterministic if that is.

    Raises:
        ValueError: not a density process; log-masses of the wrong length or without mass; a weight outside [0, 1].

    Example:
        >>> import plural_jax as pj
        >>> land = pj.Landscape(rewards=[[5.0, 0.0, 1.0]])
        >>> process = pj.density.mix_real(pj.density.large_pool(land, [1.0]), land.uniform(), weight=0.3)
        >>> final, trace = pj.run(process, process.init(), num_steps=50)
        >>> [f"{p:.3f}" for p in jnp.exp(final.log_p)]  # every atom keeps at least lambda p_real
        ['0.798', '0.101', '0.102']

    Source: E9 of the paper; Bertrand et al. (2024) for the stability of retraining on mixed data.
    """
    problem, _ = parts(process)
    check_log_mass(log_real, problem.rewards.shape[1], "log_real")
    if np.ndim(weight) != 0:
        raise ValueError(f"weight must be a single number, got shape {np.shape(weight)}.")
    value = _validate.real_array(weight, "weight")
    if value is not None and not 0 <= value <= 1:
        raise ValueError(f"weight must lie between 0 and 1, got {value}.")
    dtype = problem.rewards.dtype
    inner = as_pytree(process)
    real = normalize(jnp.asarray(log_real, dtype))
    return Process(init=inner.init, step=Partial(_mix_real_step, inner.step, real, jnp.asarray(weight, dtype)))


def accumulate(process: Process, *, initial_sets: ArrayLike = 1.0) -> Process:
    """Train on the union of the initial data and all curated sets so far, instead of replacing the data in each round.

    `p_{t+1} = (c_t p_t + T(p_t)) / (c_t + 1)`, `c_t = initial_sets + t`

    With curated sets of one size, after t rounds the data are the initial data and t sets, and the model is their law,
    `p_t = (c_0 p_0 + sum_{s=1..t} T(p_{s-1})) / c_t`: the recursion above.

    Args:
        process: any exact density process that is not itself accumulated.
        initial_sets: c_0, the size of the initial data in curated sets, positive: 1 where there are as many initial as curated
            samples in a round; 20 for 50,000 initial images and 2,500 curated in a round. The initial data are what `init` gets.

    Returns:
        A process with `AccumulatedState` and the infos of the given one, deterministic if that is.

    Raises:
        ValueError: not a density process, or one that accumulates already; initial_sets not positive.

    Example:
        >>> import plural_jax as pj
        >>> land = pj.Landscape(rewards=[[50.0, 0.0]])
        >>> process = pj.density.accumulate(pj.density.large_pool(land, [1.0]))
        >>> final, trace = pj.run(process, process.init(), num_steps=9)
        >>> [f"{p:.3f}" for p in jnp.exp(final.log_p)]  # nine curated sets at the first atom, and half of the initial one
        ['0.950', '0.050']

    Source: E9 of the paper; Gerstgrasser et al. (2024), "Is model collapse inevitable?".
    """
    problem, _ = parts(process)
    if _accumulates(process.step):
        raise ValueError("process accumulates its data already; accumulate must be applied once.")
    _validate.positive(initial_sets, "initial_sets")
    if np.ndim(initial_sets) != 0:
        raise ValueError(f"initial_sets must be a single number, got shape {np.shape(initial_sets)}.")
    inner = as_pytree(process)
    count = jnp.asarray(initial_sets, problem.rewards.dtype)
    return Process(init=Partial(_accumulate_init, inner.init, count), step=Partial(_accumulate_step, inner.step))


def _finite_set_step(inner: Any, set_size: Array, key: Array | None, state: Any) -> tuple[Any, DensityInfo]:
    own, other = jax.random.split(_validate.key(key, "a finite curated set is drawn at random"))
    state, _ = inner(other, state)
    return _refit(inner, state, sample_log_mass(own, state.log_p, set_size))


def _mix_real_step(
    inner: Any, log_real: Array, weight: Array, key: Array | None, state: Any
) -> tuple[Any, DensityInfo]:
    state, _ = inner(key, state)
    return _refit(inner, state, normalize(jnp.logaddexp(jnp.log1p(-weight) + state.log_p, jnp.log(weight) + log_real)))


def _accumulate_init(inner: Any, initial_sets: Array, log_p: ArrayLike | None = None) -> AccumulatedState:
    """The first state, from log-masses [n] of the initial data or, without an argument, the uniform density."""
    state = inner(log_p)
    return AccumulatedState(state.log_p, state.log_w, initial_sets)


def _accumulate_step(inner: Any, key: Array | None, state: AccumulatedState) -> tuple[AccumulatedState, DensityInfo]:
    curated, _ = inner(key, DensityState(state.log_p, state.log_w))
    share = 1 / (state.num_sets + 1)
    log_p = normalize(jnp.logaddexp(jnp.log1p(-share) + state.log_p, jnp.log(share) + curated.log_p))
    return _refit(inner, state._replace(num_sets=state.num_sets + 1), log_p)


def _refit(inner: Any, state: Any, log_p: Array) -> tuple[Any, DensityInfo]:
    """The state with this density in place of its own, and its info; what the inner step made of its own is never computed."""
    problem, multiplier = parts(inner)
    state = state._replace(log_p=log_p, log_w=multiplier(problem, log_p))
    return state, summarize(problem, DensityState(state.log_p, state.log_w))


def _accumulates(step: Any) -> bool:
    while isinstance(step, Partial):
        if step.func is _accumulate_step:
            return True
        step = step.args[0] if step.args else None
    return False


def sample_log_mass(key: Array, log_p: Array, size: Array) -> Array:
    """Log-masses of `size` items drawn from a density, [n]; an infinite size gives the density back.

    `jax.random.multinomial` visits the atoms one after another, and a binomial in float32 is not exact for a million items;
    drawing item by item is, and it is faster up to some thousand items.
    """
    infinite = jnp.isinf(size) if jnp.issubdtype(size.dtype, jnp.floating) else jnp.zeros((), bool)
    number = jnp.where(infinite, jnp.zeros((), size.dtype), size).astype(jnp.int32)
    counts = multinomial_counts(key, jnp.exp(log_p), number)
    total = jnp.maximum(number, 1).astype(log_p.dtype)
    return jnp.where(infinite, log_p, jnp.log(counts.astype(log_p.dtype) / total))


def multinomial_counts(key: Array, p: Array, size: Array) -> Array:
    """How many of `size` items fall on each atom, int32 [n]; masses [n] need not sum to exactly one.

    In float32 the ends of the atoms' intervals are whole numbers, so that a small mass far along keeps its width. Masses are
    rounded up or down to them by chance, up with the probability that makes the mean right.
    """
    wide = jnp.finfo(p.dtype).bits > 32
    if wide:
        ends = jnp.cumsum(p)
    else:
        chance = jax.random.uniform(jax.random.fold_in(key, 0), p.shape, jnp.float32)
        ends = jnp.cumsum(jnp.floor(p.astype(jnp.float32) * _UNITS + chance).astype(jnp.uint32))
    last = ends[-1]

    def piece(i: Array, counts: Array) -> Array:
        own = jax.random.fold_in(key, i + 1)
        if wide:  # a product may round up to the end itself, where no atom lies
            at = jnp.minimum(
                jax.random.uniform(own, (_DRAWS,), p.dtype) * last, jnp.nextafter(last, jnp.zeros_like(last))
            )
        else:
            at = jax.random.randint(own, (_DRAWS,), jnp.zeros((), jnp.uint32), last, dtype=jnp.uint32)
        atom = jnp.searchsorted(ends, at, side="right")
        wanted = i * _DRAWS + jnp.arange(_DRAWS, dtype=jnp.int32) < size
        return counts.at[atom].add(wanted.astype(jnp.int32))

    pieces = (size - 1) // _DRAWS + 1  # not (size + 127) // 128, which overflows for the largest sizes
    return jax.lax.fori_loop(jnp.int32(0), pieces, piece, jnp.zeros(p.shape, jnp.int32))
