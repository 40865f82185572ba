"""Retraining from samples: sample, curate, refit, as a `Process` with the step API of the exact densities.

    candidates ~ model,    curated ~ choice rule (C.1) under a policy,    model <- fit(curated)

One round of `loop` is a round of the paper's protocol (C.3) for any `Model`. The state holds the candidates that the next round
chooses from, with their rewards, as the state of an exact density holds its multiplier: so what `info` says about the new model
costs no samples of its own.

Shapes: m preferences, n candidates, N curated samples.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from plural_jax import _validate
from plural_jax._typing import ArrayLike
from plural_jax.curation import Curated, Policy, check_pool, check_structure, curate, mix_real, take
from plural_jax.curation_policies import check_policy
from plural_jax.faults import BAD_MODEL, BAD_REWARD, NO_ROOM
from plural_jax.models.base import Model
from plural_jax.process import Process
from plural_jax.rewards.host import HostReward, as_reward


class RetrainingState(NamedTuple):
    """What the next round needs.

    Attributes:
        params: the model's.
        candidates: samples of the model, a pytree with leading axis n.
        rewards: of the candidates, [m, n].
        data: everything that was curated so far, with `accumulate`; otherwise None.
        fault: 0, or why this run cannot be trusted from some round on, int32 []; `pj.run` and `pj.sweep` raise on it.
    """

    params: Any
    candidates: Any
    rewards: Array
    data: Accumulated | None
    fault: Array


class Accumulated(NamedTuple):
    """Initial data and curated sets so far: a pytree of samples, leading axis `room`, and how many of them are in use, []."""

    samples: Any
    used: Array


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
    fault: Array
    measured: Any


class _Settings(NamedTuple):
    """The numbers of a loop; what is static comes beside them."""

    model: Model
    reward: Any
    policy: Policy
    temperature: Array
    basin: Any
    measure: Any
    real: Any
    real_weight: Array


class _Sizes(NamedTuple):
    """What shapes depend on."""

    num_preferences: int
    num_candidates: int
    num_curated: int
    pool_size: int | None
    replace: bool
    initial: int
    room: int


def loop(
    model: Model,
    reward: Callable[[Any], Any],
    phi: ArrayLike,
    *,
    policy: Policy | None = None,
    num_candidates: int | None = None,
    num_curated: int = 500,
    pool_size: int | None = None,
    replace: bool = True,
    temperature: ArrayLike = 1.0,
    real: Any = None,
    real_weight: ArrayLike = 0.0,
    accumulate: int | None = None,
    initial_sets: int = 1,
    basin: Callable[[Any], Array] | None = None,
    measure: Callable[[Any, Any], Any] | None = None,
    reward_on: str = "auto",
) -> Process:
    """Retraining of a model on its own curated samples.

    `x_1..x_n ~ q_t`, `i ~ phi`, `P(k) = exp(r_i(x_k)/tau) / sum_j exp(r_i(x_j)/tau)` N times, `q_{t+1} = fit(curated)` (C.1, C.3)

    As n, N and the model's capacity grow, q_t follows the exact density p_t of `pj.density.finite_pool`.

    Args:
        model: a `Model`, such as `pj.models.gaussian_mixture()`.
        reward: `samples -> [n, m]`, anything of `pj.rewards` or your own. A function that JAX can trace stays on the device; any
            other Python callable is called on the host with NumPy arrays, once for each round (see `placement`).
        phi: weight of each preference, [m], non-negative, summing to one.
        policy: who is active in each draw, from `pj.curation`; default: `mixture(phi)`, the paper's.
        num_candidates: n. Default: N K where a pool size is given, so that every draw has a fresh pool, and otherwise 1000.
        num_curated: N, curated draws in a round.
        pool_size: K, the candidates that each draw looks at; None: all n.
        replace: whether a candidate may be picked twice in a round.
        temperature: tau, not negative, in units of reward.
        real: real data to mix in, a pytree of the samples' structure with leading axis of any length.
        real_weight: probability that a curated sample is replaced by a real one (E9).
        accumulate: train on the initial data and all curated sets so far; the number of rounds that there shall be room for.
        initial_sets: with `accumulate`, the size of the initial data in curated sets.
        basin: `samples -> [n]`, the number of the preference in whose basin a sample lies, -1 in none. Default: the preference
            that likes it most, for quadratic rewards the nearest center (C.7).
        measure: `(params, candidates) -> pytree`, further numbers for the info.
        reward_on: "auto", "device" or "host": where the reward is computed.

    Returns:
        A stochastic process with `RetrainingState` and `RetrainingInfo`: `init(key)` or, from a pretrained model,
        `init(key, params)`; `run` needs a key. Numbers (phi, temperature, the model's and the reward's) may be traced.

    Raises:
        ValueError: what `curate` refuses; real data without a weight or of another structure; a reward of the wrong shape. From
            `pj.run` and `pj.sweep`: rewards that were NaN or infinite, a model that was; more rounds than `accumulate`.

    Example:
        >>> import jax
        >>> import plural_jax as pj
        >>> reward = pj.rewards.quadratic(centers=[[-2.0, 0.0], [2.0, 0.0]], gamma=0.5)
        >>> process = pj.retraining.loop(pj.models.gaussian_mixture(), reward, phi=[0.3, 0.7])
        >>> state = process.init(jax.random.key(0))
        >>> final, trace = pj.run(process, state, num_steps=20, key=jax.random.key(1))
        >>> bool(abs(trace.allocation[-1, 0] - 0.3) < 0.15)
        True

    Source: C.3 of the paper.
    """
    if np.ndim(phi) != 1:
        raise ValueError(f"phi must hold one weight for each preference, got shape {np.shape(phi)}.")
    m = np.shape(phi)[0]
    policy = check_policy(phi if policy is None else policy, m)
    num_curated = _validate.positive_integer(num_curated, "num_curated")
    if num_candidates is None:
        num_candidates = 1000 if pool_size is None else num_curated * _validate.positive_integer(pool_size, "pool_size")
    num_candidates = _validate.positive_integer(num_candidates, "num_candidates")
    pool_size = check_pool(pool_size, num_candidates, num_curated, replace)
    _validate.finite(temperature, "temperature")
    value = _validate.concrete(temperature)
    if np.ndim(temperature) != 0 or (value is not None and value < 0):
        raise ValueError(f"temperature must be one number that is not negative, got {_validate.shown(temperature)}.")
    dtype = jnp.result_type(float)
    _check_real(real, real_weight)
    rounds = 0 if accumulate is None else _validate.positive_integer(accumulate, "accumulate")
    initial = num_curated * _validate.positive_integer(initial_sets, "initial_sets") if rounds else 0

    samples = jax.eval_shape(lambda key: model.sample(key, model.init(key), num_candidates), jax.random.key(0))
    known = as_reward(reward, samples, m, reward_on)
    if real is not None:
        check_structure(real, samples)
    settings = _Settings(
        model=model,
        reward=known,
        policy=policy,
        temperature=jnp.asarray(temperature, dtype),
        basin=None if basin is None else _partial(basin),
        measure=None if measure is None else _partial(measure),
        real=None if real is None else jax.tree.map(jnp.asarray, real),
        real_weight=jnp.asarray(real_weight, dtype),
    )
    sizes = _Sizes(m, num_candidates, num_curated, pool_size, replace, initial, initial + rounds * num_curated)
    return Process(init=Partial(_Init(sizes), settings), step=Partial(_Step(sizes), settings))


def placement(process: Process) -> str:
    """Where a retraining process computes its rewards: "device" or "host".

    Example:
        >>> import numpy as np
        >>> import plural_jax as pj
        >>> process = pj.retraining.loop(pj.models.gaussian_mixture(), lambda x: -np.asarray(x) ** 2, phi=[0.5, 0.5])
        >>> pj.retraining.placement(process)
        'host'
    """
    settings = next((a for a in getattr(process.step, "args", ()) if isinstance(a, _Settings)), None)
    if settings is None:
        raise ValueError(f"process must be made by pj.retraining.loop, got one whose step is {process.step}.")
    return "host" if isinstance(getattr(settings.reward, "func", None), HostReward) else "device"


class _Init:
    """The first state; equal for equal sizes, so that a new loop of the same shape compiles nothing."""

    def __init__(self, sizes: _Sizes) -> None:
        self.sizes = sizes

    def __hash__(self) -> int:
        return hash((type(self), self.sizes))

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.sizes == self.sizes

    def __call__(self, settings: _Settings, key: Array, params: Any = None) -> RetrainingState:
        return _first_state(self.sizes, settings, key, params)


class _Step(_Init):
    """One round."""

    def __call__(  # type: ignore[override]
        self, settings: _Settings, key: Array | None, state: RetrainingState
    ) -> tuple[RetrainingState, RetrainingInfo]:
        if key is None:
            raise ValueError("key must be a PRNG key, because candidates and choices are drawn at random, got None.")
        return _round(self.sizes, settings, key, state)


@partial(jax.jit, static_argnums=0)
def _first_state(sizes: _Sizes, settings: _Settings, key: Array, params: Any) -> RetrainingState:
    of_params, of_data, of_candidates = jax.random.split(key, 3)
    if params is None:
        params = settings.model.init(of_params)
    data = None
    if sizes.room:
        first = settings.model.sample(of_data, params, sizes.initial)
        rest = sizes.room - sizes.initial
        pad = lambda x: jnp.concatenate([x, jnp.zeros((rest, *x.shape[1:]), x.dtype)])  # noqa: E731
        data = Accumulated(jax.tree.map(pad, first), jnp.asarray(sizes.initial, jnp.int32))
    return _looked_at(sizes, settings, of_candidates, RetrainingState(params, None, None, data, jnp.int32(0)))  # type: ignore[arg-type]


@partial(jax.jit, static_argnums=0)
def _round(
    sizes: _Sizes, settings: _Settings, key: Array, state: RetrainingState
) -> tuple[RetrainingState, RetrainingInfo]:
    choosing, mixing, fitting, sampling = jax.random.split(key, 4)
    curated = curate(
        choosing,
        state.rewards,
        settings.policy,
        sizes.num_curated,
        pool_size=sizes.pool_size,
        replace=sizes.replace,
        temperature=settings.temperature,
    )
    samples = take(state.candidates, curated.candidate)
    if settings.real is not None:
        samples = mix_real(mixing, samples, settings.real, settings.real_weight)
    weights, data, fault = None, state.data, state.fault
    if data is not None:
        put = lambda all, new: jax.lax.dynamic_update_slice_in_dim(all, new, data.used, 0)  # noqa: E731
        full = data.used >= sizes.room
        data = Accumulated(jax.tree.map(put, data.samples, samples), data.used + jnp.int32(sizes.num_curated))
        fault = _first(fault, full, NO_ROOM)
        samples = data.samples
        weights = (jnp.arange(sizes.room, dtype=jnp.int32) < data.used).astype(jnp.result_type(float))
    params = settings.model.fit(fitting, state.params, samples, weights)
    new = _looked_at(sizes, settings, sampling, RetrainingState(params, None, None, data, fault))  # type: ignore[arg-type]
    return new, _info(settings, state, curated, new)


def _looked_at(sizes: _Sizes, settings: _Settings, key: Array, state: RetrainingState) -> RetrainingState:
    """The state with new candidates and their rewards."""
    candidates = settings.model.sample(key, state.params, sizes.num_candidates)
    rewards = settings.reward(candidates).T
    floats = [x for x in jax.tree.leaves(state.params) if jnp.issubdtype(x.dtype, jnp.floating)]
    broken = jnp.stack([jnp.isnan(x).any() for x in floats]).any() if floats else jnp.zeros((), bool)
    fault = _first(_first(state.fault, broken, BAD_MODEL), ~jnp.isfinite(rewards).all(), BAD_REWARD)
    return state._replace(candidates=candidates, rewards=rewards, fault=fault)


def _first(fault: Array, now: Array, code: int) -> Array:
    return jnp.where((fault == 0) & now, jnp.int32(code), fault)


def _info(settings: _Settings, old: RetrainingState, curated: Curated, new: RetrainingState) -> RetrainingInfo:
    m = new.rewards.shape[0]
    numbers = jnp.arange(m, dtype=jnp.int32)[:, None]
    dtype = new.rewards.dtype

    def basins(state: RetrainingState) -> Array:
        if settings.basin is None:
            return jnp.argmax(state.rewards, axis=0).astype(jnp.int32)
        return settings.basin(state.candidates).astype(jnp.int32)

    best = jnp.max(new.rewards, axis=1, keepdims=True)  # rewards of 1e4 +- 1 keep their variance in float32
    share = jnp.mean((basins(new) == numbers).astype(dtype), axis=1)
    all_shares = jnp.append(share, jnp.maximum(1 - jnp.sum(share), 0))
    active = curated.preference == numbers
    where = basins(old)[curated.candidate]
    others = active & (where != numbers) & (where >= 0)
    count = jnp.sum(active.astype(dtype), axis=1)
    picked = jnp.zeros((old.rewards.shape[1],), bool).at[curated.candidate].set(True)
    model = settings.model
    return RetrainingInfo(
        reward_mean=best[:, 0] + jnp.mean(new.rewards - best, axis=1),
        reward_variance=jnp.var(new.rewards - best, axis=1),
        allocation=share,
        allocation_entropy=-jnp.sum(jax.scipy.special.xlogy(all_shares, all_shares)),
        entropy=None if model.log_prob is None else -jnp.mean(model.log_prob(new.params, new.candidates)),
        drawn=count / curated.preference.shape[0],
        leakage=jnp.sum(others.astype(dtype), axis=1) / count,  # 0 / 0 is NaN: nothing is known
        num_distinct=jnp.sum(picked, dtype=jnp.int32),
        fault=new.fault,
        measured=None if settings.measure is None else settings.measure(new.params, new.candidates),
    )


def _partial(function: Any) -> Partial:
    return function if isinstance(function, Partial) else Partial(function)


def _check_real(real: Any, weight: ArrayLike) -> None:
    _validate.finite(weight, "real_weight")
    value = _validate.concrete(weight)
    if np.ndim(weight) != 0 or (value is not None and not 0 <= value <= 1):
        raise ValueError(f"real_weight must be one number between 0 and 1, got {_validate.shown(weight)}.")
    if real is None and value is not None and value > 0:
        raise ValueError(f"real_weight={value.item():g} needs real data: give real=, samples like the model's own.")
