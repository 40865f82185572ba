"""One round of retraining: what the state holds, what the info says, and the pure functions that `pj.retraining.loop` is made of.

Shapes: m preferences, n candidates, N curated samples.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from plural_jax import _validate, faults
from plural_jax.curation import Curated, Policy, curate, mix_real, take
from plural_jax.faults import BAD_MODEL, BAD_REWARD, NO_ROOM
from plural_jax.model import Model, refit
from plural_jax.process import names_its_fields


class RetrainingState(NamedTuple):
    """What the next round needs.

    Attributes:
        params: the model's.
        candidates: samples of the model, a pytree with leading axis n.
        rewards: of the candidates, [m, n].
        data: everything that was curated so far, with `accumulate`; otherwise None.
        pool: what the next round chooses from, with `grow`; None where that is the candidates.
        fault: 0, or why this run cannot be trusted from some round on, int32 []; `pj.run` and `pj.sweep` raise on it.
    """

    params: Any
    candidates: Any
    rewards: Array
    data: Accumulated | None
    pool: Pool | None
    fault: Array


class Pool(NamedTuple):
    """A pool that grows: a pytree of samples, leading axis `room`, their rewards [m, room], and how many are in use, []."""

    samples: Any
    rewards: Array
    used: Array


class Accumulated(NamedTuple):
    """Initial data and curated sets so far: a pytree of samples, leading axis `room`, and how many of them are in use, []."""

    samples: Any
    used: Array


@names_its_fields
class RetrainingInfo(NamedTuple):
    """A round in numbers (C.3, C.7). Rewards, shares and entropies are of n samples of the new model.

    Attributes:
        reward_mean: E[r_i], [m], in units of reward.
        reward_variance: Var[r_i], [m].
        allocation: share of samples in each preference's basin, [m].
        allocation_entropy: Shannon entropy of these shares in nats, what lies in no basin being one more share; [].
        entropy: -E[log p] under the model itself, in nats, []; None for models without `log_prob`.
        drawn: share of the curated draws in which i was active, [m].
        leakage: share of the draws of preference i that picked from another's basin (C.7), [m]; NaN where i was never active.
        num_distinct: candidates that were picked at least once, int32 [].
        num_joined: new samples that joined the pool, int32 []; None without `grow`.
        fault: as in the state, int32 [].
        measured: what `measure` returned; None without it.
    """

    reward_mean: Array
    reward_variance: Array
    allocation: Array
    allocation_entropy: Array
    entropy: Array | None
    drawn: Array
    leakage: Array
    num_distinct: Array
    num_joined: Array | None
    fault: Array
    measured: Any


class Settings(NamedTuple):
    """The numbers of a loop; what is static comes beside them."""

    model: Model
    reward: Any
    policy: Policy
    temperature: Array
    basin: Any
    measure: Any
    real: Any
    real_weight: Array
    seeds: Any


class Sizes(NamedTuple):
    """What shapes depend on."""

    num_preferences: int
    num_candidates: int
    num_curated: int
    pool_size: int | None
    replace: bool
    initial: int
    room: int
    seeds: int
    pool_room: int


class Init:
    """The first state; equal for equal sizes, so that a new loop of the same shape compiles nothing."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes

    def __hash__(self) -> int:
        return hash((type(self), self.sizes))

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.sizes == self.sizes

    def __call__(self, settings: Settings, key: Array | None = None, params: Any = None) -> RetrainingState:
        if key is None:
            raise ValueError(
                "process.init needs a PRNG key, because candidates are drawn at random: process.init(jax.random.key(0)); in a "
                "sweep, make returns (process, key)."
            )
        _validate.key(key, "candidates are drawn at random")
        with faults.plain():
            return _first_state(self.sizes, settings, key, params)


class Step(Init):
    """One round."""

    def __call__(  # type: ignore[override]
        self, settings: Settings, key: Array | None, state: RetrainingState
    ) -> tuple[RetrainingState, RetrainingInfo]:
        key = _validate.key(key, "candidates and choices are drawn at random")
        with faults.plain():
            return _round(self.sizes, settings, key, state)


@partial(jax.jit, static_argnums=0)
def _first_state(sizes: Sizes, settings: Settings, key: Array, params: Any) -> RetrainingState:
    of_params, of_data, of_candidates = jax.random.split(key, 3)
    if params is None:
        params = settings.model.init(of_params)
    data = None
    if sizes.room:
        first = settings.model.sample(of_data, params, sizes.initial)
        rest = sizes.room - sizes.initial
        pad = lambda x: jnp.concatenate([x, jnp.zeros((rest, *x.shape[1:]), x.dtype)])  # noqa: E731
        data = Accumulated(jax.tree.map(pad, first), jnp.asarray(sizes.initial, jnp.int32))
    state = _looked_at(sizes, settings, of_candidates, params, data, jnp.int32(0))
    return state._replace(pool=_first_pool(sizes, settings, state)) if sizes.pool_room else state


@partial(jax.jit, static_argnums=0)
def _round(
    sizes: Sizes, settings: Settings, key: Array, state: RetrainingState
) -> tuple[RetrainingState, RetrainingInfo]:
    choosing, mixing, fitting, sampling = jax.random.split(key, 4)
    pool = state.pool
    chosen_from, rewards, available = state.candidates, state.rewards, None
    if pool is not None:
        chosen_from, rewards = pool.samples, pool.rewards
        available = jnp.arange(sizes.pool_room, dtype=jnp.int32) < pool.used
    curated = _chosen(sizes, settings, choosing, rewards, available)
    picked = take(chosen_from, curated.candidate)
    samples = picked
    if settings.real is not None:
        samples = mix_real(mixing, samples, settings.real, settings.real_weight)
    weights, data, fault = None, state.data, state.fault
    if data is not None:
        full = data.used >= sizes.room
        data = Accumulated(_put(data.samples, samples, data.used), data.used + jnp.int32(sizes.num_curated))
        fault = _first(fault, full, NO_ROOM)
        samples = data.samples
        weights = (jnp.arange(sizes.room, dtype=jnp.int32) < data.used).astype(jnp.result_type(float))
    params = refit(settings.model, fitting, state.params, samples, weights)
    joined = None
    new = _looked_at(sizes, settings, sampling, params, data, fault)
    if pool is not None:
        full = pool.used > sizes.pool_room - sizes.num_candidates
        pool, joined = _grown(sizes, settings, jax.random.fold_in(sampling, 1), pool, new)
        new = new._replace(pool=pool, fault=_first(new.fault, full, NO_ROOM))
    return new, _info(settings, curated, rewards, picked, new, joined)


def _chosen(sizes: Sizes, settings: Settings, key: Array, rewards: Array, available: Array | None = None) -> Curated:
    """N draws by the loop's rule."""
    return curate(
        key,
        rewards,
        settings.policy,
        sizes.num_curated,
        pool_size=sizes.pool_size,
        replace=sizes.replace,
        temperature=settings.temperature,
        available=available,
    )


def _put(all: Any, new: Any, at: Array) -> Any:
    """A pytree of samples with new ones written from a position on."""
    return jax.tree.map(lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, at, 0), all, new)


def _first_pool(sizes: Sizes, settings: Settings, state: RetrainingState) -> Pool:
    """The seeds, with room for all that can join them."""
    samples, rewards = state.candidates, state.rewards
    if settings.seeds is not None:
        samples = jax.tree.map(lambda x, like: x.astype(like.dtype), settings.seeds, samples)
        rewards = settings.reward(samples).T
    rest = sizes.pool_room - sizes.seeds
    pad = lambda x: jnp.concatenate([x, jnp.zeros((rest, *x.shape[1:]), x.dtype)])  # noqa: E731
    return Pool(jax.tree.map(pad, samples), pad(rewards.T).T, jnp.int32(sizes.seeds))


def _grown(sizes: Sizes, settings: Settings, key: Array, pool: Pool, new: RetrainingState) -> tuple[Pool, Array]:
    """The pool with the new samples that survive the choice rule, and how many these are."""
    n = sizes.num_candidates
    survives = jnp.zeros((n,), bool).at[_chosen(sizes, settings, key, new.rewards).candidate].set(True)
    first = jnp.argsort(~survives, stable=True)  # survivors first; what follows them is out of use and overwritten
    count = jnp.sum(survives, dtype=jnp.int32)
    samples = _put(pool.samples, take(new.candidates, first), pool.used)
    rewards = jax.lax.dynamic_update_slice_in_dim(pool.rewards, new.rewards[:, first], pool.used, 1)
    return Pool(samples, rewards, pool.used + count), count


def _looked_at(
    sizes: Sizes, settings: Settings, key: Array, params: Any, data: Accumulated | None, fault: Array
) -> RetrainingState:
    """The state of a model: its candidates and their rewards."""
    candidates = settings.model.sample(key, params, sizes.num_candidates)
    rewards = settings.reward(candidates).T
    floats = [x for x in jax.tree.leaves(params) if jnp.issubdtype(x.dtype, jnp.floating)]
    broken = jnp.stack([jnp.isnan(x).any() for x in floats]).any() if floats else jnp.zeros((), bool)
    fault = _first(_first(fault, broken, BAD_MODEL), ~jnp.isfinite(rewards).all(), BAD_REWARD)
    return RetrainingState(params, candidates, rewards, data, None, fault)


def _first(fault: Array, now: Array, code: int) -> Array:
    return jnp.where((fault == 0) & now, jnp.int32(code), fault)


def _info(
    settings: Settings, curated: Curated, old_rewards: Array, picked: Any, new: RetrainingState, joined: Array | None
) -> RetrainingInfo:
    m = new.rewards.shape[0]
    numbers = jnp.arange(m, dtype=jnp.int32)[:, None]
    dtype = new.rewards.dtype

    def basins(samples: Any, rewards: Array) -> Array:
        if settings.basin is None:
            return jnp.argmax(rewards, axis=0).astype(jnp.int32)
        return settings.basin(samples).astype(jnp.int32)

    best = jnp.max(new.rewards, axis=1, keepdims=True)  # rewards of 1e4 +- 1 keep their variance in float32
    share = jnp.mean((basins(new.candidates, new.rewards) == numbers).astype(dtype), axis=1)
    all_shares = jnp.append(share, jnp.maximum(1 - jnp.sum(share), 0))
    active = curated.preference == numbers
    where = basins(picked, old_rewards[:, curated.candidate])
    others = active & (where != numbers) & (where >= 0)
    count = jnp.sum(active.astype(dtype), axis=1)
    seen = jnp.zeros((old_rewards.shape[1],), bool).at[curated.candidate].set(True)
    model = settings.model
    return RetrainingInfo(
        reward_mean=best[:, 0] + jnp.mean(new.rewards - best, axis=1),
        reward_variance=jnp.var(new.rewards - best, axis=1),
        allocation=share,
        allocation_entropy=-jnp.sum(jax.scipy.special.xlogy(all_shares, all_shares)),
        entropy=None if model.log_prob is None else -jnp.mean(model.log_prob(new.params, new.candidates)),
        drawn=count / curated.preference.shape[0],
        leakage=jnp.sum(others.astype(dtype), axis=1) / count,  # 0 / 0 is NaN: nothing is known
        num_distinct=jnp.sum(seen, dtype=jnp.int32),
        num_joined=joined,
        fault=new.fault,
        measured=None if settings.measure is None else settings.measure(new.params, new.candidates),
    )
